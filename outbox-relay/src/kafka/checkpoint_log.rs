//! Reading the checkpoint back. Blocks: call it on a thread of its own.

use std::time::{Duration, Instant};

use anyhow::Context;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use super::health::Quiet;
use super::settings::KafkaSettings;
use crate::checkpoint::Checkpoint;
use crate::stop::{RelayError, Stop};

/// The checkpoint's topic.
#[derive(Clone, Copy, Debug)]
pub struct CheckpointLog<'a> {
    pub settings: &'a KafkaSettings,
    pub topic: &'a str,
}

/// What the topic holds for one relay.
#[derive(Clone, Debug)]
pub struct Found {
    pub checkpoint: Checkpoint,
    pub offset: i64,
}

/// How much of the topic's end is read first: the last checkpoint of a relay that ran lately is there.
const TAIL_OFFSETS: i64 = 2_000;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for other relays' open transactions, which hide what was committed behind them; brokers allow 15 minutes by default.
const OPEN_TRANSACTIONS_MAX: Duration = Duration::from_secs(16 * 60);
const READ_STALL_MAX: Duration = Duration::from_secs(30);

impl CheckpointLog<'_> {
    /// The last committed checkpoint of `key`.
    ///
    /// To be called only after `init_transactions` of the relay's own id: before it, an earlier relay could still commit a later one.
    /// Several relays share the topic, and a read_committed reader sees nothing behind the first open transaction, whoever's it is.
    /// So the end that counts is the one that a read_uncommitted reader sees, and the read waits until the committed end is there.
    ///
    /// # Errors
    /// [`Stop::CheckpointGarbled`] for a record that cannot be read; anything else is worth another try.
    pub fn last(&self, key: &str, gives_up: &dyn Fn() -> bool) -> Result<Option<Found>, RelayError> {
        let reader: BaseConsumer<Quiet> = self.reader("read_committed")?;
        if !self.exists(&reader)? {
            return Ok(None);
        }
        let (low, end) = self
            .reader("read_uncommitted")?
            .fetch_watermarks(self.topic, 0, REQUEST_TIMEOUT)
            .context("cannot read the end of the checkpoint topic")?;
        self.wait_until_committed(&reader, end, gives_up)?;
        for start in [(end - TAIL_OFFSETS).max(low), low] {
            if let Some(found) = self.scan(&reader, key, start, end, gives_up)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn reader(&self, isolation_level: &str) -> Result<BaseConsumer<Quiet>, RelayError> {
        let reader = self
            .settings
            .reader(isolation_level)
            .create_with_context(Quiet)
            .map_err(|err| Stop::Config {
                what: format!("Kafka client: {err}"),
            })?;
        Ok(reader)
    }

    fn exists(&self, reader: &BaseConsumer<Quiet>) -> Result<bool, RelayError> {
        let metadata = reader
            .fetch_metadata(Some(self.topic), REQUEST_TIMEOUT)
            .context("cannot read the checkpoint topic's metadata")?;
        let Some(topic) = metadata.topics().iter().find(|topic| topic.name() == self.topic) else {
            return Ok(false);
        };
        match topic.error().map(RDKafkaErrorCode::from) {
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => Ok(false),
            Some(code) => Err(anyhow::anyhow!("checkpoint topic `{}`: {code}", self.topic).into()),
            None if topic.partitions().len() == 1 => Ok(true),
            None => Err(Stop::PartitionsChanged {
                topic: self.topic.to_owned(),
                expected: 1,
                found: i32::try_from(topic.partitions().len()).unwrap_or(i32::MAX),
            }
            .into()),
        }
    }

    fn wait_until_committed(
        &self,
        reader: &BaseConsumer<Quiet>,
        end: i64,
        gives_up: &dyn Fn() -> bool,
    ) -> Result<(), RelayError> {
        let started = Instant::now();
        let mut said = false;
        loop {
            let (_, committed_end) = reader
                .fetch_watermarks(self.topic, 0, REQUEST_TIMEOUT)
                .context("cannot read the end of the checkpoint topic")?;
            if committed_end >= end {
                return Ok(());
            }
            if started.elapsed() > OPEN_TRANSACTIONS_MAX || gives_up() {
                return Err(
                    anyhow::anyhow!("another producer's transaction on topic `{}` stays open", self.topic).into(),
                );
            }
            if !said && started.elapsed() > Duration::from_secs(1) {
                said = true;
                tracing::info!(
                    topic = self.topic,
                    "waiting for another relay's open transaction on the checkpoint topic"
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn scan(
        &self,
        reader: &BaseConsumer<Quiet>,
        key: &str,
        start: i64,
        end: i64,
        gives_up: &dyn Fn() -> bool,
    ) -> Result<Option<Found>, RelayError> {
        if start >= end {
            return Ok(None);
        }
        let mut assignment = TopicPartitionList::new();
        assignment
            .add_partition_offset(self.topic, 0, Offset::Offset(start))
            .context("invalid offset")?;
        reader.assign(&assignment).context("cannot read the checkpoint topic")?;
        let mut found = None;
        let mut moved_at = Instant::now();
        loop {
            match reader.poll(Duration::from_millis(100)) {
                // Control records hold the last offsets, so the end is what the broker says it is, never a count.
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(found),
                Some(Err(err)) => {
                    return Err(anyhow::Error::new(err)
                        .context("cannot read the checkpoint topic")
                        .into());
                }
                Some(Ok(message)) => {
                    moved_at = Instant::now();
                    if message.key() == Some(key.as_bytes()) {
                        found = self.parse(key, &message)?;
                    }
                }
                None if moved_at.elapsed() > READ_STALL_MAX || gives_up() => {
                    return Err(anyhow::anyhow!("the checkpoint topic gives nothing").into());
                }
                None => {}
            }
        }
    }

    /// A tombstone is how an operator deletes a checkpoint.
    fn parse(&self, key: &str, message: &impl Message) -> Result<Option<Found>, RelayError> {
        let Some(value) = message.payload() else {
            return Ok(None);
        };
        match Checkpoint::from_json(value) {
            Ok(checkpoint) => Ok(Some(Found {
                checkpoint,
                offset: message.offset(),
            })),
            Err(what) => Err(Stop::CheckpointGarbled {
                key: key.to_owned(),
                topic: self.topic.to_owned(),
                offset: message.offset(),
                what,
            }
            .into()),
        }
    }
}
