//! Reads a whole topic, as any consumer does.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};

pub use stack::Isolation;

/// The time limit of one request to the broker.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// If the broker is silent for so long, it has nothing more, or it hangs.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// For so long a reader that is at the end waits for more.
const FOLLOW_WAIT: Duration = Duration::from_millis(100);

/// A record as a consumer sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub partition: i32,
    pub offset: i64,
    pub timestamp_ms: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Record {
    /// The value of a header. None: there is no such header, it is null, or it is not text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(header, _)| header == name)?;
        std::str::from_utf8(value.as_deref()?).ok()
    }

    /// Whether the record's row was parked, and an operator has published it.
    #[must_use]
    pub fn is_of_a_retry(&self) -> bool {
        self.header("parked") == Some("retry")
    }

    /// The key as text.
    #[must_use]
    pub fn key_text(&self) -> Option<&str> {
        std::str::from_utf8(self.key.as_deref()?).ok()
    }
}

impl Record {
    fn of(message: &BorrowedMessage<'_>) -> Self {
        Self {
            partition: message.partition(),
            offset: message.offset(),
            timestamp_ms: message.timestamp().to_millis().unwrap_or(-1),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: message.headers().map_or_else(Vec::new, |headers| {
                headers
                    .iter()
                    .map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec)))
                    .collect()
            }),
        }
    }
}

impl From<stack::Record> for Record {
    fn from(record: stack::Record) -> Self {
        let headers = record.headers.into_iter();
        Self {
            partition: record.partition,
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            key: record.key.map(String::into_bytes),
            value: record.value.map(String::into_bytes),
            headers: headers.map(|(name, value)| (name, Some(value.into_bytes()))).collect(),
        }
    }
}

/// The ends of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    pub partition: i32,
    /// The end for a read_committed reader: an open transaction hides everything after it.
    pub stable: i64,
    pub all: i64,
}

/// The ends of the topic's partitions now. This call blocks its thread.
///
/// # Errors
/// The topic does not exist or the broker does not answer.
pub fn ends(bootstrap_servers: &str, topic: &str) -> anyhow::Result<Vec<Ends>> {
    let reader = |isolation_level: &str| -> anyhow::Result<BaseConsumer> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", bootstrap_servers);
        Ok(config.set("isolation.level", isolation_level).create()?)
    };
    let (committed, all) = (reader("read_committed")?, reader("read_uncommitted")?);
    let metadata = all.fetch_metadata(Some(topic), REQUEST_DEADLINE)?;
    let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
    let ends = partitions.map(|partition| partition.id()).map(|partition| {
        Ok(Ends {
            partition,
            stable: committed.fetch_watermarks(topic, partition, REQUEST_DEADLINE)?.1,
            all: all.fetch_watermarks(topic, partition, REQUEST_DEADLINE)?.1,
        })
    });
    ends.collect()
}

/// All records of `topic`, from its beginning to the end that it has now for this isolation level. They come one partition after the other, each in
/// its order. This call blocks its thread.
///
/// # Errors
/// The topic does not exist or the broker does not answer.
pub fn read(bootstrap_servers: &str, topic: &str, isolation: Isolation) -> anyhow::Result<Vec<Record>> {
    let mut records = Vec::new();
    for_each(bootstrap_servers, topic, isolation, |record| records.push(record))?;
    // A consumer gets the records of different partitions mixed. The sort is stable, so each partition keeps its order.
    records.sort_by_key(|record| record.partition);
    Ok(records)
}

/// As [`read`], but one record at a time and with the partitions mixed, for topics that are too large for the memory. This call blocks its thread.
///
/// # Errors
/// As [`read`].
pub fn for_each(
    bootstrap_servers: &str,
    topic: &str,
    isolation: Isolation,
    see: impl FnMut(Record),
) -> anyhow::Result<()> {
    Follower::new(bootstrap_servers, topic, isolation, Duration::from_millis(10))?.read_to_end(see)
}

/// Reads a topic once, from its beginning, and goes on where it was when it is asked again.
pub struct Follower {
    consumer: BaseConsumer,
    topic: String,
    partitions: usize,
    /// The partitions at whose end it is.
    ended: HashSet<i32>,
}

impl Follower {
    /// `wait` is for how long the broker holds back its answer while there is nothing new. This call blocks its thread.
    ///
    /// # Errors
    /// As [`read`].
    pub fn new(bootstrap_servers: &str, topic: &str, isolation: Isolation, wait: Duration) -> anyhow::Result<Self> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap_servers)
            .set("group.id", "rig")
            .set(
                "isolation.level",
                match isolation {
                    Isolation::Committed => "read_committed",
                    Isolation::Uncommitted => "read_uncommitted",
                },
            )
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", wait.as_millis().to_string())
            .create()?;
        let metadata = consumer.fetch_metadata(Some(topic), REQUEST_DEADLINE)?;
        let partitions = metadata
            .topics()
            .iter()
            .find(|found| found.name() == topic && found.error().is_none())
            .with_context(|| format!("there is no topic {topic}"))?
            .partitions()
            .len();
        let mut assignment = TopicPartitionList::new();
        for partition in 0..i32::try_from(partitions)? {
            assignment.add_partition_offset(topic, partition, Offset::Beginning)?;
        }
        consumer.assign(&assignment)?;
        Ok(Self {
            consumer,
            topic: topic.to_owned(),
            partitions,
            ended: HashSet::new(),
        })
    }

    /// Reads what it has not read yet, until it is at the end of each partition. If it is there already, it waits [`FOLLOW_WAIT`] for more. This call
    /// blocks its thread.
    ///
    /// # Errors
    /// As [`read`].
    pub fn read_to_end(&mut self, mut see: impl FnMut(Record)) -> anyhow::Result<()> {
        let wait = if self.is_at_the_end() {
            FOLLOW_WAIT
        } else {
            Duration::ZERO
        };
        let began = Instant::now();
        let mut heard_at = began;
        while !self.is_at_the_end() || began.elapsed() < wait {
            if heard_at.elapsed() > SILENCE_MAX {
                bail!("the broker is silent before the end of {}", self.topic);
            }
            match self.consumer.poll(FOLLOW_WAIT) {
                Some(Ok(message)) => {
                    heard_at = Instant::now();
                    self.ended.remove(&message.partition());
                    see(Record::of(&message));
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    self.ended.insert(partition);
                }
                // One of several brokers is down. Another broker leads the partition, or will do so soon.
                Some(Err(KafkaError::MessageConsumption(
                    RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::AllBrokersDown,
                ))) => {}
                Some(Err(err)) => return Err(err).with_context(|| format!("cannot read {}", self.topic)),
                None => {}
            }
        }
        Ok(())
    }

    fn is_at_the_end(&self) -> bool {
        self.ended.len() == self.partitions
    }
}
