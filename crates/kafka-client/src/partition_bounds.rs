//! Where partitions begin and end, and which of them have no leader.
//!
//! Each partition has an answer of its own. A partition without a leader, or whose leader does not answer, does not affect the others.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Context;
use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};

use crate::admin_request::serve_events;
use crate::list_offsets::{Reader, list_offsets};

const METADATA_TIMEOUT: Duration = Duration::from_secs(5);

/// What Kafka tells of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartitionBounds {
    /// It has the offsets from `beginning` on. `end` is the offset that the next record will have.
    Known {
        beginning: i64,
        end: i64,
        /// The leader's epoch now. `None` if the cluster does not tell it.
        epoch: Option<i32>,
    },
    /// No broker leads it, since the brokers that have its records cannot be reached.
    NoLeader,
    /// Its leader does not answer, or is no leader any more.
    NoAnswer,
    /// The topic does not have it.
    NotThere,
}

/// Where these partitions begin, and where they end for this kind of reader. Blocks.
///
/// # Errors
/// No broker answers, or a topic may not be read.
pub fn bounds_by(
    client: &BaseConsumer<impl ConsumerContext>,
    partitions: &[(&str, i32)],
    reader: Reader,
) -> anyhow::Result<BTreeMap<(String, i32), PartitionBounds>> {
    let leaders = leaders_by(client, partitions.iter().map(|(topic, _)| *topic))?;
    let has_leader = |(topic, partition): &(&str, i32)| leaders.get(*topic)?.get(partition).copied();
    let mut asked: Vec<(&str, i32)> = partitions.to_vec();
    asked.retain(|place| has_leader(place) == Some(true));
    let beginnings = list_offsets(client, asked.iter().copied(), Offset::Beginning, reader)?;
    // A leader that has not answered is not asked again. So nobody waits for it twice.
    asked.retain(|(topic, partition)| matches!(beginnings.get(&((*topic).to_owned(), *partition)), Some(Ok(_))));
    let ends = list_offsets(client, asked, Offset::End, reader)?;
    let bounds = partitions.iter().map(|place| {
        let key = (place.0.to_owned(), place.1);
        let of_partition = match (has_leader(place), beginnings.get(&key), ends.get(&key)) {
            (None, ..) => PartitionBounds::NotThere,
            (Some(false), ..) => PartitionBounds::NoLeader,
            (Some(true), Some(Ok(beginning)), Some(Ok(end))) => PartitionBounds::Known {
                beginning: beginning.offset,
                end: end.offset,
                epoch: end.epoch,
            },
            (Some(true), ..) => PartitionBounds::NoAnswer,
        };
        (key, of_partition)
    });
    Ok(bounds.collect())
}

/// The partitions of these topics, and whether each has a leader. A topic that does not exist is left out. Blocks.
///
/// This also makes the client learn who leads them now. Without it, the client goes on asking the leader that it knows, even if that one cannot be
/// reached.
///
/// # Errors
/// No broker answers.
pub fn leaders_by<'t>(
    client: &BaseConsumer<impl ConsumerContext>,
    topics: impl IntoIterator<Item = &'t str>,
) -> anyhow::Result<BTreeMap<String, BTreeMap<i32, bool>>> {
    let topics: BTreeSet<&str> = topics.into_iter().collect();
    let mut leaders = BTreeMap::new();
    for name in topics {
        serve_events(client);
        let metadata = client
            .fetch_metadata(Some(name), METADATA_TIMEOUT)
            .with_context(|| format!("kafka does not tell the partitions of {name}"))?;
        let described = metadata.topics().iter().find(|topic| topic.name() == name);
        let partitions = described.map_or(&[][..], |topic| topic.partitions());
        if !partitions.is_empty() {
            let of_topic = partitions
                .iter()
                .map(|partition| (partition.id(), partition.leader() >= 0));
            leaders.insert(name.to_owned(), of_topic.collect());
        }
    }
    Ok(leaders)
}
