//! Reads a topic with an ordinary consumer, which uses no code of ours.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use events::{PARTITIONS, POSITION_HEADER, Position};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use uuid::Uuid;

/// The time limit of one request to the broker.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// If the broker is silent for so long, it has nothing more, or it hangs.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// How often a reading thread asks whether it has to end.
const POLL: Duration = Duration::from_millis(100);

/// A topic of [`PARTITIONS`] partitions.
#[derive(Clone, Debug)]
pub(crate) struct Topic {
    bootstrap_servers: String,
    name: String,
}

/// A record that a live consumer received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrival {
    /// The commit's time in microseconds since 1970, by the clock of the database, which is this machine's.
    pub committed_us: i64,
    pub received_us: i64,
}

/// Receives records in a thread of its own, until it is told to end.
#[derive(Debug)]
pub(crate) struct LiveConsumer {
    thread: JoinHandle<anyhow::Result<Vec<Arrival>>>,
    is_over: Arc<AtomicBool>,
}

impl Topic {
    pub(crate) fn new(bootstrap_servers: &str, name: &str) -> Self {
        Self {
            bootstrap_servers: bootstrap_servers.to_owned(),
            name: name.to_owned(),
        }
    }

    /// Waits until no transaction is open in any partition. From then on a read_committed consumer sees every record.
    ///
    /// # Errors
    /// The broker does not answer, or a transaction stays open for 30 s.
    pub(crate) async fn wait_until_visible(&self) -> anyhow::Result<()> {
        let committed = self.consumer("read_committed")?;
        let all = self.consumer("read_uncommitted")?;
        let start = std::time::Instant::now();
        for partition in 0..PARTITIONS {
            let end = |consumer: &BaseConsumer| {
                tokio::task::block_in_place(|| consumer.fetch_watermarks(&self.name, partition, REQUEST_DEADLINE))
                    .map(|(_, end)| end)
                    .context("cannot ask for a partition's end")
            };
            while end(&committed)? < end(&all)? {
                if start.elapsed() > SILENCE_MAX {
                    bail!("a transaction in {} stays open", self.name);
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        Ok(())
    }

    /// How many offsets all partitions together have: records, and the ends of transactions.
    ///
    /// # Errors
    /// The broker does not answer.
    pub(crate) fn offsets(&self) -> anyhow::Result<u64> {
        let consumer = self.consumer("read_uncommitted")?;
        let mut offsets = 0;
        for partition in 0..PARTITIONS {
            let ends =
                tokio::task::block_in_place(|| consumer.fetch_watermarks(&self.name, partition, REQUEST_DEADLINE));
            let (begin, end) = ends.context("cannot ask for a partition's end")?;
            offsets += u64::try_from(end - begin)?;
        }
        Ok(offsets)
    }

    /// The `id` header of every committed record.
    ///
    /// # Errors
    /// The broker does not answer, or a record has no such header.
    pub(crate) async fn event_ids(&self) -> anyhow::Result<Vec<Uuid>> {
        let topic = self.clone();
        tokio::task::spawn_blocking(move || topic.read_event_ids()).await?
    }

    fn read_event_ids(&self) -> anyhow::Result<Vec<Uuid>> {
        let consumer = self
            .settings("read_committed")
            .set("enable.partition.eof", "true")
            .create()?;
        self.assign(&consumer, Offset::Beginning)?;
        let (mut ids, mut ended) = (Vec::new(), 0);
        while ended < PARTITIONS {
            match consumer.poll(SILENCE_MAX) {
                Some(Ok(message)) => {
                    let id = header(&message, "id").and_then(|bytes| Uuid::try_parse_ascii(bytes).ok());
                    ids.push(id.context("a record without the header `id`")?);
                }
                Some(Err(KafkaError::PartitionEOF(_))) => ended += 1,
                Some(Err(err)) => return Err(err).with_context(|| format!("cannot read {}", self.name)),
                None => bail!("the broker is silent before the end of {}", self.name),
            }
        }
        Ok(ids)
    }

    /// Starts a consumer that receives the records that come from now on.
    ///
    /// # Errors
    /// The consumer cannot be made.
    pub(crate) fn receive(&self) -> anyhow::Result<LiveConsumer> {
        let consumer = self.consumer("read_committed")?;
        // The consumer gets the offsets of the current ends. If it asked Kafka for "the end", the end might have moved by the time of the answer,
        // because a quick program may have written meanwhile.
        let mut partitions = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            let (_, end) = consumer.fetch_watermarks(&self.name, partition, REQUEST_DEADLINE)?;
            partitions.add_partition_offset(&self.name, partition, Offset::Offset(end))?;
        }
        consumer.assign(&partitions).context("cannot assign partitions")?;
        let is_over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&is_over);
        let thread = std::thread::spawn(move || {
            let mut arrivals = Vec::new();
            while !told.load(Ordering::Relaxed) {
                match consumer.poll(POLL) {
                    Some(Ok(message)) => arrivals.push(arrival(&message)?),
                    None => {}
                    Some(Err(err)) => return Err(err).context("cannot receive"),
                }
            }
            Ok(arrivals)
        });
        Ok(LiveConsumer { thread, is_over })
    }

    fn consumer(&self, isolation: &str) -> anyhow::Result<BaseConsumer> {
        self.settings(isolation)
            .create()
            .context("cannot make a Kafka consumer")
    }

    fn settings(&self, isolation: &str) -> ClientConfig {
        let mut settings = ClientConfig::new();
        settings
            .set("bootstrap.servers", &self.bootstrap_servers)
            .set("group.id", "bench")
            .set("isolation.level", isolation)
            .set("enable.auto.commit", "false")
            .set("socket.nagle.disable", "true");
        settings
    }

    fn assign(&self, consumer: &BaseConsumer, offset: Offset) -> anyhow::Result<()> {
        let mut partitions = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            partitions.add_partition_offset(&self.name, partition, offset)?;
        }
        consumer.assign(&partitions).context("cannot assign partitions")
    }
}

impl LiveConsumer {
    /// Ends the consumer. Returns all records that came, in the order in which they came.
    ///
    /// # Errors
    /// The broker failed, or a record has no position.
    pub(crate) fn end(self) -> anyhow::Result<Vec<Arrival>> {
        self.is_over.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(arrivals) => arrivals,
            Err(_) => bail!("the consumer's thread panicked"),
        }
    }
}

/// The current time in microseconds since 1970.
pub(crate) fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

fn arrival(message: &BorrowedMessage<'_>) -> anyhow::Result<Arrival> {
    let received_us = now_us();
    let position: Position = header(message, POSITION_HEADER)
        .and_then(|bytes| std::str::from_utf8(bytes).ok())
        .context("a record without the header `position`")?
        .parse()?;
    Ok(Arrival {
        committed_us: position.commit_timestamp_us,
        received_us,
    })
}

fn header<'m>(message: &'m BorrowedMessage<'_>, name: &str) -> Option<&'m [u8]> {
    let headers = message.headers()?;
    headers.iter().find(|header| header.key == name)?.value
}
