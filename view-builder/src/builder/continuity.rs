//! Asks Kafka from time to time whether the positions still fit the topics: whether a topic was made anew or has lost its end.
//!
//! A consumer that waits at a topic's end does not notice this, since no record comes. So another client asks, on a thread of its own. If it finds
//! something, the builder joins its group again. Then the takeover looks once more, and decides.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use kafka_client::TopicFacts;
use rdkafka::consumer::Consumer as _;
use tokio::task::JoinHandle;

use crate::builder::beginning::Paused;
use crate::builder::takeover;
use crate::continuity::offsets::{Offsets, names, offsets};
use crate::continuity::topic_ids::{Topic, TopicIds};
use crate::contract::place::TopicPartition;
use crate::contract::position::Position;
use crate::kafka::Observer;
use crate::process::faults::{self, Bug};

/// How often Kafka is asked. Topics are rarely made anew, and a client asks for all partitions each time.
const INTERVAL: Duration = Duration::from_secs(10);
/// A low end counts only if Kafka tells it so many times in a row, since a leader that was just elected may tell an end that is too low for a
/// moment.
const LOW_ENDS_MIN: u32 = 2;

/// What the builder held when it asked Kafka.
struct AskedAbout {
    /// The partitions that are read, with their positions.
    read: Vec<(TopicPartition, i64)>,
    paused: Vec<Paused>,
}

/// What Kafka has answered.
struct Answer {
    asked_about: AskedAbout,
    facts: BTreeMap<String, TopicFacts>,
    ends: HashMap<TopicPartition, i64>,
    /// The partitions that are read and have no leader.
    without_leader: Vec<TopicPartition>,
    /// The offsets of the paused partitions. `None`: Kafka does not tell, or no partition is paused.
    offsets: Option<Offsets>,
}

/// Asks Kafka about the topics, and compares the answers with the positions.
pub struct Watch {
    observer: Arc<Observer>,
    asked_at: Instant,
    answer: Option<JoinHandle<anyhow::Result<Answer>>>,
    ids: HashMap<TopicPartition, TopicIds>,
    low_ends: LowEnds,
    /// The partitions that are read and had no leader at the last answer.
    without_leader: Vec<TopicPartition>,
}

impl Watch {
    #[must_use]
    pub fn new(observer: Arc<Observer>) -> Self {
        Self {
            observer,
            asked_at: Instant::now(),
            answer: None,
            ids: HashMap::new(),
            low_ends: LowEnds::default(),
            without_leader: Vec::new(),
        }
    }

    #[must_use]
    pub fn observer(&self) -> Arc<Observer> {
        self.observer.clone()
    }

    /// Whether Kafka has refused the client that asks.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.observer.context().reasons().refused().is_some()
    }

    /// From now on these partitions are read, and their topics have these ids. An earlier question is forgotten.
    pub fn begin(&mut self, ids: Vec<(TopicPartition, TopicIds)>) {
        self.ids = ids.into_iter().collect();
        self.low_ends = LowEnds::default();
        self.without_leader.clear();
        self.answer = None;
        self.asked_at = Instant::now();
    }

    /// These partitions are read as well, and their topics have these ids.
    pub fn add(&mut self, ids: Vec<(TopicPartition, TopicIds)>) {
        self.ids.extend(ids);
    }

    /// The partitions that are read but have no leader, so that their events wait in Kafka.
    #[must_use]
    pub fn without_leader(&self) -> &[TopicPartition] {
        &self.without_leader
    }

    /// Asks Kafka if it is time to. If an answer has come by which all partitions must be taken over anew, returns the reason.
    pub fn ask_when_due<'a>(&mut self, read: impl Iterator<Item = Position<'a>>, paused: &[Paused]) -> Option<String> {
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
        let asked_about = AskedAbout {
            read: read
                .map(|position| (position.place.clone(), position.next_offset))
                .collect(),
            paused: paused.to_vec(),
        };
        if !asked_about.read.is_empty() || !asked_about.paused.is_empty() {
            let observer = self.observer.clone();
            self.answer = Some(tokio::task::spawn_blocking(move || ask_kafka(&observer, asked_about)));
        }
        None
    }

    fn compare(&mut self, answer: &Answer) -> Option<String> {
        self.without_leader.clone_from(&answer.without_leader);
        for (place, _) in &answer.asked_about.read {
            let told = answer.facts.get(&*place.topic).and_then(|facts| facts.id.as_deref());
            if self.ids.get(place).map(|ids| ids.compare(told)) == Some(Topic::MadeAnew) {
                return Some(format!("the topic {} was made anew", place.topic));
            }
        }
        if let Some(place) = self.low_ends.note(&answer.asked_about.read, &answer.ends) {
            return Some(format!("{place} ends below the view's position"));
        }
        let offsets = answer.offsets.as_ref()?;
        // An end that is lower than the known one is a reason too, since the takeover stores the lowest end.
        let is_lower = |paused: &&Paused| {
            let (known, told) = (paused.lost.low_end(), offsets.at(&paused.claim.place).ok());
            known.zip(told).is_some_and(|(known, told)| told.end < known)
        };
        if let Some(paused) = answer.asked_about.paused.iter().find(is_lower) {
            return Some(format!("{} ends even lower", paused.claim.place));
        }
        let found = |paused: &&Paused| takeover::can_be_read(paused, offsets);
        let found = answer.asked_about.paused.iter().find(found)?;
        Some(format!("{} can be read again", found.claim.place))
    }
}

/// How often in a row a partition was said to end below its position.
#[derive(Debug, Default)]
struct LowEnds(HashMap<TopicPartition, u32>);

impl LowEnds {
    /// Notes the ends. Returns a partition whose end is certainly below its position, if there is one.
    fn note(&mut self, read: &[(TopicPartition, i64)], ends: &HashMap<TopicPartition, i64>) -> Option<TopicPartition> {
        let enough = low_ends_needed();
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

fn ask_kafka(observer: &Observer, asked_about: AskedAbout) -> anyhow::Result<Answer> {
    let places = || asked_about.read.iter().map(|(place, _)| place);
    let paused: Vec<TopicPartition> = asked_about
        .paused
        .iter()
        .map(|paused| paused.claim.place.clone())
        .collect();
    let facts = kafka_client::facts_by(observer, &names(places().chain(&paused)))?;
    // A partition that does not exist now cannot be asked about.
    let exists = |place: &&TopicPartition| {
        let facts = facts.get(&*place.topic);
        facts.is_some_and(|facts| place.partition < facts.partitions)
    };
    let existing: Vec<&TopicPartition> = places().filter(exists).collect();
    // Only partitions with a leader are asked about. Otherwise one without a leader would make the whole question fail.
    let leaders = kafka_client::leaders_by(observer, existing.iter().map(|place| &*place.topic))?;
    let has_leader = |place: &TopicPartition| leaders.get(&*place.topic)?.get(&place.partition).copied();
    let without_leader = existing.iter().filter(|place| has_leader(place) == Some(false));
    let without_leader = without_leader.map(|place| (*place).clone()).collect();
    let with_leader = existing.iter().filter(|place| has_leader(place) == Some(true));
    let with_leader: Vec<(&str, i32)> = with_leader.map(|place| (&*place.topic, place.partition)).collect();
    let ends = kafka_client::ends_by(observer, with_leader)?;
    let ends = ends.into_iter().map(|end| {
        let place = crate::contract::place::place(&end.topic, end.partition);
        (place, end.stable)
    });
    let ends = ends.collect();
    let offsets = (!paused.is_empty()).then(|| offsets(observer, &paused).ok()).flatten();
    Ok(Answer {
        asked_about,
        facts,
        ends,
        without_leader,
        offsets,
    })
}

/// How often in a row a low end has to be told. For the planted bug once is enough.
fn low_ends_needed() -> u32 {
    if faults::is_planted(Bug::BelieveOneLaggingEnd) {
        1
    } else {
        LOW_ENDS_MIN
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::LowEnds;
    use crate::contract::place::place;

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
