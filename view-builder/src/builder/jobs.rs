//! The jobs that talk to Postgres. One runs at a time, as a task that owns the connection until it ends.

use std::time::Instant;

use anyhow::anyhow;
use bytes::Bytes;
use rdkafka::consumer::Consumer as _;
use tokio::task::{JoinError, JoinHandle};

use super::Builder;
use crate::apply::{Applied, GivenUp};
use crate::builder::claim::{Held, Look};
use crate::builder::parting::Parted;
use crate::builder::takeover::{ClientsToAsk, TakenOver, begin_found, take_over};
use crate::builder::waiting::Found;
use crate::contract::batch::Batch;
use crate::contract::place::TopicPartition;
use crate::contract::position::Reached;
use crate::letters::LettersOfKey;
use crate::process::failure::Failure;
use crate::views::database::Database;
use crate::views::pauses::Paused;

/// A job that runs.
pub(super) struct Job {
    pub(super) task: JoinHandle<(Database, Result<Done, Failure>)>,
    pub(super) since: Instant,
}

/// How the task of a job ends: it gives the connection back, unless it panicked.
pub(super) type JobEnd = Result<(Database, Result<Done, Failure>), JoinError>;

/// What a job has to do. `generation`: the number of the assignment for which it is done.
pub(super) enum Work {
    TakeOver {
        generation: u64,
        places: Vec<TopicPartition>,
        owner: String,
        clients: ClientsToAsk,
    },
    /// Begins partitions that have waited for Kafka.
    BeginFound(Found),
    NoteParted(Vec<Parted>),
    RecordGroupOffsets(Vec<Reached>),
    ReadLetters {
        generation: u64,
        keys: Vec<(TopicPartition, Bytes)>,
    },
    /// Looks at what other processes and operators may have changed in Postgres.
    Look {
        generation: u64,
        held: Vec<Held>,
    },
    Apply(Batch),
    Reconnect,
}

/// What a job has done.
pub(super) enum Done {
    TakenOver {
        generation: u64,
        /// None: the assignment was revoked meanwhile.
        taken: Option<TakenOver>,
    },
    Begun {
        generation: u64,
        taken: TakenOver,
    },
    PartedNoted,
    GroupOffsetsRecorded,
    /// What the table of dead letters says of some keys.
    Letters {
        generation: u64,
        keys: Vec<LettersOfKey>,
    },
    Looked {
        generation: u64,
        /// None: Postgres did not answer.
        look: Option<Look>,
        /// The views that are paused. None: Postgres did not answer.
        paused: Option<Vec<Paused>>,
    },
    Applied(Applied),
    Reconnected,
}

impl Work {
    async fn carry_out(self, database: &mut Database) -> Result<Done, Failure> {
        failpoints::hold_before(&self).await;
        let done = match self {
            Self::TakeOver {
                generation,
                places,
                owner,
                clients,
            } => {
                let taken = take_over(database, &clients, generation, &places, &owner).await?;
                Done::TakenOver { generation, taken }
            }
            Self::BeginFound(found) => {
                let generation = found.generation;
                let taken = begin_found(database, found).await?;
                Done::Begun { generation, taken }
            }
            Self::NoteParted(parted) => {
                database.note_parted(&parted).await;
                Done::PartedNoted
            }
            Self::RecordGroupOffsets(offsets) => {
                database.record_group_offsets(&offsets).await;
                Done::GroupOffsetsRecorded
            }
            Self::ReadLetters { generation, keys } => {
                let keys = database.letters_of(&keys).await;
                Done::Letters { generation, keys }
            }
            Self::Look { generation, held } => {
                let look = database.look(&held).await;
                let paused = database.paused().await;
                Done::Looked {
                    generation,
                    look,
                    paused,
                }
            }
            Self::Apply(batch) => Done::Applied(database.apply(batch).await),
            Self::Reconnect => {
                database.session().await;
                Done::Reconnected
            }
        };
        failpoints::hold_after(&done).await;
        Ok(done)
    }
}

impl Builder {
    /// Starts the most urgent job, unless another one still runs or nothing is to do.
    pub(super) fn start_next_job(&mut self) {
        let Some(mut database) = self.database.take() else {
            return;
        };
        let Some(work) = self.most_urgent_work(&database) else {
            self.database = Some(database);
            return;
        };
        let task = tokio::spawn(async move {
            let done = work.carry_out(&mut database).await;
            (database, done)
        });
        let since = Instant::now();
        self.job = Some(Job { task, since });
    }

    /// The kinds of work are in the order of their urgency, since an earlier kind can change what a later one has to do. So batches come last but
    /// one: a partition that is not claimed has no batch, and a batch with outdated letters would be given up.
    fn most_urgent_work(&mut self, database: &Database) -> Option<Work> {
        let generation = self.consumer.context().generation();
        if let Some((generation, places)) = self.claim.take() {
            let (owner, clients) = (self.owner.clone(), self.clients_to_ask());
            return Some(Work::TakeOver {
                generation,
                places,
                owner,
                clients,
            });
        }
        if let Some(found) = self.found.take() {
            return Some(Work::BeginFound(found));
        }
        if !self.parted.is_empty() {
            return Some(Work::NoteParted(std::mem::take(&mut self.parted)));
        }
        if !self.group_acknowledged.is_empty() {
            return Some(Work::RecordGroupOffsets(std::mem::take(&mut self.group_acknowledged)));
        }
        if !self.unsure_keys.is_empty() {
            let keys = std::mem::take(&mut self.unsure_keys);
            return Some(Work::ReadLetters { generation, keys });
        }
        if self.is_look_due() {
            self.looked_at = Some(Instant::now());
            let held = self.held_claims();
            return Some(Work::Look { generation, held });
        }
        if let Some(batch) = self.assignment.next_batch() {
            return Some(Work::Apply(batch));
        }
        // An idle builder runs no statement that could fail. But `/readyz` has to say that Postgres is away.
        database.is_cut_off().then_some(Work::Reconnect)
    }

    /// Takes the connection back, and acts on what the job has done. A result for a former assignment is ignored.
    ///
    /// # Errors
    /// The job failed, or its task panicked.
    pub(super) fn job_ended(&mut self, ended: JobEnd) -> Result<(), Failure> {
        self.job = None;
        self.readiness.ready("batch");
        let (database, done) = ended.map_err(|err| anyhow!("a job failed: {err}"))?;
        self.take_connection_back(database);
        let current = self.consumer.context().generation();
        match done? {
            Done::TakenOver {
                generation,
                taken: Some(taken),
            } if generation == current => self.hold_taken_over(generation, taken),
            Done::Begun { generation, taken } if generation == current => self.hold_those_that_waited(taken),
            Done::Letters { generation, keys } if generation == current => {
                self.assignment.correct_letters(keys);
                self.seek_to_next_reads();
            }
            Done::Looked {
                generation,
                look,
                paused,
            } => {
                // Which views are paused does not depend on the assignment.
                self.report_paused_views(paused);
                if generation == current {
                    self.act_on_look(look);
                }
            }
            Done::Applied(applied) => self.act_on_applied(applied),
            Done::TakenOver { .. } | Done::Begun { .. } | Done::Letters { .. } => {}
            Done::PartedNoted | Done::GroupOffsetsRecorded | Done::Reconnected => {}
        }
        Ok(())
    }

    /// If the job had to open a new session, the catalog may have other views by now, and these may read other topics.
    fn take_connection_back(&mut self, database: Database) {
        self.contracts.clone_from(&database.contracts);
        let has_other_topics = database.topics != self.topics;
        if has_other_topics {
            // After the rejoin, the group assigns partitions of these topics.
            self.topics.clone_from(&database.topics);
        }
        self.database = Some(database);
        if has_other_topics {
            self.rejoin();
        }
    }

    fn act_on_applied(&mut self, applied: Applied) {
        for (place, next_offset) in &applied.reached {
            self.assignment.committed(place, *next_offset);
        }
        let reads_again = !applied.refused.is_empty();
        for refused in applied.refused {
            self.assignment.refused(refused);
        }
        match applied.given_up {
            None if reads_again => self.seek_to_next_reads(),
            None => {}
            Some(GivenUp::OtherLetters(keys)) => {
                tracing::info!(
                    keys = keys.len(),
                    "an operator has taken dead letters away: reading again from the positions"
                );
                self.assignment.given_up();
                self.seek_to_next_reads();
                self.unsure_keys = keys;
            }
            Some(GivenUp::Fenced) => self.rejoin_since_fenced(),
        }
    }
}

/// Waits until the job ends. Waits for ever if no job runs.
pub(super) async fn end_of(job: &mut Option<Job>) -> JobEnd {
    match job {
        Some(job) => (&mut job.task).await,
        None => std::future::pending().await,
    }
}

/// The places where a test can make a job wait.
mod failpoints {
    use super::{Done, Work};
    use crate::process::faults;

    pub(super) async fn hold_before(work: &Work) {
        match work {
            Work::RecordGroupOffsets(_) => faults::hold("record.before").await,
            Work::ReadLetters { .. } => faults::hold("letters.read").await,
            Work::Look { .. } => faults::hold("look.before").await,
            _ => {}
        }
    }

    pub(super) async fn hold_after(done: &Done) {
        match done {
            Done::GroupOffsetsRecorded => faults::hold("record.after").await,
            Done::Applied(_) => faults::hold("batch.applied").await,
            _ => {}
        }
    }
}
