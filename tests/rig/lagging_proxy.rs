//! A proxy before a broker that can make the broker's Fetch answers lag behind, as those of a follower or of a former leader do. The high watermark
//! and the last stable offset are then too low, and the records after them are missing. The proxy can also lower the ends in ListOffsets answers to
//! the view-builder. Everything else passes unchanged, also for other clients.

mod answer;

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, ensure};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use crate::kafka_proxy::{Request, correlation_id, read_frame};
use answer::{Lag, LowEnds, cut_fetch_answer, lower_ends};

/// API key, see <https://kafka.apache.org/protocol#protocol_api_keys>.
const FETCH: i16 = 1;
const LIST_OFFSETS: i16 = 2;
/// The versions whose answers the proxy can read.
const LIST_OFFSETS_VERSIONS: RangeInclusive<i16> = 6..=11;
/// The client whose ListOffsets answers have lower ends.
const ASKING_CLIENT: &[u8] = b"view-builder";

/// A listening proxy. Its connections end with the runtime.
#[derive(Debug)]
pub struct LaggingProxy(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// The client whose Fetch answers lag behind.
    client: &'static str,
    lag: Mutex<Option<Lag>>,
    cut: AtomicU64,
    low: Mutex<Option<LowEnds>>,
    told: AtomicU64,
}

impl LaggingProxy {
    /// Starts a proxy on `port` of 127.0.0.1 for the broker on port `broker`. It can make answers to the relay lag behind.
    ///
    /// # Errors
    /// The port is taken.
    pub async fn start(port: u16, broker: u16) -> anyhow::Result<Self> {
        Self::start_for(port, broker, "outbox-relay").await
    }

    /// As [`LaggingProxy::start`], but for the client with this id.
    ///
    /// # Errors
    /// The port is taken.
    pub async fn start_for(port: u16, broker: u16, client: &'static str) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port))
            .await
            .context("the proxy's port")?;
        let shared = Arc::new(Shared {
            client,
            lag: Mutex::default(),
            cut: AtomicU64::new(0),
            low: Mutex::default(),
            told: AtomicU64::default(),
        });
        let accepting = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, broker, Arc::clone(&accepting)));
            }
        });
        Ok(Self(shared))
    }

    /// From now on the client's Fetch answers lack the last `offsets` offsets of the partitions with these numbers, whatever their topic. Returns how
    /// many answers were cut before.
    pub fn lag_behind(&self, partitions: RangeInclusive<i32>, offsets: i64) -> u64 {
        *self.0.lag.lock().unwrap_or_else(PoisonError::into_inner) = Some(Lag { partitions, offsets });
        self.answers_cut()
    }

    /// From now on answers are complete again.
    pub fn catch_up(&self) {
        *self.0.lag.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// In the next `answers` ListOffsets answers to the view-builder, the ends of these partitions are lower by `offsets`.
    pub fn lower_ends(&self, partitions: RangeInclusive<i32>, offsets: i64, answers: u64) {
        *self.0.low.lock().unwrap_or_else(PoisonError::into_inner) = Some(LowEnds {
            partitions,
            offsets,
            answers_left: answers,
        });
    }

    /// From now on ListOffsets answers have the true ends again.
    pub fn tell_ends(&self) {
        *self.0.low.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// How many ListOffsets answers the view-builder has got.
    #[must_use]
    pub fn ends_told(&self) -> u64 {
        self.0.told.load(Ordering::Acquire)
    }

    /// How often a partition's answer was cut.
    #[must_use]
    pub fn answers_cut(&self) -> u64 {
        self.0.cut.load(Ordering::Acquire)
    }
}

/// Passes requests and answers on. When a connection ends, the client makes another, so that is not an error here.
async fn serve(client: TcpStream, broker: u16, shared: Arc<Shared>) -> anyhow::Result<()> {
    let broker = TcpStream::connect(("127.0.0.1", broker)).await?;
    client.set_nodelay(true)?;
    broker.set_nodelay(true)?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_broker, mut to_broker) = broker.into_split();
    let fetches = Arc::new(Mutex::new(HashMap::new()));
    let asked = Arc::clone(&fetches);
    let lags_for = shared.client.as_bytes();
    tokio::spawn(async move {
        while let Some(frame) = read_frame(&mut from_broker).await? {
            let request = correlation_id(&frame, 4)
                .and_then(|id| asked.lock().unwrap_or_else(PoisonError::into_inner).remove(&id));
            let lag = shared.lag.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let answer = match (request, lag) {
                (Some((FETCH, version)), Some(lag)) => cut_fetch_answer(&frame, version, &lag, &shared.cut)?,
                (Some((LIST_OFFSETS, version)), _) => shared.tell(frame, version)?,
                _ => frame,
            };
            to_client.write_all(&answer).await?;
        }
        anyhow::Ok(())
    });
    while let Some(frame) = read_frame(&mut from_client).await? {
        let request = Request::read(&frame);
        let is_fetch = request.key == FETCH && request.client_id == lags_for;
        if is_fetch || (request.key == LIST_OFFSETS && request.client_id == ASKING_CLIENT) {
            let id = correlation_id(&frame, 8).context("a short request")?;
            let mut asked = fetches.lock().unwrap_or_else(PoisonError::into_inner);
            asked.insert(id, (request.key, request.version));
        }
        to_broker.write_all(&frame).await?;
    }
    Ok(())
}

impl Shared {
    /// Passes a ListOffsets answer on, with lower ends if they are wanted.
    fn tell(&self, frame: Vec<u8>, version: i16) -> anyhow::Result<Vec<u8>> {
        ensure!(
            LIST_OFFSETS_VERSIONS.contains(&version),
            "ListOffsets version {version} is not known here"
        );
        self.told.fetch_add(1, Ordering::AcqRel);
        let mut wanted = self.low.lock().unwrap_or_else(PoisonError::into_inner);
        match wanted.as_mut().filter(|low| low.answers_left > 0) {
            None => Ok(frame),
            Some(low) => {
                low.answers_left -= 1;
                lower_ends(&frame, low)
            }
        }
    }
}
