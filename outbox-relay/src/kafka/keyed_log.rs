//! Reading a compacted topic of one partition, in which several relays keep records under keys that begin with their name.

use std::time::{Duration, Instant};

use anyhow::Context;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use super::health::Quiet;
use super::refusal::ask;
use super::settings::KafkaSettings;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for other relays' open transactions, which hide what was committed behind them; brokers allow 15 minutes by default.
const OPEN_TRANSACTIONS_MAX: Duration = Duration::from_secs(16 * 60);
const READ_STALL_MAX: Duration = Duration::from_secs(30);
/// How often the end has to be met anew before it counts although compaction has removed the record before it.
const EMPTY_ENDS: u32 = 3;

/// A compacted topic of one partition.
#[derive(Clone, Copy, Debug)]
pub struct KeyedLog<'a> {
    pub settings: &'a KafkaSettings,
    pub topic: &'a str,
}

/// Takes the key and the value of a record.
pub(crate) type EachRecord<'e> = dyn FnMut(&str, Option<&[u8]>) -> anyhow::Result<()> + 'e;

impl KeyedLog<'_> {
    /// Shows `each` the committed records whose key begins with `prefix`, in their order: key and value, none for a tombstone. The topic must exist.
    ///
    /// The end that counts is the one that a read_uncommitted reader sees when the read begins: nobody's open transaction can hide a record. What
    /// is ours is all there where it is called after fencing. Blocks.
    ///
    /// # Errors
    /// Worth another try, or what `each` says.
    pub fn read(&self, prefix: &str, gives_up: &dyn Fn() -> bool, each: &mut EachRecord<'_>) -> anyhow::Result<()> {
        let committed = self.open("read_committed")?;
        let uncommitted = self.open("read_uncommitted")?;
        let (low, end) = self.watermarks(&uncommitted)?;
        self.wait_until_committed(&committed, end, gives_up)?;
        if low >= end {
            return Ok(());
        }
        self.assign(&committed, low)?;
        let mut next = low;
        let mut empty_ends = 0;
        let mut moved_at = Instant::now();
        loop {
            match committed.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => {
                    moved_at = Instant::now();
                    empty_ends = 0;
                    next = message.offset() + 1;
                    let key = message.key().and_then(|key| std::str::from_utf8(key).ok());
                    if let Some(key) = key.filter(|key| key.starts_with(prefix)) {
                        each(key, message.payload())?;
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) => {
                    // Transaction markers count for the position, though no application sees them.
                    let reached = self.position(&committed)?.unwrap_or(next).max(next);
                    if reached >= end {
                        return Ok(());
                    }
                    // Another broker may have answered that does not know of the end yet; or compaction has emptied what is left.
                    let (_, committed_end) = self.watermarks(&committed)?;
                    empty_ends = if committed_end >= end { empty_ends + 1 } else { 0 };
                    if empty_ends >= EMPTY_ENDS {
                        return Ok(());
                    }
                    self.assign(&committed, reached)?;
                }
                Some(Err(err)) => return Err(anyhow::Error::new(err).context(self.cannot("read"))),
                None => {}
            }
            anyhow::ensure!(!gives_up(), "told to stop");
            anyhow::ensure!(
                moved_at.elapsed() < READ_STALL_MAX,
                "topic `{}` gives nothing",
                self.topic
            );
        }
    }

    fn open(&self, isolation_level: &str) -> anyhow::Result<BaseConsumer<Quiet>> {
        Ok(self.settings.open_reader(isolation_level)?)
    }

    fn assign(&self, reader: &BaseConsumer<Quiet>, offset: i64) -> anyhow::Result<()> {
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(self.topic, 0, Offset::Offset(offset))?;
        reader.assign(&assignment).with_context(|| self.cannot("read"))
    }

    fn position(&self, reader: &BaseConsumer<Quiet>) -> anyhow::Result<Option<i64>> {
        let position = reader.position().with_context(|| self.cannot("read"))?;
        let found = position
            .find_partition(self.topic, 0)
            .map(|partition| partition.offset());
        Ok(match found {
            Some(Offset::Offset(offset)) => Some(offset),
            _ => None,
        })
    }

    fn watermarks(&self, reader: &BaseConsumer<Quiet>) -> anyhow::Result<(i64, i64)> {
        ask(reader, REQUEST_TIMEOUT, |timeout| {
            reader.fetch_watermarks(self.topic, 0, timeout)
        })
        .with_context(|| self.cannot("read the end of"))
    }

    fn wait_until_committed(
        &self,
        reader: &BaseConsumer<Quiet>,
        end: i64,
        gives_up: &dyn Fn() -> bool,
    ) -> anyhow::Result<()> {
        let started = Instant::now();
        while self.watermarks(reader)?.1 < end {
            anyhow::ensure!(!gives_up(), "told to stop");
            anyhow::ensure!(
                started.elapsed() < OPEN_TRANSACTIONS_MAX,
                "another producer's transaction on topic `{}` stays open",
                self.topic
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn cannot(&self, what: &str) -> String {
        format!("cannot {what} topic `{}`", self.topic)
    }
}
