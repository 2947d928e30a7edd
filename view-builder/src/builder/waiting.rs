//! The partitions that this process has claimed and cannot begin to read yet, since Kafka does not tell where they begin and end: mostly
//! since no broker leads them. All others are read meanwhile.
//!
//! What was read in Postgres with the claim stays right for as long as the claim holds: whoever changes a position or the catalog counts the
//! epoch up, which the builder's look notices for these partitions too. They are in no batch, so their positions do not move.
//!
//! Kafka is asked on a thread of its own, and not by the job that has the connection to Postgres, since a leader that does not answer takes
//! seconds. What is asked for an assignment is forgotten with it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use metrics::gauge;
use service::Readiness;
use tokio::task::JoinHandle;

use crate::builder::claim::{self, Claim};
use crate::continuity::offsets::{Offsets, Untold, offsets};
use crate::contract::place::TopicPartition;
use crate::kafka::Observer;

/// The part of `/readyz`.
const PART: &str = "kafka-partitions";
/// How often Kafka is asked. Events of these partitions wait for up to so long after Kafka has them again.
const INTERVAL: Duration = Duration::from_secs(2);
/// Of so many partitions the reasons are told; the others are counted.
const TOLD_MAX: usize = 3;
/// Every reason, so that its series goes back to 0.
const REASONS: [&str; 3] = ["no_leader", "no_answer", "not_there"];

/// A partition that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub claim: Claim,
    pub untold: Untold,
    /// Kafka has told once of it, and that its position is not in the topic. A leader that was just elected may tell so wrongly.
    pub seemed_lost: bool,
}

/// Those of them of which Kafka tells now, with what it tells.
#[derive(Clone, Debug)]
pub struct Found {
    /// The assignment that they are of.
    pub generation: u64,
    pub waiting: Vec<Waiting>,
    pub offsets: Offsets,
}

/// The partitions that wait.
pub struct WaitingPartitions {
    readiness: Readiness,
    generation: u64,
    waiting: Vec<Waiting>,
    asked_at: Instant,
    answer: Option<JoinHandle<anyhow::Result<Offsets>>>,
    /// What was told last, of partitions that are gone and of others, so that the log says each thing once.
    last_report: (String, String),
}

impl WaitingPartitions {
    #[must_use]
    pub fn new(readiness: Readiness) -> Self {
        Self {
            readiness,
            generation: 0,
            waiting: Vec::new(),
            asked_at: Instant::now(),
            answer: None,
            last_report: <(String, String)>::default(),
        }
    }

    /// Holds these of the assignment with this generation, and no others.
    pub fn replace(&mut self, generation: u64, waiting: Vec<Waiting>) {
        self.generation = generation;
        self.waiting = waiting;
        self.answer = None;
        self.asked_at = Instant::now();
    }

    /// Holds none until the next takeover tells which.
    pub fn let_go(&mut self) {
        self.replace(0, Vec::new());
    }

    /// Holds these as well: Kafka has told of them, and it is not certain yet what that means.
    pub fn put_back(&mut self, waiting: Vec<Waiting>) {
        self.waiting.extend(waiting);
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The claims under which they are held.
    pub fn claims(&self) -> impl Iterator<Item = claim::Held> {
        self.waiting.iter().map(|waiting| claim::Held {
            place: waiting.claim.place.clone(),
            epoch: waiting.claim.epoch,
        })
    }

    /// Asks Kafka where it is time to. Gives those of which it tells, and holds them no longer.
    pub fn ask_when_due(&mut self, observer: &Arc<Observer>) -> Option<Found> {
        if let Some(answer) = &mut self.answer {
            let answered = answer.now_or_never()?;
            self.answer = None;
            return match answered {
                Ok(Ok(offsets)) => self.find(offsets),
                Ok(Err(err)) => {
                    tracing::debug!(
                        error = format!("{err:#}"),
                        "kafka does not tell of partitions that wait"
                    );
                    None
                }
                Err(err) => {
                    tracing::error!(error = %err, "asking kafka failed");
                    None
                }
            };
        }
        if self.waiting.is_empty() || self.asked_at.elapsed() < INTERVAL {
            return None;
        }
        self.asked_at = Instant::now();
        let places: Vec<TopicPartition> = self.waiting.iter().map(|one| one.claim.place.clone()).collect();
        let observer = Arc::clone(observer);
        self.answer = Some(tokio::task::spawn_blocking(move || offsets(&observer, &places)));
        None
    }

    fn find(&mut self, offsets: Offsets) -> Option<Found> {
        let all = std::mem::take(&mut self.waiting);
        let (found, mut still): (Vec<Waiting>, Vec<Waiting>) = all
            .into_iter()
            .partition(|waiting| offsets.at(&waiting.claim.place).is_ok());
        for waiting in &mut still {
            if let Err(untold) = offsets.at(&waiting.claim.place) {
                waiting.untold = untold;
                // The leader that seemed to say so is gone.
                waiting.seemed_lost = false;
            }
        }
        self.waiting = still;
        (!found.is_empty()).then_some(Found {
            generation: self.generation,
            waiting: found,
            offsets,
        })
    }

    /// Tells of the partitions whose events wait in Kafka: those that wait to be begun, and these, which are read and have no leader, or whose leader
    /// does not tell whether its log has what was read.
    pub fn report(&mut self, without_leader: &[TopicPartition], in_doubt: &[TopicPartition]) {
        let in_doubt = in_doubt.iter().map(|place| (place, Untold::NoAnswer));
        let begun = in_doubt.chain(without_leader.iter().map(|place| (place, Untold::NoLeader)));
        let waiting = self.waiting.iter().map(|one| (&one.claim.place, one.untold));
        let all: BTreeMap<&TopicPartition, Untold> = begun.chain(waiting).collect();
        let mut counts: BTreeMap<&str, u32> = REASONS.map(|reason| (reason, 0)).into();
        for untold in all.values() {
            *counts.entry(untold.name()).or_default() += 1;
        }
        for (reason, count) in counts {
            gauge!("view_partitions_waiting", "reason" => reason.to_owned()).set(count);
        }
        // A partition that the topic does not have holds up no event.
        let is_gone = |untold: &Untold| matches!(untold, Untold::NoPartition { .. });
        let (gone, held_up): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, untold)| is_gone(untold));
        let (gone, held_up) = (describe(&gone), describe(&held_up));
        if self.last_report == (gone.clone(), held_up.clone()) {
            return;
        }
        if held_up.is_empty() {
            self.readiness.ready(PART);
        } else {
            tracing::warn!(reason = held_up, "some partitions wait for kafka; all others go on");
            let reason = format!("{held_up}; all other partitions go on, and these as soon as kafka has them");
            self.readiness.not_ready(PART, reason);
        }
        if gone.is_empty() {
            self.readiness.fine(PART);
        } else {
            tracing::warn!(reason = gone, "nothing is read of partitions that are not there");
            self.readiness.warn(PART, gone.clone());
        }
        if gone.is_empty() && held_up.is_empty() {
            tracing::info!("kafka tells of all partitions again");
        }
        self.last_report = (gone, held_up);
    }
}

fn describe(some: &[(&TopicPartition, Untold)]) -> String {
    let reasons = some.iter().take(TOLD_MAX);
    let reasons: Vec<String> = reasons.map(|(place, untold)| format!("{place} {untold}")).collect();
    let mut told = reasons.join("; ");
    if some.len() > TOLD_MAX {
        told += &format!("; and {} more", some.len() - TOLD_MAX);
    }
    told
}

#[cfg(test)]
mod tests {
    use service::Readiness;

    use super::{Waiting, WaitingPartitions, describe};
    use crate::builder::claim::Claim;
    use crate::continuity::offsets::Untold;
    use crate::continuity::topic_ids::TopicIds;
    use crate::contract::place::place;
    use crate::letters::Known;

    fn waiting(partition: i32) -> Waiting {
        Waiting {
            claim: Claim {
                place: place("user-events", partition),
                epoch: 7,
                next_offset: Some(50),
                highest_offset: None,
                group_offset: None,
                ids: TopicIds::default(),
                was_paused: false,
                paused_end: None,
                read: None,
                known: Known::at(1),
            },
            untold: Untold::NoLeader,
            seemed_lost: false,
        }
    }

    #[test]
    fn the_reason_names_the_partition_and_kafka_and_goes_with_the_partitions() {
        let readiness = Readiness::default();
        let mut partitions = WaitingPartitions::new(readiness.clone());
        partitions.replace(3, vec![waiting(2)]);
        partitions.report(&[place("user-events", 5)], &[]);
        let reasons = readiness.reasons();
        let text = &reasons["kafka-partitions"];
        for partition in [2, 5] {
            assert!(
                text.contains(&format!("user-events/{partition} has no leader in kafka")),
                "{text}"
            );
        }
        let held: Vec<_> = partitions
            .claims()
            .map(|held| (held.place.partition, held.epoch))
            .collect();
        assert_eq!(held, [(2, 7)]);
        partitions.let_go();
        partitions.report(&[], &[]);
        assert!(readiness.reasons().is_empty());
        assert_eq!(partitions.claims().count(), 0);
    }

    #[test]
    fn a_partition_that_the_topic_does_not_have_is_only_warned_of() {
        let readiness = Readiness::default();
        let mut partitions = WaitingPartitions::new(readiness.clone());
        let untold = Untold::NoPartition { partitions: 4 };
        partitions.replace(3, vec![Waiting { untold, ..waiting(7) }]);
        partitions.report(&[], &[]);
        assert!(readiness.reasons().is_empty());
        let text = &readiness.warnings()["kafka-partitions"];
        assert!(
            text.contains("user-events/7 is not there in kafka: the topic has 4 partitions now"),
            "{text}"
        );
    }

    #[test]
    fn the_line_stays_short() {
        let places: Vec<_> = (0..5).map(|partition| place("user-events", partition)).collect();
        let all: Vec<_> = places.iter().map(|place| (place, Untold::NoAnswer)).collect();
        let text = describe(&all);
        assert!(text.ends_with("; and 2 more"), "{text}");
    }
}
