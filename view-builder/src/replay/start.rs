//! Where a replay begins.

use std::collections::BTreeMap;
use std::str::FromStr;

use anyhow::Context as _;
use rdkafka::consumer::Consumer;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::kafka::{Observer, REQUEST_TIMEOUT};

/// `earliest`, `latest`, an offset, or a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    Earliest,
    Latest,
    Offset(i64),
    /// Milliseconds since 1970: the first record that is not older.
    Time(i64),
}

impl FromStr for From {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let offset = text.parse::<i64>().ok().filter(|offset| *offset >= 0);
        let time = || {
            let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
            i64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok()
        };
        match text {
            "earliest" => Ok(Self::Earliest),
            "latest" => Ok(Self::Latest),
            _ => offset
                .map(Self::Offset)
                .or_else(|| time().map(Self::Time))
                .ok_or_else(|| {
                    "expected earliest, latest, an offset such as 1200, or a time such as 2026-11-25T08:00:00Z"
                        .to_owned()
                }),
        }
    }
}

/// First and last offset of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Where the replay begins.
    pub(super) start: i64,
    /// One past the last record that a read_committed reader sees.
    pub(super) end: i64,
}

/// Where `from` lies in each of the topic's partitions, or in that one. Blocks.
///
/// # Errors
/// There is no such topic or partition; Kafka does not answer.
pub(super) fn bounds(
    consumer: &Observer,
    topic: &str,
    partition: Option<i32>,
    from: From,
) -> anyhow::Result<BTreeMap<i32, Bounds>> {
    let partitions = partitions(consumer, topic, partition)?;
    let mut times = TopicPartitionList::new();
    if let From::Time(ms) = from {
        for partition in &partitions {
            times.add_partition_offset(topic, *partition, Offset::Offset(ms))?;
        }
        times = consumer
            .offsets_for_times(times, REQUEST_TIMEOUT)
            .context("kafka does not tell the offsets of that time")?;
    }
    let mut all = BTreeMap::new();
    for partition in partitions {
        let (beginning, end) = consumer
            .fetch_watermarks(topic, partition, REQUEST_TIMEOUT)
            .with_context(|| format!("kafka does not tell where {topic}/{partition} begins and ends"))?;
        let start = match from {
            From::Earliest => beginning,
            From::Latest => end,
            From::Offset(offset) => offset.clamp(beginning, end),
            From::Time(_) => match times.find_partition(topic, partition).map(|found| found.offset()) {
                Some(Offset::Offset(offset)) => offset,
                _ => end,
            },
        };
        all.insert(partition, Bounds { start, end });
    }
    Ok(all)
}

fn partitions(consumer: &Observer, topic: &str, partition: Option<i32>) -> anyhow::Result<Vec<i32>> {
    let metadata = consumer
        .fetch_metadata(Some(topic), REQUEST_TIMEOUT)
        .context("kafka does not answer (KAFKA_BOOTSTRAP_SERVERS)")?;
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    let all: Vec<i32> = found
        .filter(|found| found.error().is_none())
        .map(|found| found.partitions().iter().map(|partition| partition.id()).collect())
        .unwrap_or_default();
    anyhow::ensure!(!all.is_empty(), "Topic '{topic}' does not exist");
    match partition {
        None => Ok(all),
        Some(one) if all.contains(&one) => Ok(vec![one]),
        Some(one) => anyhow::bail!("topic {topic} has no partition {one}: it has 0 to {}", all.len() - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::From;

    #[test]
    fn a_start_is_a_word_an_offset_or_a_time() {
        assert_eq!("earliest".parse(), Ok(From::Earliest));
        assert_eq!("latest".parse(), Ok(From::Latest));
        assert_eq!("12".parse(), Ok(From::Offset(12)));
        assert_eq!("1970-01-01T09:00:01.5+09:00".parse(), Ok(From::Time(1_500)));
        for wrong in ["", "-1", "begin", "2026-11-25", "1.5"] {
            assert!(wrong.parse::<From>().is_err(), "{wrong}");
        }
    }
}
