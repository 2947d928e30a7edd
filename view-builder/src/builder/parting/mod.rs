//! Finding out whether a log has lost its end, and has other records at those offsets by now.
//!
//! A leader that lacks the end of a log may be elected (unclean election). The offsets of what is lost are other records' then, so that offsets
//! tell nothing once the log has grown beyond the position. The leader's epoch does: it stands with each record. So how far a log was read, and in
//! which epoch, is kept beside the position and moves with it in the batch's transaction.
//!
//! **A record of another epoch is not taken before Kafka has told that the log still has what was read before it.** Until then the partition is in
//! doubt: its records are dropped, and read again once that is certain. Where the leader has changed between two takeovers, a
//! partition begins in doubt. So it does not matter when the leader changed, nor whether anybody looked at that moment, nor that librdkafka's own
//! comparison (KIP-320) knows nothing of what was read before an assignment.
//!
//! Where the log has parted from what was read, the offset is written down as the lowest end that was told (`paused_end`), and the epoch of the
//! claim is counted up: whoever holds the partition takes it over anew, and reads it again from there. A log that nobody tells of stays in doubt.
//!
//! Not seen is a log that has lost its end and has grown to just the position again, until its next record comes.

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

/// How long a leader has to tell. The question blocks a thread of its own, so nothing but the partition in doubt waits for it.
const TOLD_MAX: Duration = Duration::from_secs(10);
/// How often Kafka is asked again of a log that it has not told of. The partition's events wait meanwhile.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// A doubt that lasts longer is told to people. Most end with the first answer.
const DOUBT_TOLD_AFTER: Duration = Duration::from_secs(5);

/// What a takeover knows of a partition's log.
#[derive(Clone, Debug)]
pub struct Mark {
    pub place: TopicPartition,
    /// How far it was read; none: nothing of the topic as it is, or the cluster has no epochs.
    pub read: Option<ReadUpTo>,
    /// The epoch of the leader that there is now; none where the cluster does not tell it.
    pub leader_epoch: Option<i32>,
    pub topic_id: Option<String>,
}

/// A partition that has other records than those that were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parted {
    pub place: TopicPartition,
    /// From this offset on.
    pub at: i64,
    /// The id of the topic that was read.
    pub topic_id: Option<String>,
}

/// The first offset that each log gives behind what was read of it, unless the thread that asked has panicked.
pub type Answer = Result<BTreeMap<TopicPartition, i64>, JoinError>;

/// What came of a question.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// These logs have what was read: their partitions are read on.
    pub certain: Vec<TopicPartition>,
    /// These do not.
    pub parted: Vec<Parted>,
}

/// What was read of the partitions that are held, and the question whether their logs still have it.
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

    /// From now on these partitions are read, and no others. Gives those that begin in doubt.
    pub fn begin(&mut self, marks: Vec<Mark>) -> Vec<TopicPartition> {
        self.logs.clear();
        self.answer = None;
        self.add(marks)
    }

    /// These partitions are read as well. Gives those that begin in doubt.
    pub fn add(&mut self, marks: Vec<Mark>) -> Vec<TopicPartition> {
        let mut doubtful = Vec::new();
        for mark in marks {
            let doubt = mark.read.zip(mark.leader_epoch).and_then(|(read, epoch)| {
                let is_other = epoch != read.epoch && looks_at_epochs();
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

    /// Whether a record may be taken. One that may not comes again once that is certain.
    pub fn may_take(&mut self, place: &TopicPartition, offset: i64, epoch: Option<i32>) -> bool {
        let (Some(log), Some(epoch)) = (self.logs.get_mut(place), epoch) else {
            return true;
        };
        if log.doubt.is_some() {
            return false;
        }
        if log.continues(offset, epoch) || !looks_at_epochs() {
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
            |log: &Log| matches!(log.doubt, Some(Doubt::Since { at, .. }) if at.elapsed() > DOUBT_TOLD_AFTER);
        let untold = self.logs.iter().filter(|(_, log)| is_untold(log));
        untold.map(|(place, _)| place.clone()).collect()
    }

    /// Asks Kafka of the partitions in doubt, unless a question is under way or was asked just now.
    pub fn ask_when_due(&mut self) {
        if self.answer.is_some() || self.asked_at.is_some_and(|at| at.elapsed() < ASK_AGAIN) {
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
        self.answer = Some(tokio::task::spawn_blocking(move || first_offsets(&servers, &asked)));
    }

    /// Ends the doubts that the answer ends.
    pub fn act_on_answer(&mut self, answered: Answer) -> Told {
        self.answer = None;
        let mut told = Told::default();
        let firsts = match answered {
            Ok(firsts) => firsts,
            Err(err) => {
                tracing::error!(error = %err, "asking kafka failed");
                return told;
            }
        };
        for (place, read) in std::mem::take(&mut self.asked) {
            let (Some(log), Some(first)) = (self.logs.get_mut(&place), firsts.get(&place)) else {
                // It is held no more, or Kafka did not tell of it: then it is asked of again.
                continue;
            };
            let Some(Doubt::Since { epoch, .. }) = log.doubt else {
                // It was taken over anew since it was asked of.
                continue;
            };
            if *first < read.offset {
                tracing::warn!(%place, at = first, read = read.offset, "the log has lost its end, and has other records from there on");
                log.doubt = Some(Doubt::Parted);
                told.parted.push(Parted {
                    topic_id: log.topic_id.clone(),
                    at: *first,
                    place,
                });
            } else {
                log.doubt = None;
                log.trusted = Some(epoch);
                told.certain.push(place);
            }
        }
        told
    }
}

/// Waits for the answer; for ever where there is no question.
pub async fn answer_to(parting: &mut Parting) -> Answer {
    match &mut parting.answer {
        Some(answer) => answer.await,
        None => std::future::pending().await,
    }
}

/// The first offset that each of the logs gives where it is asked for what comes behind what was read; one that does not tell is left out. Blocks.
fn first_offsets(servers: &Kafka, read: &HashMap<TopicPartition, ReadUpTo>) -> BTreeMap<TopicPartition, i64> {
    let mut by_topic: BTreeMap<&str, BTreeMap<i32, ReadUpTo>> = BTreeMap::new();
    for (place, read) in read {
        by_topic.entry(&place.topic).or_default().insert(place.partition, *read);
    }
    let mut all = BTreeMap::new();
    for (topic, read) in by_topic {
        // One for each topic: what is assigned already does not begin anew.
        let told = kafka::parting_observer(servers)
            .context("no client")
            .and_then(|observer| kafka_client::first_offsets_behind(&observer, topic, &read, TOLD_MAX));
        match told {
            Ok(told) => all.extend(
                told.into_iter()
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

/// False only where the bug is planted that a builder trusts offsets alone.
fn looks_at_epochs() -> bool {
    !faults::is_planted(Bug::TrustOffsetsAlone)
}

impl Database {
    /// Writes down from where on these partitions have other records, and has whoever holds them take them over anew. One of another topic by
    /// now stays as it is. Waits for as long as Postgres is away.
    pub async fn note_parted(&mut self, parted: &[Parted]) {
        let topic: Vec<&str> = parted.iter().map(|one| &*one.place.topic).collect();
        let partition: Vec<i32> = parted.iter().map(|one| one.place.partition).collect();
        let at: Vec<i64> = parted.iter().map(|one| one.at).collect();
        let id: Vec<Option<&str>> = parted.iter().map(|one| one.topic_id.as_deref()).collect();
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
