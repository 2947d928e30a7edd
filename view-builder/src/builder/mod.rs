//! The loop that joins Kafka and Postgres.
//!
//! One job at a time talks to Postgres, as a task that owns the connection: a takeover, a batch, or a note of the group's
//! offsets. Records are read meanwhile and make the next batch, up to its limits. So there is no timer: a lone event goes
//! at once, and what arrives during a commit goes with the next one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use service::{Readiness, Shutdown, clock};
use tokio::task::{JoinError, JoinHandle};

use crate::apply::{Applied, GivenUp};
use crate::builder::assignment::{Assignment, Limits, Record};
use crate::builder::claim::{LETTERS_COUNTED, Look};
use crate::builder::continuity::Watch;
use crate::builder::group::GroupOffsets;
use crate::builder::parting::{Parted, Parting};
use crate::builder::paused_partitions::PausedPartitions;
use crate::builder::takeover::{Question, TakenOver, begin_found, take_over};
use crate::builder::waiting::{Found, WaitingPartitions};
use crate::contract::Contracts;
use crate::contract::place::TopicPartition;
use crate::contract::position::Reached;
use crate::contract::record;
use crate::kafka::{self, GroupConsumer, Observer};
use crate::letters::OfKey;
use crate::postgres::outage::Outage;
use crate::process::failure::Failure;
use crate::process::faults;
use crate::process::measure;
use crate::views::database::Database;
use crate::views::pauses::Paused;

pub mod assignment;
pub mod beginning;
pub mod claim;
pub mod continuity;
pub mod group;
pub mod lag;
pub mod parting;
mod paused;
pub mod paused_partitions;
mod stop;
mod taken;
pub mod takeover;
pub(crate) mod topics;
pub mod waiting;

const TICK: Duration = Duration::from_secs(1);
/// How often the group's offsets are committed to Kafka.
const GROUP_COMMIT_INTERVAL: Duration = Duration::from_secs(3);
/// How often this process looks at what others may have changed.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// Records handled before the loop looks at everything else again.
const RECORDS_AT_ONCE: usize = 500;

/// A task that has the connection to Postgres.
type Job = JoinHandle<(Database, Result<Done, Failure>)>;

/// What a job has done.
enum Done {
    TakenOver {
        generation: u64,
        taken: Option<TakenOver>,
    },
    /// Partitions begin that had waited for Kafka.
    Begun {
        generation: u64,
        taken: TakenOver,
    },
    Applied(Applied),
    /// What the table of dead letters says of some keys.
    Letters {
        generation: u64,
        keys: Vec<OfKey>,
    },
    /// What others have changed, as of this generation.
    Looked {
        generation: u64,
        look: Option<Look>,
        /// The views that are paused; none where Postgres does not tell now.
        paused: Option<Vec<Paused>>,
    },
    Recorded,
    Reconnected,
}

/// Keeps the views with the partitions that the group assigns to this process.
pub struct Builder {
    consumer: Arc<GroupConsumer>,
    topics: Vec<String>,
    contracts: Arc<Contracts>,
    owner: String,
    readiness: Readiness,
    kafka: Outage,
    assignment: Assignment,
    /// The partitions that are held and not read.
    paused_partitions: PausedPartitions,
    /// The partitions that are held and cannot be read yet.
    waiting_partitions: WaitingPartitions,
    /// Those of them that can be begun now.
    found: Option<Found>,
    watch: Watch,
    parting: Parting,
    /// Partitions that have other records than those that were read: to be written down.
    parted: Vec<Parted>,
    /// The partitions of `assignment`, sorted.
    places: Vec<TopicPartition>,
    /// None while a job has it.
    database: Option<Database>,
    job: Option<(Job, Instant)>,
    /// Whether the job waits for Kafka.
    question: Arc<Question>,
    /// Generation and partitions of an assignment that has not been taken over.
    claim: Option<(u64, Vec<TopicPartition>)>,
    /// When to subscribe again, after this process has left its group.
    rejoin_at: Option<Instant>,
    /// Offsets that were sent to Kafka for the group.
    group_offsets: GroupOffsets,
    group_sent_at: Instant,
    group_commit: Option<JoinHandle<Vec<Reached>>>,
    /// What Kafka has acknowledged, to be written down in Postgres.
    group_acknowledged: Vec<Reached>,
    /// Keys that this process takes to wait, and that may wait no longer: the table is asked before the next batch.
    unsure_keys: Vec<(TopicPartition, Bytes)>,
    /// When this process last looked at what others may have changed.
    looked_at: Option<Instant>,
    last_error: String,
    /// The views that were paused at the last look.
    paused: Vec<Paused>,
}

impl Builder {
    #[must_use]
    pub fn new(
        consumer: Arc<GroupConsumer>,
        observer: Arc<Observer>,
        parting: Parting,
        database: Database,
        limits: Limits,
        owner: String,
        readiness: Readiness,
    ) -> Self {
        Self {
            consumer,
            topics: database.topics.clone(),
            contracts: database.contracts.clone(),
            owner,
            kafka: Outage::of("kafka", readiness.clone()),
            paused_partitions: PausedPartitions::new(readiness.clone()),
            waiting_partitions: WaitingPartitions::new(readiness.clone()),
            found: None,
            readiness,
            assignment: Assignment::new(limits),
            watch: Watch::new(observer),
            parting,
            parted: Vec::new(),
            places: Vec::new(),
            database: Some(database),
            job: None,
            question: Arc::default(),
            claim: None,
            rejoin_at: None,
            group_offsets: GroupOffsets::default(),
            group_sent_at: Instant::now(),
            group_commit: None,
            group_acknowledged: Vec::new(),
            unsure_keys: Vec::new(),
            looked_at: None,
            last_error: String::new(),
            paused: Vec::new(),
        }
    }

    /// Keeps the views until `shutdown`; then ends the batch in hand and leaves the group.
    ///
    /// # Errors
    /// The database keeps other views, or another Kafka client is needed ([`Failure::Client`], [`Failure::OutdatedClient`]: the batch in hand
    /// has ended, and another builder may begin).
    pub async fn run(mut self, shutdown: Shutdown) -> Result<(), Failure> {
        let ended = self.keep(shutdown).await;
        if matches!(ended, Ok(()) | Err(Failure::Client(_) | Failure::OutdatedClient)) {
            self.stop().await;
        }
        ended
    }

    async fn keep(&mut self, mut shutdown: Shutdown) -> Result<(), Failure> {
        let consumer = self.consumer.clone();
        self.subscribe()?;
        let mut records = consumer.stream();
        let mut tick = tokio::time::interval(TICK);
        loop {
            self.start_job();
            tokio::select! {
                biased;
                () = shutdown.triggered() => return Ok(()),
                ended = ended(&mut self.job) => self.ended(ended)?,
                () = consumer.context().changed() => self.reassigned(),
                answered = parting::answered(&mut self.parting) => {
                    let told = self.parting.told(answered);
                    self.told_of_logs(told);
                }
                _ = tick.tick() => self.tick()?,
                Some(record) = records.next(), if self.assignment.has_room() => {
                    self.received(record)?;
                    for _ in 1..RECORDS_AT_ONCE {
                        if !self.assignment.has_room() {
                            break;
                        }
                        let Some(Some(record)) = records.next().now_or_never() else {
                            break;
                        };
                        self.received(record)?;
                    }
                }
            }
        }
    }

    fn subscribe(&mut self) -> Result<(), Failure> {
        self.rejoin_at = None;
        let topics: Vec<&str> = self.topics.iter().map(String::as_str).collect();
        self.consumer
            .subscribe(&topics)
            .map_err(|err| anyhow!("cannot subscribe to {}: {err}", self.topics.join(", ")).into())
    }

    /// Leaves the group for a moment: the next assignment claims and verifies everything anew.
    fn rejoin(&mut self) {
        self.consumer.context().forget();
        kafka::decline(&self.consumer);
        self.consumer.unsubscribe();
        self.let_go();
        self.claim = None;
        self.rejoin_at = Some(Instant::now() + TICK);
    }

    fn start_job(&mut self) {
        let Some(mut database) = self.database.take() else {
            return;
        };
        let job = if let Some((generation, places)) = self.claim.take() {
            let (asking, owner) = (self.asking(), self.owner.clone());
            tokio::spawn(async move {
                let taken = take_over(&mut database, &asking, generation, &places, &owner).await;
                (database, taken.map(|taken| Done::TakenOver { generation, taken }))
            })
        } else if let Some(found) = self.found.take() {
            let generation = found.generation;
            tokio::spawn(async move {
                let taken = begin_found(&mut database, found).await;
                (database, taken.map(|taken| Done::Begun { generation, taken }))
            })
        } else if !self.parted.is_empty() {
            let parted = std::mem::take(&mut self.parted);
            tokio::spawn(async move {
                database.note_parted(&parted).await;
                (database, Ok(Done::Recorded))
            })
        } else if !self.group_acknowledged.is_empty() {
            let offsets = std::mem::take(&mut self.group_acknowledged);
            tokio::spawn(async move {
                faults::hold("record.before").await;
                database.record(&offsets).await;
                faults::hold("record.after").await;
                (database, Ok(Done::Recorded))
            })
        } else if !self.unsure_keys.is_empty() {
            let (generation, keys) = (
                self.consumer.context().generation(),
                std::mem::take(&mut self.unsure_keys),
            );
            tokio::spawn(async move {
                faults::hold("letters.read").await;
                let keys = database.letters_of(&keys).await;
                (database, Ok(Done::Letters { generation, keys }))
            })
        } else if self.looked_at.is_none_or(|at| at.elapsed() >= LOOK_INTERVAL) {
            self.looked_at = Some(Instant::now());
            let generation = self.consumer.context().generation();
            let held: Vec<_> = self
                .assignment
                .claims()
                .chain(self.paused_partitions.claims())
                .chain(self.waiting_partitions.claims())
                .collect();
            tokio::spawn(async move {
                faults::hold("look.before").await;
                let look = database.look(&held).await;
                let paused = database.paused().await;
                (
                    database,
                    Ok(Done::Looked {
                        generation,
                        look,
                        paused,
                    }),
                )
            })
        } else if let Some(batch) = self.assignment.next_batch() {
            tokio::spawn(async move {
                let applied = database.apply(batch).await;
                faults::hold("batch.applied").await;
                (database, Ok(Done::Applied(applied)))
            })
        } else if database.is_cut_off() {
            // An idle builder has no statement that would fail, and readiness has to tell the truth all the same.
            tokio::spawn(async move {
                database.session().await;
                (database, Ok(Done::Reconnected))
            })
        } else {
            self.database = Some(database);
            return;
        };
        self.job = Some((job, Instant::now()));
    }

    fn ended(&mut self, ended: Result<(Database, Result<Done, Failure>), JoinError>) -> Result<(), Failure> {
        self.job = None;
        self.readiness.ready("batch");
        let (database, done) = ended.map_err(|err| anyhow!("a job failed: {err}"))?;
        if !Arc::ptr_eq(&self.contracts, &database.contracts) {
            self.contracts = database.contracts.clone();
            if database.topics != self.topics {
                // The group's next assignment has the topics of the views that are kept now.
                self.topics.clone_from(&database.topics);
                self.rejoin();
            }
        }
        self.database = Some(database);
        match done? {
            Done::TakenOver {
                generation,
                taken: Some(taken),
            } if generation == self.consumer.context().generation() => self.assign(generation, taken),
            Done::Begun { generation, taken } if generation == self.consumer.context().generation() => {
                self.assign_more(taken);
            }
            Done::Letters { generation, keys } if generation == self.consumer.context().generation() => {
                self.assignment.know(keys);
                self.read_on();
            }
            Done::Looked {
                generation,
                look,
                paused,
            } => {
                self.tell_paused(paused);
                if generation == self.consumer.context().generation() {
                    self.looked(look);
                }
            }
            Done::TakenOver { .. } | Done::Begun { .. } | Done::Letters { .. } | Done::Recorded | Done::Reconnected => {
            }
            Done::Applied(applied) => self.applied(applied),
        }
        Ok(())
    }

    fn applied(&mut self, applied: Applied) {
        for (place, next_offset) in &applied.reached {
            self.assignment.committed(place, *next_offset);
        }
        let reads_again = !applied.refused.is_empty();
        for refused in applied.refused {
            self.assignment.refused(refused);
        }
        match applied.given_up {
            None if reads_again => self.read_on(),
            None => {}
            Some(GivenUp::OtherLetters(keys)) => {
                tracing::info!(
                    keys = keys.len(),
                    "an operator has taken dead letters away: reading again from the positions"
                );
                self.assignment.given_up();
                self.read_on();
                self.unsure_keys = keys;
            }
            Some(GivenUp::Fenced) => self.fenced(),
        }
    }

    fn fenced(&mut self) {
        measure::fenced();
        tracing::warn!("somebody has claimed a partition of this process or set it back: joining the group again");
        self.rejoin();
    }

    /// Reads every partition from its next offset on, which may be an earlier one than Kafka would send next.
    fn read_on(&mut self) {
        if let Err(err) = kafka::assign(&self.consumer, self.assignment.next_reads()) {
            tracing::warn!(error = %err, "partitions cannot be assigned: joining the group again");
            self.rejoin();
        }
    }

    /// An idle process would not notice by its batches what an operator has done; a busy one notices both ways.
    fn looked(&mut self, look: Option<Look>) {
        let Some(look) = look else { return };
        measure::letters(look.letters);
        paused_partitions::notice(&self.readiness, &look.notices);
        if look.letters == 0 {
            self.readiness.fine("dead-letters");
        } else {
            let count = look.letters;
            let at_least = if count < LETTERS_COUNTED { "" } else { "at least " };
            let warning =
                format!("{at_least}{count} events wait in view_dead_letters: see view-builder dead-letters list");
            self.readiness.warn("dead-letters", warning);
        }
        if look.is_fenced {
            self.fenced();
        }
    }

    fn reassigned(&mut self) {
        let (generation, places) = self.consumer.context().assigned();
        tracing::info!(partitions = places.len(), "the group has assigned partitions");
        self.let_go();
        self.group_acknowledged.clear();
        if self.rejoin_at.is_some() {
            // From before this process left.
            kafka::decline(&self.consumer);
            return;
        }
        if places.is_empty() {
            self.paused_partitions.replace(Vec::new());
            self.waiting_partitions.tell(&[], &[]);
        }
        self.claim = (!places.is_empty()).then_some((generation, places));
    }

    fn received(&mut self, record: Result<BorrowedMessage<'_>, KafkaError>) -> Result<(), Failure> {
        match record {
            Ok(record) => {
                self.take(&record);
                Ok(())
            }
            Err(KafkaError::MessageConsumptionFatal(code)) => Err(Failure::Client(code)),
            Err(KafkaError::MessageConsumption(
                RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange,
            )) => {
                tracing::warn!("kafka does not have the next offset of a partition: verifying all positions");
                self.rejoin();
                Ok(())
            }
            Err(err) => {
                let error = err.to_string();
                if self.last_error != error {
                    tracing::warn!(error, "kafka reports an error; it is tried again");
                    self.last_error = error;
                }
                Ok(())
            }
        }
    }

    fn take(&mut self, record: &BorrowedMessage<'_>) {
        let at = (record.topic(), record.partition());
        let Ok(index) = self
            .places
            .binary_search_by(|place| (&*place.topic, place.partition).cmp(&at))
        else {
            return;
        };
        let Some(contract) = self.contracts.get(record.topic()) else {
            return;
        };
        let (offset, epoch) = (record.offset(), kafka_client::leader_epoch(record));
        if !self.parting.takes(&self.places[index], offset, epoch) {
            self.assignment.hold_back(&self.places[index], true);
            return;
        }
        let taken = Record {
            offset,
            read_us: clock::now_us(),
            epoch,
            key: record::waiting_key(record.key()),
            event: record::event(contract, record),
            letter: |reason| record::letter(record, reason),
        };
        if let Some(reason) = self.assignment.take(&self.places[index], taken) {
            measure::dead_letter(record.topic());
            tracing::error!(
                topic = record.topic(),
                partition = record.partition(),
                offset = record.offset(),
                reason,
                "an event cannot be applied: it goes to view_dead_letters, and its key waits behind it"
            );
        }
    }

    fn tick(&mut self) -> Result<(), Failure> {
        if self.consumer.context().is_outdated(self.watch.is_refused()) {
            return Err(Failure::OutdatedClient);
        }
        match self.consumer.context().trouble() {
            Some(reason) => self.kafka.goes_on(reason),
            None => self.kafka.ends(),
        }
        self.tell_slow_job();
        let held = self.assignment.positions().count() + self.paused_partitions.all().len();
        measure::partitions(held + self.waiting_partitions.len());
        let context = self.consumer.context();
        lag::observe(
            clock::now_us(),
            self.assignment
                .positions()
                .filter_map(|position| Some((position, context.end(position.place)?))),
        );
        self.commit_group_offsets();
        if let Some(reason) = self
            .watch
            .look(self.assignment.positions(), self.paused_partitions.all())
        {
            tracing::warn!(reason, "joining the group again, to look at all positions anew");
            self.rejoin();
        }
        self.look_for_waiting();
        self.parting.ask();
        if self.rejoin_at.is_some_and(|at| at <= Instant::now()) {
            self.subscribe()?;
        }
        Ok(())
    }

    /// Tells Kafka how far the group is, for tools that show its lag; takes note of what Kafka has acknowledged.
    fn commit_group_offsets(&mut self) {
        if let Some(commit) = &mut self.group_commit {
            let Some(acknowledged) = commit.now_or_never() else {
                return;
            };
            self.group_commit = None;
            // What belongs to an earlier assignment has an epoch that is gone.
            self.group_acknowledged = acknowledged.unwrap_or_default();
            if self.group_acknowledged.is_empty() {
                self.group_offsets.sent_in_vain();
            }
        }
        // librdkafka keeps what it cannot send; a static member that has lost its session by then sends it under no name, and is
        // expelled for that.
        if self.group_sent_at.elapsed() < GROUP_COMMIT_INTERVAL || self.consumer.context().trouble().is_some() {
            return;
        }
        self.group_sent_at = Instant::now();
        let due = self.group_offsets_due();
        if !due.is_empty() {
            let consumer = self.consumer.clone();
            self.group_commit = Some(tokio::task::spawn_blocking(move || kafka::commit(&consumer, due)));
        }
    }

    fn group_offsets_due(&mut self) -> Vec<Reached> {
        let context = self.consumer.context();
        let held = self
            .assignment
            .positions()
            .map(|position| (position, context.end(position.place)));
        self.group_offsets.due(held)
    }
}

/// Waits for the job; for ever where there is none.
async fn ended(job: &mut Option<(Job, Instant)>) -> Result<(Database, Result<Done, Failure>), JoinError> {
    match job {
        Some((job, _)) => job.await,
        None => std::future::pending().await,
    }
}
