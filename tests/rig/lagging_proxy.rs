//! A proxy before a broker that can make the broker's Fetch answers lag behind, as those of a follower or of a former leader do. The high watermark
//! and the last stable offset are then too low, and the records after them are missing. The proxy can also lower the ends in ListOffsets answers to
//! the view-builder. Everything else passes unchanged, also for other clients.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, ensure};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use crate::kafka_proxy::{Request, correlation_id, read_frame};

/// API key, see <https://kafka.apache.org/protocol#protocol_api_keys>.
const FETCH: i16 = 1;
/// The versions whose answers the proxy can read. From version 13 on, topics are named by their ids.
const VERSIONS: RangeInclusive<i16> = 12..=17;
const BY_ID: i16 = 13;
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

/// For these partitions, so many answers give ends that are lower by so many offsets.
#[derive(Clone, Debug)]
struct LowEnds {
    partitions: RangeInclusive<i32>,
    offsets: i64,
    answers_left: u64,
}

/// These partitions lack so many offsets at their end.
#[derive(Clone, Debug)]
struct Lag {
    partitions: RangeInclusive<i32>,
    offsets: i64,
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
                (Some((FETCH, version)), Some(lag)) => cut(&frame, version, &lag, &shared.cut)?,
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
                lower(&frame, low)
            }
        }
    }
}

/// Copies a ListOffsets answer with lower offsets. The length stays the same.
fn lower(frame: &[u8], low: &LowEnds) -> anyhow::Result<Vec<u8>> {
    let mut answer = Answer {
        rest: &frame[4..],
        copy: frame[..4].to_vec(),
    };
    // Correlation id, tagged fields of the header, throttle time.
    answer.pass(4 + 1 + 4)?;
    for _ in 0..answer.pass_count()? {
        let length = answer.pass_count()?;
        answer.pass(length)?;
        for _ in 0..answer.pass_count()? {
            let partition = i32::from_be_bytes(answer.rest.get(..4).context("a short answer")?.try_into()?);
            // Partition, error code, time.
            answer.pass(4 + 2 + 8)?;
            let offset = answer.take_long()?;
            let is_low = low.partitions.contains(&partition) && offset > 0;
            let told = if is_low { (offset - low.offsets).max(0) } else { offset };
            answer.copy.extend_from_slice(&told.to_be_bytes());
            // The leader's epoch.
            answer.pass(4)?;
            answer.pass_tags()?;
        }
        answer.pass_tags()?;
    }
    answer.pass(answer.rest.len())?;
    Ok(answer.copy)
}

/// Copies a Fetch answer without the end of the partitions that lag behind.
fn cut(frame: &[u8], version: i16, lag: &Lag, times: &AtomicU64) -> anyhow::Result<Vec<u8>> {
    ensure!(VERSIONS.contains(&version), "Fetch version {version} is not known here");
    let mut answer = Answer {
        rest: &frame[4..],
        copy: vec![0; 4],
    };
    // Correlation id, tagged fields of the header, throttle time, error code, session id.
    answer.pass(4 + 1 + 4 + 2 + 4)?;
    for _ in 0..answer.pass_count()? {
        if version >= BY_ID {
            answer.pass(16)?;
        } else {
            let length = answer.pass_count()?;
            answer.pass(length)?;
        }
        for _ in 0..answer.pass_count()? {
            answer.pass_partition(lag, times)?;
        }
        answer.pass_tags()?;
    }
    answer.pass(answer.rest.len())?;
    let length = u32::try_from(answer.copy.len() - 4)?;
    answer.copy[..4].copy_from_slice(&length.to_be_bytes());
    Ok(answer.copy)
}

/// Copies an answer field by field.
struct Answer<'a> {
    rest: &'a [u8],
    copy: Vec<u8>,
}

impl<'a> Answer<'a> {
    fn take(&mut self, length: usize) -> anyhow::Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length).context("a short answer")?;
        self.rest = rest;
        Ok(taken)
    }

    fn take_long(&mut self) -> anyhow::Result<i64> {
        Ok(i64::from_be_bytes(self.take(8)?.try_into()?))
    }

    fn take_varint(&mut self) -> anyhow::Result<usize> {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = self.take(1)?[0];
            value |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return Ok(value);
            }
        }
    }

    fn put_varint(&mut self, mut value: usize) {
        while value >= 0x80 {
            self.copy.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.copy.push(value as u8);
    }

    fn pass(&mut self, length: usize) -> anyhow::Result<()> {
        let taken = self.take(length)?;
        self.copy.extend_from_slice(taken);
        Ok(())
    }

    /// Copies the length of a compact array or string, and returns it; 0 for null.
    fn pass_count(&mut self) -> anyhow::Result<usize> {
        let count = self.take_varint()?;
        self.put_varint(count);
        Ok(count.saturating_sub(1))
    }

    fn pass_tags(&mut self) -> anyhow::Result<()> {
        let count = self.take_varint()?;
        self.put_varint(count);
        for _ in 0..count {
            let tag = self.take_varint()?;
            self.put_varint(tag);
            let length = self.take_varint()?;
            self.put_varint(length);
            self.pass(length)?;
        }
        Ok(())
    }

    fn pass_partition(&mut self, lag: &Lag, times: &AtomicU64) -> anyhow::Result<()> {
        let partition = i32::from_be_bytes(self.rest.get(..4).context("a short answer")?.try_into()?);
        // Partition, error code.
        self.pass(4 + 2)?;
        let (high, stable) = (self.take_long()?, self.take_long()?);
        let is_cut = lag.partitions.contains(&partition);
        let end = if is_cut { (high - lag.offsets).max(0) } else { high };
        let ends_at = self.copy.len();
        self.copy.extend_from_slice(&end.to_be_bytes());
        self.copy.extend_from_slice(&stable.min(end).to_be_bytes());
        // Where the log starts.
        self.pass(8)?;
        for _ in 0..self.pass_count()? {
            // An aborted transaction: producer, first offset.
            self.pass(16)?;
            self.pass_tags()?;
        }
        // The replica to prefer.
        self.pass(4)?;
        let length = self.take_varint()?;
        let records = self.take(length.saturating_sub(1))?;
        let (kept, next) = batches_below(records, end);
        if let (true, Some(next)) = (is_cut, next) {
            times.fetch_add(1, Ordering::AcqRel);
            // A log ends between two batches.
            self.copy[ends_at..ends_at + 8].copy_from_slice(&next.to_be_bytes());
            self.copy[ends_at + 8..ends_at + 16].copy_from_slice(&stable.min(next).to_be_bytes());
        }
        self.put_varint(if length == 0 { 0 } else { kept.len() + 1 });
        self.copy.extend_from_slice(kept);
        self.pass_tags()
    }
}

/// Splits record batches: returns the batches that end below `end`, and the offset of the first batch that does not. The fields of a batch are its
/// base offset, the length of the rest, and so on; byte 23 has the distance of the last record from the base offset.
fn batches_below(records: &[u8], end: i64) -> (&[u8], Option<i64>) {
    let mut kept = 0;
    while let Some(batch) = records.get(kept..).filter(|batch| batch.len() >= 27) {
        let base = i64::from_be_bytes(batch[..8].try_into().unwrap_or_default());
        let length = u32::from_be_bytes(batch[8..12].try_into().unwrap_or_default()) as usize;
        let last = i32::from_be_bytes(batch[23..27].try_into().unwrap_or_default());
        if base + i64::from(last) >= end {
            return (&records[..kept], Some(base));
        }
        if batch.len() < 12 + length {
            break;
        }
        kept += 12 + length;
    }
    (&records[..kept], None)
}
