//! What Kafka has of each partition from its position on.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use kafka_client::{PartitionBounds, Reader};
use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;

use super::postgres_look::Position;
use crate::continuity::offsets::{self, Untold};
use crate::contract::place::{self, TopicPartition};
use crate::contract::record;
use crate::kafka::{self, Observer};

/// How long to wait for the next events of all partitions. What has not come by then is told without its age.
const READ_MAX: Duration = Duration::from_millis(2_500);
/// How long one poll waits. Shorter than [`READ_MAX`], so that the limit is noticed in time.
const POLL_TIMEOUT: Duration = Duration::from_millis(100);

/// The first event that is not in the view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Oldest {
    /// The view has every event.
    None,
    /// When the source committed it, microseconds since 1970.
    CommittedUs(i64),
    /// Kafka did not send it in time.
    NotSent,
}

/// What Kafka has of a partition.
pub(super) enum Ahead {
    Exists {
        end: i64,
        oldest: Oldest,
    },
    /// The topic was made anew with fewer partitions, and this partition no longer exists. `partitions`: how many the topic has now.
    Gone {
        partitions: i32,
    },
    /// Kafka does not tell now.
    Untold(Untold),
}

impl Ahead {
    /// Why the partition's events are not read, for people. `None`: Kafka has the partition.
    pub(super) fn absence(&self, place: &TopicPartition) -> Option<String> {
        match self {
            Self::Exists { .. } => None,
            Self::Gone { partitions } => Some(format!(
                "{place} is {}; rows that only its events told of stay in the views (docs/lost-continuity.md)",
                offsets::gone(*partitions)
            )),
            Self::Untold(untold) => Some(format!("{place} {untold}")),
        }
    }
}

/// Asks Kafka what it has of each of these partitions. The answers are in the same order. Blocks.
///
/// # Errors
/// Kafka does not answer at all.
pub(super) fn look_ahead(observer: &Observer, positions: &[Position]) -> anyhow::Result<Vec<Ahead>> {
    let facts = kafka_client::facts_by(
        observer,
        &offsets::names(positions.iter().map(|position| &position.place)),
    )?;
    let bounds = offsets::bounds(
        observer,
        positions.iter().map(|position| &position.place),
        Reader::Committed,
    )?;
    let mut answers = Vec::new();
    // By topic and partition: the first offset that is not in the view.
    let mut behind: BTreeMap<&str, BTreeMap<i32, i64>> = BTreeMap::new();
    for position in positions {
        let place = &position.place;
        let answer = if !facts.contains_key(&*place.topic) {
            Ahead::Untold(Untold::NoTopic)
        } else if let Ok(Some(partitions)) = offsets::partitions_without(place, &position.ids, &facts) {
            Ahead::Gone { partitions }
        } else {
            match bounds.get(place) {
                Some(PartitionBounds::Known { beginning, end, .. }) => {
                    if position.applied_up_to < *end {
                        let topic = behind.entry(&place.topic).or_default();
                        topic.insert(place.partition, position.applied_up_to.max(*beginning));
                    }
                    Ahead::Exists {
                        end: *end,
                        oldest: Oldest::None,
                    }
                }
                Some(PartitionBounds::NoLeader) => Ahead::Untold(Untold::NoLeader),
                Some(PartitionBounds::NoAnswer | PartitionBounds::NotThere) | None => Ahead::Untold(Untold::NoAnswer),
            }
        };
        answers.push(answer);
    }
    let give_up_at = Instant::now() + READ_MAX;
    let mut oldest = HashMap::new();
    let topics = u32::try_from(behind.len()).unwrap_or(u32::MAX);
    for (topics_left, (topic, next_offsets)) in (1..=topics).rev().zip(behind) {
        // A topic that is slow leaves their share of the time to those behind it.
        let give_up_at = Instant::now() + give_up_at.saturating_duration_since(Instant::now()) / topics_left;
        oldest.extend(read_oldest(observer, topic, next_offsets, give_up_at)?);
    }
    for (position, answer) in positions.iter().zip(&mut answers) {
        if let Ahead::Exists { oldest: of_this, .. } = answer {
            *of_this = oldest.remove(&position.place).unwrap_or(Oldest::None);
        }
    }
    Ok(answers)
}

/// Reads the first event at or after each of these offsets, until `give_up_at`. A partition that has only transaction markers there is left out.
fn read_oldest(
    observer: &Observer,
    topic: &str,
    mut next_offsets: BTreeMap<i32, i64>,
    give_up_at: Instant,
) -> anyhow::Result<HashMap<TopicPartition, Oldest>> {
    let places = next_offsets
        .iter()
        .map(|(partition, next)| (place::place(topic, *partition), *next));
    let places: Vec<(TopicPartition, i64)> = places.collect();
    observer.assign(&kafka::partition_list(
        places.iter().map(|(place, next)| (place, *next)),
    )?)?;
    let mut oldest = HashMap::new();
    while !next_offsets.is_empty() && Instant::now() < give_up_at {
        match observer.poll(POLL_TIMEOUT) {
            None => {}
            Some(Ok(record)) => {
                if let Some(next) = next_offsets.remove(&record.partition()) {
                    let place = place::place(topic, record.partition());
                    // The later records of this partition are not needed.
                    observer.pause(&kafka::partition_list([(&place, next)].into_iter())?)?;
                    oldest.insert(place, Oldest::CommittedUs(record::committed_us(&record)));
                }
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                next_offsets.remove(&partition);
            }
            Some(Err(err)) => return Err(err).context("kafka reports an error"),
        }
    }
    observer.unassign()?;
    let not_sent = next_offsets.into_keys();
    oldest.extend(not_sent.map(|partition| (place::place(topic, partition), Oldest::NotSent)));
    Ok(oldest)
}
