//! What Kafka has of the partitions beyond their positions.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use kafka_client::{PartitionBounds, Reader};
use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;

use super::Position;
use crate::continuity::offsets::{self, Untold};
use crate::contract::place::{self, TopicPartition};
use crate::contract::record;
use crate::kafka::{self, Observer};

/// How long Kafka is asked for the events that come next.
const READ_MAX: Duration = Duration::from_secs(10);
/// How long one poll waits. Shorter than [`READ_MAX`], so that the limit is noticed in time.
const POLL_TIMEOUT: Duration = Duration::from_millis(200);

/// What Kafka has of a partition.
pub(super) enum Ahead {
    There {
        end: i64,
        /// When the source committed the first event that is not in the view, microseconds since 1970; none where there is none.
        oldest_us: Option<i64>,
    },
    /// The topic was made anew with so many partitions, and this one is none of them.
    Gone { partitions: i32 },
    /// Kafka does not tell now.
    Untold(Untold),
}

impl Ahead {
    /// What stands in the column of the ends.
    pub(super) fn end(&self) -> String {
        match self {
            Self::There { end, .. } => end.to_string(),
            Self::Gone { .. } => "gone".to_owned(),
            Self::Untold(_) => "?".to_owned(),
        }
    }

    /// What somebody has to know of a partition that is not there now.
    pub(super) fn line(&self, place: &TopicPartition) -> Option<String> {
        match self {
            Self::There { .. } => None,
            Self::Gone { partitions } => Some(format!(
                "{place} is {}; rows that only its events told of stay in the views (docs/lost-continuity.md)",
                offsets::gone(*partitions)
            )),
            Self::Untold(untold) => Some(format!("{place} {untold}")),
        }
    }
}

/// What Kafka has of each of these partitions, in their order. Blocks.
///
/// # Errors
/// Kafka does not answer at all.
pub(super) fn ahead(observer: &Observer, positions: &[Position]) -> anyhow::Result<Vec<Ahead>> {
    let facts = kafka_client::facts_by(
        observer,
        &offsets::names(positions.iter().map(|position| &position.place)),
    )?;
    let bounds = offsets::bounds(
        observer,
        positions.iter().map(|position| &position.place),
        Reader::Committed,
    )?;
    let mut all = Vec::new();
    let mut behind: BTreeMap<&str, BTreeMap<i32, i64>> = BTreeMap::new();
    for position in positions {
        let place = &position.place;
        let told = if !facts.contains_key(&*place.topic) {
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
                    Ahead::There {
                        end: *end,
                        oldest_us: None,
                    }
                }
                Some(PartitionBounds::NoLeader) => Ahead::Untold(Untold::NoLeader),
                Some(PartitionBounds::NoAnswer | PartitionBounds::NotThere) | None => Ahead::Untold(Untold::NoAnswer),
            }
        };
        all.push(told);
    }
    let mut oldest = HashMap::new();
    for (topic, nexts) in behind {
        oldest.extend(oldest_us(observer, topic, nexts)?);
    }
    for (position, ahead) in positions.iter().zip(&mut all) {
        if let Ahead::There { oldest_us, .. } = ahead {
            *oldest_us = oldest.remove(&position.place);
        }
    }
    Ok(all)
}

/// When the first event from each of these offsets on was committed; none of a partition with nothing but transaction markers there.
fn oldest_us(
    observer: &Observer,
    topic: &str,
    mut nexts: BTreeMap<i32, i64>,
) -> anyhow::Result<HashMap<TopicPartition, i64>> {
    let places = nexts
        .iter()
        .map(|(partition, next)| (place::place(topic, *partition), *next));
    let places: Vec<(TopicPartition, i64)> = places.collect();
    observer.assign(&kafka::list(places.iter().map(|(place, next)| (place, *next)))?)?;
    let (mut oldest, start) = (HashMap::new(), Instant::now());
    while !nexts.is_empty() {
        ensure!(
            start.elapsed() < READ_MAX,
            "kafka does not send the events that come next in {topic}"
        );
        match observer.poll(POLL_TIMEOUT) {
            None => {}
            Some(Ok(found)) => {
                if let Some(next) = nexts.remove(&found.partition()) {
                    let place = place::place(topic, found.partition());
                    // What follows is of no interest.
                    observer.pause(&kafka::list([(&place, next)].into_iter())?)?;
                    oldest.insert(place, record::committed_us(&found));
                }
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                nexts.remove(&partition);
            }
            Some(Err(err)) => return Err(err).context("kafka reports an error"),
        }
    }
    observer.unassign()?;
    Ok(oldest)
}
