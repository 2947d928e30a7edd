//! What Kafka tells of partitions at one moment: where they begin and end, the topics' ids, the group's offsets.
//!
//! Each partition is answered for by itself. One that Kafka does not tell of now is named with the reason, and keeps nobody from the others.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use anyhow::{Context as _, ensure};
use kafka_client::{PartitionBounds, Reader, TopicFacts};
use rdkafka::consumer::Consumer;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::continuity::topic_ids::{Topic, TopicIds};
use crate::contract::place::TopicPartition;
use crate::contract::place::place;
use crate::kafka::{Observer, REQUEST_TIMEOUT};
use crate::process::faults::{self, Bug};

/// What Kafka tells of a partition.
#[derive(Clone, Debug)]
pub struct Bounds {
    pub beginning: i64,
    pub end: i64,
    pub group: Option<i64>,
    /// The epoch in which the leader leads; none where the cluster does not tell.
    pub epoch: Option<i32>,
    /// None where the cluster has no ids.
    pub topic_id: Option<String>,
}

/// Why Kafka does not tell where a partition begins and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Untold {
    NoLeader,
    NoAnswer,
    /// The topic has so many partitions, and this one is none of them.
    NoPartition {
        partitions: i32,
    },
    NoTopic,
}

impl Untold {
    /// The reason as the metrics name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoLeader => "no_leader",
            Self::NoAnswer => "no_answer",
            Self::NoPartition { .. } | Self::NoTopic => "not_there",
        }
    }
}

impl fmt::Display for Untold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLeader => write!(f, "has no leader in kafka: the brokers that have its events are away"),
            Self::NoAnswer => write!(f, "has a leader in kafka that does not answer"),
            Self::NoPartition { partitions } => {
                write!(f, "is not there in kafka: the topic has {partitions} partitions now")
            }
            Self::NoTopic => write!(f, "is not there in kafka: there is no such topic"),
        }
    }
}

/// What Kafka tells of partitions at one moment.
#[derive(Clone, Debug, Default)]
pub struct Offsets(HashMap<TopicPartition, Result<Bounds, Untold>>);

impl Offsets {
    /// # Errors
    /// Kafka does not tell now.
    pub fn at(&self, place: &TopicPartition) -> Result<&Bounds, Untold> {
        match self.0.get(place) {
            Some(told) => told.as_ref().map_err(|untold| *untold),
            None => Err(Untold::NoAnswer),
        }
    }

    /// Whether another answer within moments may tell more: a leader has just changed, for example.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.0.values().any(|told| matches!(told, Err(Untold::NoAnswer)))
    }
}

/// Asks where these partitions begin and end, for the topics' ids and the group's offsets. Blocks.
///
/// # Errors
/// Kafka does not answer at all, or a topic was made anew meanwhile.
pub fn offsets(observer: &Observer, places: &[TopicPartition]) -> anyhow::Result<Offsets> {
    let names = names(places.iter());
    let mut asked = TopicPartitionList::new();
    for place in places {
        asked.add_partition(&place.topic, place.partition);
    }
    // Before and after: what is asked in between is of the topic with that id.
    let before = kafka_client::facts_by(observer, &names)?;
    let committed = observer.committed_offsets(asked, REQUEST_TIMEOUT)?;
    let bounds = bounds(observer, places, Reader::Committed)?;
    let told = places.iter().map(|place| {
        let group = committed
            .find_partition(&place.topic, place.partition)
            .and_then(|element| match element.offset() {
                Offset::Offset(offset) => Some(offset),
                _ => None,
            });
        (
            place.clone(),
            told(place, before.get(&*place.topic), bounds.get(place).copied(), group),
        )
    });
    let told = told.collect();
    let after = kafka_client::facts_by(observer, &names)?;
    let is_same = |name: &String| {
        before.get(name).and_then(|facts| facts.id.as_ref()) == after.get(name).and_then(|facts| facts.id.as_ref())
    };
    ensure!(names.iter().all(is_same), "a topic was made anew meanwhile");
    Ok(Offsets(told))
}

fn told(
    place: &TopicPartition,
    facts: Option<&TopicFacts>,
    bounds: Option<PartitionBounds>,
    group: Option<i64>,
) -> Result<Bounds, Untold> {
    let facts = facts.ok_or(Untold::NoTopic)?;
    if place.partition >= facts.partitions {
        let partitions = facts.partitions;
        return Err(Untold::NoPartition { partitions });
    }
    match bounds {
        Some(PartitionBounds::Known { beginning, end, epoch }) => Ok(Bounds {
            beginning,
            end,
            group,
            epoch,
            topic_id: facts.id.clone(),
        }),
        Some(PartitionBounds::NoLeader) => Err(Untold::NoLeader),
        // The topic has it by another answer, so this one is of a broker that lags behind.
        Some(PartitionBounds::NoAnswer | PartitionBounds::NotThere) | None => Err(Untold::NoAnswer),
    }
}

/// Where these partitions begin and end for such a reader. Blocks.
///
/// # Errors
/// Kafka does not answer at all.
pub(crate) fn bounds<'p>(
    observer: &Observer,
    places: impl IntoIterator<Item = &'p TopicPartition>,
    reader: Reader,
) -> anyhow::Result<BTreeMap<TopicPartition, PartitionBounds>> {
    let asked: Vec<(&str, i32)> = places
        .into_iter()
        .map(|place| (&*place.topic, place.partition))
        .collect();
    let told = kafka_client::bounds_by(observer, &asked, reader)?;
    let told = told
        .into_iter()
        .map(|((topic, partition), told)| (place(&topic, partition), told));
    Ok(told.collect())
}

/// Beginning and end of this partition, of those that were asked for.
///
/// # Errors
/// Kafka does not tell them now.
pub(crate) fn known(
    bounds: &BTreeMap<TopicPartition, PartitionBounds>,
    place: &TopicPartition,
) -> anyhow::Result<(i64, i64)> {
    let untold = match bounds.get(place) {
        Some(PartitionBounds::Known { beginning, end, .. }) => return Ok((*beginning, *end)),
        Some(PartitionBounds::NoLeader) => Untold::NoLeader,
        Some(PartitionBounds::NotThere) => Untold::NoTopic,
        Some(PartitionBounds::NoAnswer) | None => Untold::NoAnswer,
    };
    Err(anyhow::anyhow!("{place} {untold}"))
}

pub(crate) fn names<'p>(places: impl Iterator<Item = &'p TopicPartition>) -> Vec<String> {
    let names: HashSet<&str> = places.map(|place| &*place.topic).collect();
    names.into_iter().map(str::to_owned).collect()
}

/// Whether the partition of a position is gone: the topic was made anew with fewer partitions. Says how many it has now.
///
/// # Errors
/// Kafka tells of fewer partitions, of a topic that is not newer than the position: a broker lags behind.
pub(crate) fn partitions_without(
    place: &TopicPartition,
    ids: &TopicIds,
    facts: &BTreeMap<String, TopicFacts>,
) -> anyhow::Result<Option<i32>> {
    let facts = facts
        .get(&*place.topic)
        .with_context(|| format!("there is no topic {} in kafka", place.topic))?;
    if place.partition < facts.partitions || keeps_gone_partitions() {
        return Ok(None);
    }
    let told = facts.id.as_deref();
    let is_newer = ids.compare(told) == Topic::MadeAnew || ids.now.is_none() || told.is_none();
    ensure!(
        is_newer,
        "kafka tells of {} partitions of {}, and the views have events of {place}: a broker lags behind",
        facts.partitions,
        place.topic
    );
    Ok(Some(facts.partitions))
}

/// True only where that bug is planted.
fn keeps_gone_partitions() -> bool {
    faults::is_planted(Bug::KeepGonePartitions)
}

/// A partition that is gone, in words.
#[must_use]
pub(crate) fn gone(partitions: i32) -> String {
    format!("gone: the topic has {partitions} partitions now")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kafka_client::{PartitionBounds, TopicFacts};

    use super::{Untold, partitions_without, told};
    use crate::continuity::topic_ids::TopicIds;
    use crate::contract::place::place;

    fn facts(id: Option<&str>) -> TopicFacts {
        TopicFacts {
            id: id.map(str::to_owned),
            partitions: 4,
            replicas: 1,
        }
    }

    #[test]
    fn each_partition_is_told_of_or_the_reason_why_not() {
        let known = Some(PartitionBounds::Known {
            beginning: 3,
            end: 9,
            epoch: None,
        });
        let of = |partition, facts: Option<&TopicFacts>, bounds| {
            told(&place("user-events", partition), facts, bounds, None).map(|bounds| (bounds.beginning, bounds.end))
        };
        let facts = facts(Some("a"));
        assert_eq!(of(3, Some(&facts), known), Ok((3, 9)));
        assert_eq!(
            of(3, Some(&facts), Some(PartitionBounds::NoLeader)),
            Err(Untold::NoLeader)
        );
        assert_eq!(
            of(3, Some(&facts), Some(PartitionBounds::NotThere)),
            Err(Untold::NoAnswer)
        );
        assert_eq!(of(4, Some(&facts), known), Err(Untold::NoPartition { partitions: 4 }));
        assert_eq!(of(3, None, known), Err(Untold::NoTopic));
    }

    #[test]
    fn a_partition_is_gone_where_a_newer_topic_does_not_have_it_and_not_where_a_broker_lags_behind() {
        let ids = TopicIds {
            now: Some("b".to_owned()),
            former: vec!["a".to_owned()],
        };
        let of = |partition, id, ids: &TopicIds| {
            let facts = BTreeMap::from([("user-events".to_owned(), facts(id))]);
            partitions_without(&place("user-events", partition), ids, &facts).ok()
        };
        assert_eq!(of(3, Some("b"), &ids), Some(None));
        assert_eq!(of(4, Some("c"), &ids), Some(Some(4)));
        assert_eq!(of(4, None, &ids), Some(Some(4)));
        assert_eq!(of(4, Some("c"), &TopicIds::default()), Some(Some(4)));
        assert_eq!(of(4, Some("b"), &ids), None);
        assert_eq!(of(4, Some("a"), &ids), None);
    }
}
