//! Where partitions end, for those who read what is committed and for those who read all.

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
    /// The last stable offset: an open transaction that begins here hides what lies behind.
    pub stable: i64,
    /// The high watermark.
    pub all: i64,
}

/// The ends of these partitions, where both could be learned: one that has no leader, or whose leader does not answer, is left out. Blocks.
///
/// # Errors
/// Kafka does not answer, or refuses; a partition does not exist.
pub fn ends_by<'p>(
    client: &BaseConsumer<impl ConsumerContext>,
    partitions: impl IntoIterator<Item = (&'p str, i32)> + Clone,
) -> anyhow::Result<Vec<Ends>> {
    // What is stable is asked for first: between the two it only moves on, so that nothing looks hidden that is not.
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

/// The ends that could be learned.
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
            // It has no leader just now, or has just got one, or that does not answer.
            Err(_) => {}
        }
    }
    Ok(ends)
}
