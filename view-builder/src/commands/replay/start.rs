//! Where a replay begins.

use std::collections::BTreeMap;

use anyhow::Context as _;
use rdkafka::consumer::Consumer;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::kafka::{Observer, REQUEST_TIMEOUT};
use crate::settings::replay_from::ReplayFrom;

/// The offsets of a partition that are read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReplayRange {
    /// Where the replay begins.
    pub(super) start: i64,
    /// One past the last record that a read_committed reader sees.
    pub(super) end: i64,
}

/// Finds the offsets to replay in each partition of the topic, or in the one partition that is given. Blocks.
///
/// # Errors
/// There is no such topic or partition; Kafka does not answer.
pub(super) fn find_ranges(
    consumer: &Observer,
    topic: &str,
    partition: Option<i32>,
    from: ReplayFrom,
) -> anyhow::Result<BTreeMap<i32, ReplayRange>> {
    let partitions = select_partitions(consumer, topic, partition)?;
    let mut times = TopicPartitionList::new();
    if let ReplayFrom::Time(ms) = from {
        for partition in &partitions {
            times.add_partition_offset(topic, *partition, Offset::Offset(ms))?;
        }
        times = consumer
            .offsets_for_times(times, REQUEST_TIMEOUT)
            .context("kafka does not tell the offsets of that time")?;
    }
    let mut ranges = BTreeMap::new();
    for partition in partitions {
        let (beginning, end) = consumer
            .fetch_watermarks(topic, partition, REQUEST_TIMEOUT)
            .with_context(|| format!("kafka does not tell where {topic}/{partition} begins and ends"))?;
        let start = match from {
            ReplayFrom::Earliest => beginning,
            ReplayFrom::Latest => end,
            ReplayFrom::Offset(offset) => offset.clamp(beginning, end),
            ReplayFrom::Time(_) => match times.find_partition(topic, partition).map(|found| found.offset()) {
                Some(Offset::Offset(offset)) => offset,
                _ => end,
            },
        };
        ranges.insert(partition, ReplayRange { start, end });
    }
    Ok(ranges)
}

/// All partitions of the topic, or the one that is given.
fn select_partitions(consumer: &Observer, topic: &str, partition: Option<i32>) -> anyhow::Result<Vec<i32>> {
    let metadata = consumer
        .fetch_metadata(Some(topic), REQUEST_TIMEOUT)
        .context("kafka does not answer (KAFKA_BOOTSTRAP_SERVERS)")?;
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    let found = found
        .filter(|found| found.error().is_none() && !found.partitions().is_empty())
        .with_context(|| format!("Topic '{topic}' does not exist"))?;
    let all: Vec<i32> = found.partitions().iter().map(|partition| partition.id()).collect();
    match partition {
        None => Ok(all),
        Some(one) if all.contains(&one) => Ok(vec![one]),
        Some(one) => anyhow::bail!("topic {topic} has no partition {one}: it has 0 to {}", all.len() - 1),
    }
}
