//! Finds out whether a log has parted from what was read of it: it has lost its end, and has other records at those offsets by now.
//!
//! Kafka may elect a leader that lacks the end of a log (unclean election). Then other records get the offsets of the lost ones. Once the log has
//! grown beyond our position, the offsets alone do not show this. The leader's epoch, which each record carries, does. So how far a log was read,
//! and in which epoch, is stored beside the position and moves with it in the batch's transaction.
//!
//! **A record of another epoch is not taken before Kafka has told that the log still has what was read before it.** Until then the partition is in
//! doubt: its records are dropped, and read again once that is certain. Where the leader has changed between two takeovers, a
//! partition begins in doubt. So it does not matter when the leader changed, nor whether anybody looked at that moment, nor that librdkafka's own
//! comparison (KIP-320) knows nothing of what was read before an assignment.
//!
//! If the log has parted, its first offset that differs is stored as the lowest end that Kafka told (`paused_end`), and the epoch of the claim is
//! raised. So the builder that holds the partition takes it over anew, and reads it again from that offset. While Kafka does not tell of a log, it
//! stays in doubt.
//!
//! One case is noticed late: a log that has lost its end and has grown exactly to our position again. It is noticed when its next record comes.

mod log;

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use kafka_client::ReadUpTo;
use tokio::task::{JoinError, JoinHandle};

use self::log::{Doubt, Log};
use crate::contract::place::{self, TopicPartition};
use crate::kafka;
use crate::kafka::servers::Kafka;
use crate::process::faults::{self, Bug};
use crate::views::database::Database;

/// How long to wait for a leader's answer. The question blocks a thread of its own, so only the partition in doubt waits for it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How often Kafka is asked again about a log that it has not told of. The partition's events wait meanwhile.
const ASK_AGAIN_INTERVAL: Duration = Duration::from_secs(2);
/// A doubt that lasts longer is shown to people. Most doubts end with the first answer.
const DOUBT_SHOWN_AFTER: Duration = Duration::from_secs(5);

/// What a takeover knows of a partition's log.
#[derive(Clone, Debug)]
pub struct Mark {
    pub place: TopicPartition,
    /// How far the log was read. `None`: nothing of the present topic was read, or the cluster has no epochs.
    pub read: Option<ReadUpTo>,
    /// The epoch of the present leader. `None`: the cluster does not tell it.
    pub leader_epoch: Option<i32>,
    pub topic_id: Option<String>,
}

/// A partition whose log has other records than those that were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parted {
    pub place: TopicPartition,
    /// The first offset at which the records differ.
    pub at: i64,
    /// The id of the topic that was read.
    pub topic_id: Option<String>,
}

/// For each log: the first offset that its leader names after what was read. An error if the thread that asked has panicked.
pub type Answer = Result<BTreeMap<TopicPartition, i64>, JoinError>;

/// What an answer of Kafka has shown.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// These logs still have what was read, so their partitions are read on.
    pub certain: Vec<TopicPartition>,
    /// These logs have parted from what was read.
    pub parted: Vec<Parted>,
}

/// How far the logs of the held partitions were read, and the question to Kafka whether the logs still have these records.
pub struct Parting {
    servers: Kafka,
    logs: HashMap<TopicPartition, Log>,
    answer: Option<JoinHandle<BTreeMap<TopicPartition, i64>>>,
    asked: HashMap<TopicPartition, ReadUpTo>,
    asked_at: Option<Instant>,
}

impl Parting {
    #[must_use]
    pub fn new(servers: Kafka) -> Self {
        Self {
            servers,
            logs: HashMap::new(),
            answer: None,
            asked: HashMap::new(),
            asked_at: None,
        }
    }

    /// From now on these partitions are read, and no others. Returns those that begin in doubt.
    pub fn begin(&mut self, marks: Vec<Mark>) -> Vec<TopicPartition> {
        self.logs.clear();
        self.answer = None;
        self.add(marks)
    }

    /// These partitions are read as well. Returns those that begin in doubt.
    pub fn add(&mut self, marks: Vec<Mark>) -> Vec<TopicPartition> {
        let mut doubtful = Vec::new();
        for mark in marks {
            let doubt = mark.read.zip(mark.leader_epoch).and_then(|(read, epoch)| {
                let is_other = epoch != read.epoch && compares_epochs();
                is_other.then(|| Doubt::Since {
                    epoch,
                    at: Instant::now(),
                })
            });
            if doubt.is_some() {
                doubtful.push(mark.place.clone());
            }
            let log = Log {
                read: mark.read,
                trusted: None,
                doubt,
                topic_id: mark.topic_id,
            };
            self.logs.insert(mark.place, log);
        }
        self.asked_at = None;
        self.ask_when_due();
        doubtful
    }

    /// Whether a record may be taken. One that may not be taken is read again once it is certain that the log is the same.
    pub fn may_take(&mut self, place: &TopicPartition, offset: i64, epoch: Option<i32>) -> bool {
        let (Some(log), Some(epoch)) = (self.logs.get_mut(place), epoch) else {
            return true;
        };
        if log.doubt.is_some() {
            return false;
        }
        if log.continues(offset, epoch) || !compares_epochs() {
            log.note(offset, epoch);
            return true;
        }
        tracing::info!(%place, offset, epoch, read = ?log.read, "another leader: does its log have what was read?");
        log.doubt = Some(Doubt::Since {
            epoch,
            at: Instant::now(),
        });
        self.asked_at = None;
        self.ask_when_due();
        false
    }

    /// The partitions in doubt of which Kafka has not told for long.
    #[must_use]
    pub fn unanswered_for_long(&self) -> Vec<TopicPartition> {
        let is_untold =
            |log: &Log| matches!(log.doubt, Some(Doubt::Since { at, .. }) if at.elapsed() > DOUBT_SHOWN_AFTER);
        let untold = self.logs.iter().filter(|(_, log)| is_untold(log));
        untold.map(|(place, _)| place.clone()).collect()
    }

    /// Asks Kafka about the partitions in doubt, unless a question is under way or was asked just now.
    pub fn ask_when_due(&mut self) {
        if self.answer.is_some() || self.asked_at.is_some_and(|at| at.elapsed() < ASK_AGAIN_INTERVAL) {
            return;
        }
        let doubtful = self.logs.iter().filter_map(|(place, log)| match log.doubt {
            Some(Doubt::Since { .. }) => Some((place.clone(), log.read?)),
            Some(Doubt::Parted) | None => None,
        });
        let asked: HashMap<TopicPartition, ReadUpTo> = doubtful.collect();
        if asked.is_empty() {
            return;
        }
        self.asked_at = Some(Instant::now());
        self.asked.clone_from(&asked);
        let servers = self.servers.clone();
        self.answer = Some(tokio::task::spawn_blocking(move || {
            ask_for_first_offsets(&servers, &asked)
        }));
    }

    /// Ends the doubts about the logs that the answer tells of.
    pub fn act_on_answer(&mut self, answer: Answer) -> Findings {
        self.answer = None;
        let mut findings = Findings::default();
        let first_offsets = match answer {
            Ok(first_offsets) => first_offsets,
            Err(err) => {
                tracing::error!(error = %err, "asking kafka failed");
                return findings;
            }
        };
        for (place, read) in std::mem::take(&mut self.asked) {
            let (Some(log), Some(first)) = (self.logs.get_mut(&place), first_offsets.get(&place)) else {
                // The partition is no longer held, or Kafka did not tell of it. In the second case it is asked about again.
                continue;
            };
            let Some(Doubt::Since { epoch, .. }) = log.doubt else {
                // The partition was taken over anew since the question.
                continue;
            };
            if *first < read.offset {
                tracing::warn!(%place, at = first, read = read.offset, "the log has lost its end, and has other records from there on");
                log.doubt = Some(Doubt::Parted);
                findings.parted.push(Parted {
                    topic_id: log.topic_id.clone(),
                    at: *first,
                    place,
                });
            } else {
                log.doubt = None;
                log.trusted = Some(epoch);
                findings.certain.push(place);
            }
        }
        findings
    }
}

/// Waits for the answer. Waits for ever if no question is under way.
pub async fn answer_to(parting: &mut Parting) -> Answer {
    match &mut parting.answer {
        Some(answer) => answer.await,
        None => std::future::pending().await,
    }
}

/// Asks the leader of each log for the first offset after what was read. A log that nobody tells of is left out. Blocks.
fn ask_for_first_offsets(servers: &Kafka, read: &HashMap<TopicPartition, ReadUpTo>) -> BTreeMap<TopicPartition, i64> {
    let mut by_topic: BTreeMap<&str, BTreeMap<i32, ReadUpTo>> = BTreeMap::new();
    for (place, read) in read {
        by_topic.entry(&place.topic).or_default().insert(place.partition, *read);
    }
    let mut all = BTreeMap::new();
    for (topic, read) in by_topic {
        // Each topic gets a client of its own, since a partition that a client reads already would not begin anew.
        let answer = kafka::parting_observer(servers)
            .context("no client")
            .and_then(|observer| kafka_client::first_offsets_behind(&observer, topic, &read, ANSWER_TIMEOUT));
        match answer {
            Ok(first_offsets) => all.extend(
                first_offsets
                    .into_iter()
                    .map(|(partition, first)| (place::place(topic, partition), first)),
            ),
            Err(err) => tracing::warn!(
                topic,
                error = format!("{err:#}"),
                "kafka does not tell whether a log has what was read of it: it is asked again"
            ),
        }
    }
    all
}

/// True, unless a test has planted the bug that a builder trusts offsets alone.
fn compares_epochs() -> bool {
    !faults::is_planted(Bug::TrustOffsetsAlone)
}

impl Database {
    /// Stores from which offset on these partitions have other records, and makes the builders that hold them take them over anew. A partition
    /// whose topic is another one by now stays as it is. Waits for as long as Postgres is away.
    pub async fn note_parted(&mut self, parted: &[Parted]) {
        let topic: Vec<&str> = parted.iter().map(|parted| &*parted.place.topic).collect();
        let partition: Vec<i32> = parted.iter().map(|parted| parted.place.partition).collect();
        let at: Vec<i64> = parted.iter().map(|parted| parted.at).collect();
        let id: Vec<Option<&str>> = parted.iter().map(|parted| parted.topic_id.as_deref()).collect();
        loop {
            let client = &self.session().await.client;
            let noted = client
                .execute(
                    "update view_positions as held set paused_end = least(held.paused_end, wanted.at), epoch = held.epoch + 1
                     from unnest($1::text[], $2::integer[], $3::bigint[], $4::text[]) as wanted(topic, partition, at, topic_id)
                     where held.topic = wanted.topic and held.partition = wanted.partition
                        and held.topic_id is not distinct from wanted.topic_id",
                    &[&topic, &partition, &at, &id],
                )
                .await;
            match noted {
                Ok(_) => return,
                Err(err) => self.wait(&err).await,
            }
        }
    }
}
