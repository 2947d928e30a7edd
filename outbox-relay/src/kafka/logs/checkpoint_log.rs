//! Reads the checkpoint back from its topic. Everything here blocks: call it on a thread of its own.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;

use super::checkpoint_reading::{Reading, StoredCheckpoint};
use super::planted;
use crate::continuity::checkpoint::Checkpoint;
use crate::kafka::client::ReaderContext;
use crate::kafka::client::ask;
use crate::kafka::client::{Delivery, KafkaSettings};
use crate::kafka::topics::{wait_until_committed, wait_until_nothing_is_open};
use crate::process::stop::{CHECKPOINT_PARTITIONS_CURE, RelayError, Stop};
use kafka_client::{Next, Record, TopicReader};
use kafka_client::{TopicFacts, facts_by};

/// The checkpoint's topic.
#[derive(Clone, Copy, Debug)]
pub struct CheckpointLog<'a> {
    pub settings: &'a KafkaSettings,
    pub topic: &'a str,
}

/// Where a pass over the topic begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFrom {
    /// Near the topic's end. If there is no record of the key, at the topic's beginning.
    TailFirst,
    Beginning,
}

/// How many offsets at the topic's end are read first. If a relay ran lately, its last checkpoint is there.
const TAIL_OFFSETS: i64 = 2_000;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const READ_STALL_MAX: Duration = Duration::from_secs(30);

/// Two readers: one sees only committed records, the other one sees all.
pub struct Readers(Option<(BaseConsumer<ReaderContext>, BaseConsumer<ReaderContext>)>);

impl Readers {
    /// What Kafka says about those topics of `names` that exist. Blocks.
    ///
    /// # Errors
    /// Kafka does not answer.
    pub fn topic_facts(
        &self,
        names: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> anyhow::Result<BTreeMap<String, TopicFacts>> {
        let (committed, _) = self.0.as_ref().context("the readers are closed")?;
        let names: Vec<String> = names.into_iter().map(|name| name.as_ref().to_owned()).collect();
        facts_by(committed, &names)
    }

    /// As [`crate::kafka::topics::wait_until_nothing_is_open`]. Blocks.
    ///
    /// # Errors
    /// [`Stop::TransactionHangs`]; anything else is worth another try.
    pub fn wait_until_nothing_is_open(
        &self,
        settings: &KafkaSettings,
        partitions: &BTreeMap<String, i32>,
        gives_up: &dyn Fn() -> bool,
    ) -> Result<(), RelayError> {
        let (committed, _) = self.0.as_ref().context("the readers are closed")?;
        wait_until_nothing_is_open(settings, committed, partitions, gives_up)
    }
}

impl Drop for Readers {
    /// A consumer takes a tenth of a second to close. Nobody has to wait for that, so a thread does it.
    fn drop(&mut self) {
        let readers = self.0.take();
        std::thread::spawn(move || drop(readers));
    }
}

impl CheckpointLog<'_> {
    /// The last committed checkpoint of `key`.
    ///
    /// To be called only after `init_transactions` of the relay's own id: before that, an earlier relay could still commit a later checkpoint.
    /// Several relays share the topic. A read_committed reader sees nothing behind the first open transaction, even if it is another relay's. So we take the
    /// end that a read_uncommitted reader sees, and wait until the read_committed reader sees up to that end.
    ///
    /// # Errors
    /// [`Stop::CheckpointGarbled`] for a record that cannot be read. [`Stop::CheckpointWentBack`] for a checkpoint that is older than an earlier record.
    /// Any other error is worth another try.
    pub fn last(
        &self,
        key: &str,
        delivery: Delivery,
        gives_up: &dyn Fn() -> bool,
    ) -> Result<Option<StoredCheckpoint>, RelayError> {
        self.last_with(&self.open()?, key, delivery, gives_up)
    }

    /// As [`CheckpointLog::last`], with readers that were opened before.
    ///
    /// # Errors
    /// As [`CheckpointLog::last`].
    pub fn last_with(
        &self,
        readers: &Readers,
        key: &str,
        delivery: Delivery,
        gives_up: &dyn Fn() -> bool,
    ) -> Result<Option<StoredCheckpoint>, RelayError> {
        Ok(self
            .read_with(readers, key, ReadFrom::TailFirst, gives_up)?
            .into_usable(delivery)?)
    }

    /// Opens and connects the readers. They have read nothing yet, so this may be done before or during fencing. It saves time, since connecting is slow.
    ///
    /// # Errors
    /// Worth another try.
    pub fn open(&self) -> Result<Readers, RelayError> {
        self.open_within(REQUEST_TIMEOUT)
    }

    /// As [`CheckpointLog::open`], for somebody who wants to know within `patience` whether Kafka answers.
    ///
    /// # Errors
    /// As [`CheckpointLog::open`].
    pub fn open_within(&self, patience: Duration) -> Result<Readers, RelayError> {
        let connected = |isolation_level: &str| -> Result<BaseConsumer<ReaderContext>, RelayError> {
            let reader = self.settings.open_reader(isolation_level)?;
            self.exists(&reader, patience)?;
            Ok(reader)
        };
        let (committed, uncommitted) = std::thread::scope(|scope| {
            let uncommitted = scope.spawn(|| connected("read_uncommitted"));
            (connected("read_committed"), uncommitted.join())
        });
        let uncommitted = uncommitted.map_err(|_| anyhow::anyhow!("a thread that opens a reader panicked"))?;
        Ok(Readers(Some((committed?, uncommitted?))))
    }

    /// As [`CheckpointLog::last`], but if the last record cannot be used, that is part of the result and no error.
    ///
    /// # Errors
    /// Worth another try.
    pub fn read(&self, key: &str, from: ReadFrom, gives_up: &dyn Fn() -> bool) -> Result<Reading, RelayError> {
        self.read_with(&self.open()?, key, from, gives_up)
    }

    /// The last checkpoint of `key` before the offset `end`. Behind it, a transaction may hide further ones.
    ///
    /// # Errors
    /// As [`CheckpointLog::last`].
    pub fn last_before(
        &self,
        readers: &Readers,
        key: &str,
        end: i64,
        gives_up: &dyn Fn() -> bool,
    ) -> Result<Option<StoredCheckpoint>, RelayError> {
        let (reader, uncommitted) = readers.0.as_ref().context("the readers are closed")?;
        let (low, _) = ask(uncommitted, REQUEST_TIMEOUT, |timeout| {
            uncommitted.fetch_watermarks(self.topic, 0, timeout)
        })
        .context("cannot read the end of the checkpoint topic")?;
        let reading = self.scan(reader, key, low, end, gives_up)?;
        Ok(reading.into_usable(Delivery::ExactlyOnce)?)
    }

    fn read_with(
        &self,
        readers: &Readers,
        key: &str,
        from: ReadFrom,
        gives_up: &dyn Fn() -> bool,
    ) -> Result<Reading, RelayError> {
        let (reader, uncommitted) = readers.0.as_ref().context("the readers are closed")?;
        if !self.exists(reader, REQUEST_TIMEOUT)? {
            return Ok(Reading::default());
        }
        let (low, end) = ask(uncommitted, REQUEST_TIMEOUT, |timeout| {
            uncommitted.fetch_watermarks(self.topic, 0, timeout)
        })
        .context("cannot read the end of the checkpoint topic")?;
        wait_until_committed(self.settings, reader, self.topic, 0, end, gives_up)?;
        if from == ReadFrom::TailFirst && end - TAIL_OFFSETS > low {
            let reading = self.scan(reader, key, end - TAIL_OFFSETS, end, gives_up)?;
            if reading.last.is_some() || reading.unusable.is_some() {
                return Ok(reading);
            }
        }
        self.scan(reader, key, low, end, gives_up)
    }

    /// The last checkpoint of each relay that shares the topic, as far as it can be read. Reads the whole topic.
    ///
    /// # Errors
    /// Worth another try.
    pub fn last_of_each_key(&self, gives_up: &dyn Fn() -> bool) -> Result<BTreeMap<String, Checkpoint>, RelayError> {
        let readers = self.open()?;
        let (reader, uncommitted) = readers.0.as_ref().context("the readers are closed")?;
        let mut checkpoints = BTreeMap::new();
        if !self.exists(reader, REQUEST_TIMEOUT)? {
            return Ok(checkpoints);
        }
        let (low, end) = ask(uncommitted, REQUEST_TIMEOUT, |timeout| {
            uncommitted.fetch_watermarks(self.topic, 0, timeout)
        })
        .context("cannot read the end of the checkpoint topic")?;
        wait_until_committed(self.settings, reader, self.topic, 0, end, gives_up)?;
        self.for_each_record(reader, low, end, gives_up, |record| {
            // A relay's key is text. A record with another key, or without a key, is not a relay's.
            let Some(Ok(key)) = record.key().map(std::str::from_utf8) else {
                return;
            };
            match record.value().map(Checkpoint::from_json) {
                Some(Ok(checkpoint)) => drop(checkpoints.insert(key.to_owned(), checkpoint)),
                // If a checkpoint cannot be read, only its own relay has to care.
                Some(Err(_)) => {}
                None => drop(checkpoints.remove(key)),
            }
        })?;
        Ok(checkpoints)
    }

    /// Hands the records from `start` to `end` to `on_record`, and maybe some behind `end`.
    fn for_each_record(
        &self,
        reader: &BaseConsumer<ReaderContext>,
        start: i64,
        end: i64,
        gives_up: &dyn Fn() -> bool,
        mut on_record: impl FnMut(&Record<'_>),
    ) -> Result<(), RelayError> {
        if start >= end {
            return Ok(());
        }
        let topic = TopicReader::start(reader, self.topic, &[(0, start)])?;
        let mut moved_at = Instant::now();
        loop {
            let next = topic.next(Duration::from_millis(100));
            match next.context("cannot read the checkpoint topic")? {
                // Transaction markers have offsets too, so counting records does not find the end: the broker has to report it. A broker that lags behind
                // reports the end too early, and then the records that it does not have yet would be left out.
                Next::End { offset, .. } if offset >= end || planted::believes_any_end() => {
                    return Ok(());
                }
                Next::End { offset, .. } => tracing::debug!(
                    topic = self.topic,
                    offset,
                    end,
                    "the broker's answer ends before the end that was asked for: waiting for the rest"
                ),
                Next::Record(record) => {
                    moved_at = Instant::now();
                    on_record(&record);
                }
                Next::Nothing => {}
            }
            if moved_at.elapsed() > READ_STALL_MAX || gives_up() {
                return Err(anyhow::anyhow!("the checkpoint topic gives nothing").into());
            }
        }
    }

    fn exists(&self, reader: &BaseConsumer<ReaderContext>, patience: Duration) -> Result<bool, RelayError> {
        let metadata = ask(reader, patience, |timeout| {
            reader.fetch_metadata(Some(self.topic), timeout)
        })
        .context("cannot read the checkpoint topic's metadata")?;
        let Some(topic) = metadata.topics().iter().find(|topic| topic.name() == self.topic) else {
            return Ok(false);
        };
        match topic.error().map(RDKafkaErrorCode::from) {
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => Ok(false),
            Some(code) => Err(anyhow::Error::new(code)
                .context(format!("checkpoint topic `{}`", self.topic))
                .into()),
            None if topic.partitions().len() == 1 => Ok(true),
            None => Err(Stop::PartitionsChanged {
                topic: self.topic.to_owned(),
                expected: 1,
                found: i32::try_from(topic.partitions().len()).context("too many partitions")?,
                cure: CHECKPOINT_PARTITIONS_CURE,
            }
            .into()),
        }
    }

    fn scan(
        &self,
        reader: &BaseConsumer<ReaderContext>,
        key: &str,
        start: i64,
        end: i64,
        gives_up: &dyn Fn() -> bool,
    ) -> Result<Reading, RelayError> {
        let mut reading = Reading::default();
        self.for_each_record(reader, start, end, gives_up, |record| {
            if record.key() == Some(key.as_bytes()) {
                let before = std::mem::take(&mut reading);
                reading = before.with_next_record(self.topic, key, record.offset(), record.value());
                if let Some(last) = reading.last.as_mut().filter(|last| last.offset == record.offset()) {
                    last.written_ms = record.timestamp_ms();
                }
            }
        })?;
        Ok(reading)
    }
}
