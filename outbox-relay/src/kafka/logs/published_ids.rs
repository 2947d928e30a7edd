//! Reads which events a topic has, and which it may have removed.

use std::collections::HashMap;
use std::ffi::CString;
use std::time::{Duration, Instant};

use anyhow::Context;
use events::Position;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use service::clock::now_us;

use super::planted;
use crate::continuity::comparison::{CLOCKS_DIFFER_MS, Memory};
use crate::continuity::event_ids::EventIds;
use crate::kafka::client::KafkaSettings;
use crate::kafka::client::ReaderContext;
use crate::kafka::topics::describe_topic;
use crate::kafka::topics::wait_until_committed;
use crate::process::stop::RelayError;
use kafka_client::{Next, TopicReader};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const READ_STALL_MAX: Duration = Duration::from_secs(30);
/// How many offsets at a partition's end are read if no record is young enough to matter. We need them because the last records have the highest positions.
const TAIL_OFFSETS: i64 = 1_000;

/// How a topic is cleaned: `cleanup.policy` and the settings that belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cleanup {
    /// Compaction removes no record that is younger than this, in milliseconds. `None`: the topic is not compacted.
    pub compaction_lag_ms: Option<i64>,
}

/// Asks the broker how `topic` is cleaned, by `DescribeConfigs`.
///
/// # Errors
/// Kafka does not answer or refuses.
pub async fn cleanup(settings: &KafkaSettings, topic: &str) -> anyhow::Result<Cleanup> {
    let config = describe_topic(settings, topic).await?;
    let value = |name: &str| config.get(name).and_then(|entry| entry.value.clone());
    let policy = value("cleanup.policy").context("the broker does not say cleanup.policy")?;
    // If the broker does not say it, or it is no number, any record may have been compacted.
    let lag_ms = value("min.compaction.lag.ms")
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    Ok(Cleanup {
        compaction_lag_ms: policy.split(',').any(|word| word.trim() == "compact").then_some(lag_ms),
    })
}

/// A topic to read, and how much of it.
#[derive(Clone, Debug)]
pub struct TopicToRead {
    pub topic: String,
    pub partitions: i32,
    pub cleanup: Cleanup,
    /// Records that are older than this moment, in milliseconds since 1970, need not be read. `None` reads the whole topic.
    pub since_ms: Option<i64>,
    /// Name of the header that carries a record's [`Position`].
    pub position_header: Option<String>,
}

/// What reading a topic showed.
#[derive(Clone, Debug, Default)]
pub struct TopicRead {
    pub records: u64,
    pub memory: Memory,
    /// The highest commit LSN in a position header, as readers see it.
    pub highest_position: Option<u64>,
}

/// Reads the committed records of a topic, and removes the ids that it finds from `absent`. Blocks.
///
/// It reads up to the end that a read_uncommitted reader sees when the read begins. So no open transaction, of this relay or of somebody else, can hide a
/// record.
///
/// # Errors
/// [`crate::process::stop::Stop::TransactionHangs`]; anything else is worth another try.
pub fn read_ids(
    settings: &KafkaSettings,
    to_read: &TopicToRead,
    absent: &mut EventIds,
    gives_up: &dyn Fn() -> bool,
) -> Result<TopicRead, RelayError> {
    let topic = to_read.topic.as_str();
    let (committed, uncommitted) = (
        settings.open_reader("read_committed")?,
        settings.open_reader("read_uncommitted")?,
    );
    let mut memory = Memory::default();
    let mut highest_position = None;
    let mut ends = HashMap::new();
    let mut starts = Vec::new();
    let position_header = to_read
        .position_header
        .as_deref()
        .and_then(|name| CString::new(name).ok());
    for partition in 0..to_read.partitions {
        let (low, end) = uncommitted
            .fetch_watermarks(topic, partition, REQUEST_TIMEOUT)
            .with_context(|| format!("cannot read the end of topic `{topic}`"))?;
        let mut start = low;
        if low < end {
            wait_until_committed(settings, &committed, topic, partition, end, gives_up)?;
            if let Some(since_ms) = to_read.since_ms {
                start = first_offset_since(&committed, topic, partition, since_ms)?
                    .unwrap_or(end - TAIL_OFFSETS)
                    .max(low);
            }
            ends.insert(partition, end);
            starts.push((partition, start));
        }
        // Retention removes a partition's beginning. If a record is still there that is older than those that matter, then retention removed none of these.
        if low > 0 && start == low {
            memory.removed_before_ms.insert(partition, i64::MAX);
        }
    }
    let mut records = 0;
    let reader = TopicReader::start(&committed, topic, &starts)?;
    let mut moved_at = Instant::now();
    while !ends.is_empty() {
        let next = reader.next(Duration::from_millis(100));
        match next.with_context(|| format!("cannot read topic `{topic}`"))? {
            // Transaction markers have offsets too, so only the broker can report that the end is reached. A broker that lags behind reports it too early.
            Next::End { partition, offset } => {
                let is_reached = ends.get(&partition).is_some_and(|end| offset >= *end);
                if is_reached || planted::believes_any_end() {
                    ends.remove(&partition);
                }
            }
            Next::Record(record) => {
                moved_at = Instant::now();
                let partition = record.partition();
                // A record behind the end is not compared.
                let Some(end) = ends.get(&partition).copied() else {
                    continue;
                };
                records += 1;
                // A record without a time does not say which records were removed before it, so any record may have been.
                let timestamp_ms = record.timestamp_ms().unwrap_or(i64::MAX);
                if let Some(first_ms) = memory
                    .removed_before_ms
                    .get_mut(&partition)
                    .filter(|ms| **ms == i64::MAX)
                {
                    *first_ms = timestamp_ms;
                }
                // A record without an id, or without a position of ours, is not from a relay.
                if let Some(id) = record.header(c"id").and_then(|id| std::str::from_utf8(id).ok()) {
                    absent.remove(id);
                }
                let position = position_header.as_ref().and_then(|name| record.header(name));
                let position = position.and_then(|text| std::str::from_utf8(text).ok()?.parse::<Position>().ok());
                highest_position = highest_position.max(position.map(|position| position.commit_lsn));
                let commit_ms = position.map(|position| position.commit_timestamp_us / 1_000);
                memory.newest_ms = memory.newest_ms.max(commit_ms);
                if record.offset() + 1 >= end {
                    ends.remove(&partition);
                }
            }
            Next::Nothing => {}
        }
        if moved_at.elapsed() >= READ_STALL_MAX {
            return Err(anyhow::anyhow!("topic `{topic}` gives nothing").into());
        }
        if gives_up() {
            return Err(anyhow::anyhow!("told to stop").into());
        }
    }
    // Computed after reading: a record may have become old enough while we read, and been removed before we reached it.
    memory.compacted_before_ms = to_read
        .cleanup
        .compaction_lag_ms
        .map(|lag_ms| now_us() / 1_000 - lag_ms + CLOCKS_DIFFER_MS);
    Ok(TopicRead {
        records,
        memory,
        highest_position,
    })
}

/// The offset of the partition's first record that is not older than `since_ms`. Every younger record stands behind it. `None`: all records are older.
fn first_offset_since(
    reader: &BaseConsumer<ReaderContext>,
    topic: &str,
    partition: i32,
    since_ms: i64,
) -> anyhow::Result<Option<i64>> {
    let mut times = TopicPartitionList::new();
    times
        .add_partition_offset(topic, partition, Offset::Offset(since_ms))
        .context("invalid time")?;
    let offsets = reader
        .offsets_for_times(times, REQUEST_TIMEOUT)
        .with_context(|| format!("cannot find the offset of a time in topic `{topic}`"))?;
    let answer = offsets
        .find_partition(topic, partition)
        .context("the broker told no offset of the time")?;
    answer.error().context("the broker told no offset of the time")?;
    match answer.offset() {
        Offset::Offset(offset) => Ok(Some(offset)),
        Offset::End => Ok(None),
        other => anyhow::bail!("the broker told {other:?} instead of the offset of a time"),
    }
}
