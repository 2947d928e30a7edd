//! Follows a topic as it grows. What the page cannot take in time is dropped and counted: neither the page nor the console ever falls behind for good.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kafka_client::{ClientSettings, Next, TopicReader};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Semaphore, mpsc};

use super::filter::Filter;
use super::reader::{AtEnd, Reader};
use super::record::{Record, Seen};

/// So many pages may follow at the same time. Each has a thread and a Kafka client.
const TAILS_MAX: usize = 8;
/// So many records wait for the page at most.
const WAITING_MAX: usize = 200;
/// How often a tail without records looks whether its page is still there.
const WAIT: Duration = Duration::from_millis(250);
/// How long a tail waits before it asks a Kafka that was away again.
const RETRY: Duration = Duration::from_secs(1);

/// The right to follow topics, of which only so many may be used at once.
#[derive(Clone, Debug)]
pub struct Tails {
    settings: ClientSettings,
    turns: Arc<Semaphore>,
}

/// What is followed.
#[derive(Clone, Debug)]
pub struct Followed {
    pub topic: String,
    pub filter: Filter,
}

/// The records that come. Dropping it ends the tail.
#[derive(Debug)]
pub struct Tail {
    records: mpsc::Receiver<Result<Record, String>>,
    dropped: Arc<AtomicU64>,
}

impl Tails {
    #[must_use]
    pub fn new(settings: ClientSettings) -> Self {
        Self {
            settings,
            turns: Arc::new(Semaphore::new(TAILS_MAX)),
        }
    }

    /// Begins at the topic's present end. `None`: as many pages as may be follow already.
    #[must_use]
    pub fn follow(&self, followed: Followed) -> Option<Tail> {
        let turn = Arc::clone(&self.turns).try_acquire_owned().ok()?;
        let (sender, records) = mpsc::channel(WAITING_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let worker = Worker {
            settings: self.settings.clone(),
            followed,
            sender,
            dropped: Arc::clone(&dropped),
        };
        std::thread::spawn(move || {
            let _turn = turn;
            worker.run();
        });
        Some(Tail { records, dropped })
    }
}

impl Tail {
    /// The next record, or what keeps records from coming. `None`: the tail has ended.
    pub async fn next(&mut self) -> Option<Result<Record, String>> {
        self.records.recv().await
    }

    /// The next record, if one is there already.
    pub fn next_now(&mut self) -> Option<Result<Record, String>> {
        self.records.try_recv().ok()
    }

    /// How many records were dropped since this was last asked.
    #[must_use]
    pub fn take_dropped(&self) -> u64 {
        self.dropped.swap(0, Ordering::Relaxed)
    }
}

/// Reads in a thread of its own, since it blocks.
struct Worker {
    settings: ClientSettings,
    followed: Followed,
    sender: mpsc::Sender<Result<Record, String>>,
    dropped: Arc<AtomicU64>,
}

impl Worker {
    fn run(&self) {
        while !self.sender.is_closed() {
            if let Err(err) = self.follow() {
                // The page says so. If it has not taken the last such line yet, that one says it.
                let _ = self.sender.try_send(Err(format!("{err:#}")));
                std::thread::sleep(RETRY);
            }
        }
    }

    /// Follows from the present end on, until the page is gone.
    fn follow(&self) -> anyhow::Result<()> {
        let reader = Reader::open(&self.settings, AtEnd::Wait)?;
        let bounds = reader.all_bounds(&self.followed.topic)?;
        let bounds = bounds.ok_or_else(|| anyhow::anyhow!("there is no topic {}", self.followed.topic))?;
        let ends: Vec<(i32, i64)> = bounds.iter().map(|window| (window.partition, window.to)).collect();
        let reading = TopicReader::start(reader.consumer(), &self.followed.topic, &ends)?;
        while !self.sender.is_closed() {
            let Next::Record(record) = reading.next(WAIT)? else {
                continue;
            };
            let seen = Seen::of(&record);
            if self.followed.filter.wants(&seen)
                && let Err(TrySendError::Full(_)) = self.sender.try_send(Ok(seen.to_record(&self.followed.topic)))
            {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}
