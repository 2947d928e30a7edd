//! A few Kafka clients that are connected already. A new client needs some tens of milliseconds for its first answer; one that was used before needs one or two.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kafka_client::ClientSettings;
use tokio::sync::Semaphore;

use super::reader::{AtEnd, Reader};

/// So many clients, and no more, read for all pages together. Each holds at most some megabytes of a topic.
const READERS_MAX: usize = 4;
/// How long a page waits for its turn.
const TURN_TIMEOUT: Duration = Duration::from_millis(900);

/// The clients. All clones share them.
#[derive(Clone)]
pub struct Readers(Arc<Inner>);

struct Inner {
    settings: ClientSettings,
    turns: Arc<Semaphore>,
    idle: Mutex<Vec<Reader>>,
}

/// Why nothing was read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// All clients read for other pages.
    #[error("{READERS_MAX} searches are under way already; try again when one has ended")]
    Busy,
    /// Kafka does not answer, or refuses.
    #[error("{0:#}")]
    Kafka(anyhow::Error),
    /// Nothing came in the time that the page has.
    #[error("it was not read in time")]
    TimeOver,
}

impl fmt::Debug for Readers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Readers")
    }
}

impl Readers {
    /// No client is made yet.
    #[must_use]
    pub fn new(settings: ClientSettings) -> Self {
        Self(Arc::new(Inner {
            settings,
            turns: Arc::new(Semaphore::new(READERS_MAX)),
            idle: Mutex::new(Vec::new()),
        }))
    }

    /// Runs `job` with a client, on a thread for what blocks, and waits for `limit` at most. A job that is not waited for any more ends by itself, and its client
    /// counts as used until then.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn run<T: Send + 'static>(
        &self,
        limit: Duration,
        job: impl FnOnce(&Reader) -> anyhow::Result<T> + Send + 'static,
    ) -> Result<T, ReadError> {
        let turn = tokio::time::timeout(TURN_TIMEOUT, Arc::clone(&self.0.turns).acquire_owned());
        let Ok(Ok(turn)) = turn.await else {
            return Err(ReadError::Busy);
        };
        let inner = Arc::clone(&self.0);
        let running = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let reader = match inner.take_idle() {
                Some(reader) => reader,
                None => Reader::open(&inner.settings, AtEnd::HearAtOnce)?,
            };
            reader.serve_events();
            let result = job(&reader);
            // After an error the client may be one whose password has been replaced since. The next job makes a new one.
            if result.is_ok() {
                inner.put_back(reader);
            }
            result
        });
        match tokio::time::timeout(limit, running).await {
            Ok(Ok(result)) => result.map_err(ReadError::Kafka),
            Ok(Err(err)) => Err(ReadError::Kafka(anyhow::anyhow!("the search broke off: {err}"))),
            Err(_) => Err(ReadError::TimeOver),
        }
    }
}

impl Inner {
    fn take_idle(&self) -> Option<Reader> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn put_back(&self, reader: Reader) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(reader);
    }
}
