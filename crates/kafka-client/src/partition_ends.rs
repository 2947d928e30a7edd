//! Where partitions end: for a reader of committed records, and for a reader of all records.

use std::collections::BTreeMap;

use anyhow::bail;
use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::RDKafkaErrorCode;

use crate::list_offsets::{Reader, list_offsets};

/// Where a partition ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ends {
    pub topic: String,
    pub partition: i32,
    /// The last stable offset. If it is below `all`, an open transaction begins here and hides the records behind it.
    pub stable: i64,
    /// The high watermark.
    pub all: i64,
}

/// Both ends of each of these partitions. A partition that has no leader, or whose leader does not answer, is left out. Blocks.
///
/// # Errors
/// Kafka does not answer, or refuses; a partition does not exist.
pub fn ends_by<'p>(
    client: &BaseConsumer<impl ConsumerContext>,
    partitions: impl IntoIterator<Item = (&'p str, i32)> + Clone,
) -> anyhow::Result<Vec<Ends>> {
    // The stable end is asked for first. Ends only move forward, so `stable` is never above `all`. Records that are committed between the two
    // requests look hidden until the next call.
    let stable = ends(client, partitions.clone(), Reader::Committed)?;
    let all = ends(client, partitions, Reader::All)?;
    let both = stable.into_iter().filter_map(|(place, stable)| {
        let all = *all.get(&place)?;
        let (topic, partition) = place;
        Some(Ends {
            topic,
            partition,
            stable,
            all,
        })
    });
    Ok(both.collect())
}

/// The ends for this kind of reader, of the partitions that have an answer.
fn ends<'p>(
    client: &BaseConsumer<impl ConsumerContext>,
    partitions: impl IntoIterator<Item = (&'p str, i32)>,
    reader: Reader,
) -> anyhow::Result<BTreeMap<(String, i32), i64>> {
    let mut ends = BTreeMap::new();
    for ((topic, partition), told) in list_offsets(client, partitions, Offset::End, reader)? {
        match told {
            Ok(end) => {
                ends.insert((topic, partition), end.offset);
            }
            Err(
                code @ (RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownPartition),
            ) => bail!("partition {partition} of topic `{topic}`: {code}"),
            // The partition has no leader at the moment, or a new one, or its leader does not answer.
            Err(_) => {}
        }
    }
    Ok(ends)
}
