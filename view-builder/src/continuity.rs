//! Asking Kafka, from time to time, whether the topics and their ends are still those that the positions are of.
//!
//! A consumer that waits at a topic's end is not told that the topic was made anew, or has lost its end: to it, nothing comes. So a client of
//! its own asks, on a thread of its own. What it finds makes the builder join its group again: the takeover looks once more, and decides.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures_util::FutureExt as _;
use kafka_client::TopicFacts;
use rdkafka::consumer::Consumer;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::task::JoinHandle;

use crate::assignment::Position;
use crate::batch::TopicPartition;
use crate::beginning::Paused;
use crate::claim::Claim;
use crate::faults::{self, Bug};
use crate::kafka::{Observer, REQUEST_TIMEOUT};
use crate::start::{Known, Topic, TopicIds};
use crate::takeover;

/// How often Kafka is asked.
const INTERVAL: Duration = Duration::from_secs(10);
/// A leader that was just elected may tell an end that is too low, for a moment: so often in a row it has to be told.
const LOW_ENDS_MIN: u32 = 2;

/// What Kafka tells of a partition.
#[derive(Clone, Debug)]
pub struct Bounds {
    pub beginning: i64,
    pub end: i64,
    pub group: Option<i64>,
    /// None where the cluster has no ids.
    pub topic_id: Option<String>,
}

impl Bounds {
    /// What is known of the claimed partition.
    #[must_use]
    pub fn known(&self, claim: &Claim) -> Known {
        Known {
            topic: claim.ids.compare(self.topic_id.as_deref()),
            position: claim.next_offset,
            group_recorded: claim.group_offset,
            group: self.group,
            beginning: self.beginning,
            end: self.end,
        }
    }
}

/// What Kafka tells of partitions at one moment.
#[derive(Clone, Debug, Default)]
pub struct Offsets(HashMap<TopicPartition, Bounds>);

impl Offsets {
    #[must_use]
    pub fn get(&self, claim: &Claim) -> Option<Bounds> {
        self.0.get(&claim.place).cloned()
    }

    #[must_use]
    pub fn at(&self, place: &TopicPartition) -> Option<&Bounds> {
        self.0.get(place)
    }
}

/// Asks where these partitions begin and end, for the topics' ids and the group's offsets. Blocks.
///
/// # Errors
/// Kafka does not answer, has no such topic, or the topic was made anew meanwhile.
pub fn offsets(observer: &Observer, places: &[TopicPartition]) -> anyhow::Result<Offsets> {
    let names = names(places.iter());
    let mut asked = TopicPartitionList::new();
    for place in places {
        asked.add_partition(&place.topic, place.partition);
    }
    // Before and after: what is asked in between is of the topic with that id.
    let before = kafka_client::facts_by(observer, &names)?;
    let committed = observer.committed_offsets(asked, REQUEST_TIMEOUT)?;
    let mut offsets = HashMap::new();
    for place in places {
        let (beginning, end) = observer.fetch_watermarks(&place.topic, place.partition, REQUEST_TIMEOUT)?;
        let group = committed
            .find_partition(&place.topic, place.partition)
            .and_then(|element| match element.offset() {
                Offset::Offset(offset) => Some(offset),
                _ => None,
            });
        let topic_id = before
            .get(&*place.topic)
            .with_context(|| format!("there is no topic {}", place.topic))?
            .id
            .clone();
        offsets.insert(
            place.clone(),
            Bounds {
                beginning,
                end,
                group,
                topic_id,
            },
        );
    }
    let after = kafka_client::facts_by(observer, &names)?;
    let is_same = |name: &String| {
        before.get(name).and_then(|facts| facts.id.as_ref()) == after.get(name).and_then(|facts| facts.id.as_ref())
    };
    ensure!(names.iter().all(is_same), "a topic was made anew meanwhile");
    Ok(Offsets(offsets))
}

fn names<'p>(places: impl Iterator<Item = &'p TopicPartition>) -> Vec<String> {
    let names: HashSet<&str> = places.map(|place| &*place.topic).collect();
    names.into_iter().map(str::to_owned).collect()
}

/// What the builder holds when Kafka is asked.
struct Asked {
    /// The partitions that are read, with their positions.
    read: Vec<(TopicPartition, i64)>,
    paused: Vec<Paused>,
}

/// What Kafka has answered.
struct Answer {
    asked: Asked,
    facts: BTreeMap<String, TopicFacts>,
    ends: HashMap<TopicPartition, i64>,
    /// Of the paused partitions; none where Kafka does not tell.
    offsets: Option<Offsets>,
}

/// Asks Kafka, and compares.
pub struct Watch {
    observer: Arc<Observer>,
    asked_at: Instant,
    answer: Option<JoinHandle<anyhow::Result<Answer>>>,
    ids: HashMap<TopicPartition, TopicIds>,
    low: LowEnds,
}

impl Watch {
    #[must_use]
    pub fn new(observer: Arc<Observer>) -> Self {
        Self {
            observer,
            asked_at: Instant::now(),
            answer: None,
            ids: HashMap::new(),
            low: LowEnds::default(),
        }
    }

    #[must_use]
    pub fn observer(&self) -> Arc<Observer> {
        self.observer.clone()
    }

    /// The partitions that are read have these topics' ids from now on. What was asked before is forgotten.
    pub fn begin(&mut self, ids: Vec<(TopicPartition, TopicIds)>) {
        self.ids = ids.into_iter().collect();
        self.low = LowEnds::default();
        self.answer = None;
        self.asked_at = Instant::now();
    }

    /// Asks where it is time to; says why all has to be taken over anew, where an answer is there that says so.
    pub fn look<'a>(&mut self, read: impl Iterator<Item = Position<'a>>, paused: &[Paused]) -> Option<String> {
        if let Some(answer) = &mut self.answer {
            let answered = answer.now_or_never()?;
            self.answer = None;
            return match answered {
                Ok(Ok(answer)) => self.compare(&answer),
                Ok(Err(err)) => {
                    tracing::debug!(error = format!("{err:#}"), "kafka does not tell of the topics");
                    None
                }
                Err(err) => {
                    tracing::error!(error = %err, "asking kafka failed");
                    None
                }
            };
        }
        if self.asked_at.elapsed() < INTERVAL {
            return None;
        }
        self.asked_at = Instant::now();
        let asked = Asked {
            read: read
                .map(|position| (position.place.clone(), position.next_offset))
                .collect(),
            paused: paused.to_vec(),
        };
        if !asked.read.is_empty() || !asked.paused.is_empty() {
            let observer = self.observer.clone();
            self.answer = Some(tokio::task::spawn_blocking(move || ask(&observer, asked)));
        }
        None
    }

    fn compare(&mut self, answer: &Answer) -> Option<String> {
        for (place, _) in &answer.asked.read {
            let told = answer.facts.get(&*place.topic).and_then(|facts| facts.id.as_deref());
            if self.ids.get(place).map(|ids| ids.compare(told)) == Some(Topic::MadeAnew) {
                return Some(format!("the topic {} was made anew", place.topic));
            }
        }
        if let Some(place) = self.low.note(&answer.asked.read, &answer.ends) {
            return Some(format!("{place} ends below the view's position"));
        }
        let offsets = answer.offsets.as_ref()?;
        // The takeover writes down the lowest end.
        let is_lower = |paused: &&Paused| {
            let (known, told) = (paused.lost.low_end(), offsets.get(&paused.claim));
            known.zip(told).is_some_and(|(known, told)| told.end < known)
        };
        if let Some(paused) = answer.asked.paused.iter().find(is_lower) {
            return Some(format!("{} ends even lower", paused.claim.place));
        }
        let found = |paused: &&Paused| takeover::is_found(paused, offsets);
        let found = answer.asked.paused.iter().find(found)?;
        Some(format!("{} can be read again", found.claim.place))
    }
}

/// How often in a row a partition was said to end below its position.
#[derive(Debug, Default)]
struct LowEnds(HashMap<TopicPartition, u32>);

impl LowEnds {
    /// Takes note of ends; gives a partition whose end is below its position for certain.
    fn note(&mut self, read: &[(TopicPartition, i64)], ends: &HashMap<TopicPartition, i64>) -> Option<TopicPartition> {
        let enough = if faults::is_planted(Bug::BelieveOneLaggingEnd) {
            1
        } else {
            LOW_ENDS_MIN
        };
        let mut certain = None;
        for (place, position) in read {
            match ends.get(place) {
                Some(end) if end < position => {
                    let times = self.0.entry(place.clone()).or_default();
                    *times += 1;
                    tracing::warn!(%place, position, end, times = *times, "kafka says that the topic ends below the position");
                    if *times >= enough {
                        certain.get_or_insert_with(|| place.clone());
                    }
                }
                Some(_) => drop(self.0.remove(place)),
                None => {}
            }
        }
        certain
    }
}

fn ask(observer: &Observer, asked: Asked) -> anyhow::Result<Answer> {
    let places = || asked.read.iter().map(|(place, _)| place);
    let paused: Vec<TopicPartition> = asked.paused.iter().map(|paused| paused.claim.place.clone()).collect();
    let facts = kafka_client::facts_by(observer, &names(places().chain(&paused)))?;
    // Of a topic that is gone just now nothing can be asked.
    let there = |place: &&TopicPartition| {
        let facts = facts.get(&*place.topic);
        facts.is_some_and(|facts| place.partition < facts.partitions)
    };
    let there: Vec<(&str, i32)> = places()
        .filter(there)
        .map(|place| (&*place.topic, place.partition))
        .collect();
    let told = kafka_client::ends_by(observer, there)?;
    let ends = told.into_iter().map(|end| {
        let place = crate::kafka::place(&end.topic, end.partition);
        (place, end.stable)
    });
    let ends = ends.collect();
    let offsets = (!paused.is_empty()).then(|| offsets(observer, &paused).ok()).flatten();
    Ok(Answer {
        asked,
        facts,
        ends,
        offsets,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::LowEnds;
    use crate::kafka::place;

    #[test]
    fn an_end_below_the_position_has_to_be_told_twice_in_a_row() {
        let (mut low, place) = (LowEnds::default(), place("user-events", 3));
        let read = [(place.clone(), 50)];
        let mut told = |end: Option<i64>| {
            let ends: HashMap<_, _> = end.map(|end| (place.clone(), end)).into_iter().collect();
            low.note(&read, &ends).is_some()
        };
        let ends = [Some(49), Some(50), Some(49), None, Some(60), Some(40), Some(41)];
        let expected = [false, false, false, false, false, false, true];
        assert_eq!(ends.map(&mut told), expected);
    }
}
