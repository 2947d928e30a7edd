//! The builder's main loop, between Kafka and Postgres.
//!
//! One job at a time talks to Postgres ([`jobs`]): a takeover, a batch, or a note of the group's offsets. Meanwhile records are read ([`reading`])
//! and make the next batch, up to its limits. So no timer makes batches: a lone event is applied at once, and what arrives during a commit goes
//! with the next batch.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use rdkafka::consumer::Consumer as _;
use service::{Readiness, Shutdown};
use tokio::task::JoinHandle;

use crate::builder::assignment::{Assignment, Limits};
use crate::builder::continuity::Watch;
use crate::builder::group::GroupOffsets;
use crate::builder::jobs::Job;
use crate::builder::parting::{Parted, Parting};
use crate::builder::paused_partitions::PausedPartitions;
use crate::builder::takeover::Question;
use crate::builder::waiting::{Found, WaitingPartitions};
use crate::contract::Contracts;
use crate::contract::place::TopicPartition;
use crate::contract::position::Reached;
use crate::kafka::{GroupConsumer, Observer};
use crate::postgres::outage::Outage;
use crate::process::failure::Failure;
use crate::process::measure::Trouble;
use crate::views::database::Database;
use crate::views::pauses::Paused;

pub mod assignment;
pub mod beginning;
pub mod claim;
pub mod continuity;
mod every_second;
pub mod group;
mod group_commit;
mod jobs;
pub mod lag;
mod look;
mod membership;
pub mod parting;
mod paused;
pub mod paused_partitions;
mod reading;
mod stop;
mod taken;
pub mod takeover;
pub(crate) mod topics;
pub mod waiting;

/// How often the loop looks at everything that no event tells it, see [`every_second`]. Nothing of that has to be known sooner.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

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
    /// The waiting partitions of which Kafka has told enough by now, so that they can be read.
    found: Option<Found>,
    watch: Watch,
    parting: Parting,
    /// Partitions whose log now has other records than those that were read from it. Still to be stored in Postgres.
    parted: Vec<Parted>,
    /// The partitions of `assignment`, sorted.
    places: Vec<TopicPartition>,
    /// `None` while a job uses it.
    database: Option<Database>,
    job: Option<Job>,
    /// What the job asks Kafka, and whether Kafka has answered.
    question: Arc<Question>,
    /// Generation and partitions of an assignment that has not been taken over.
    claim: Option<(u64, Vec<TopicPartition>)>,
    /// When to subscribe again, after this process has left its group.
    rejoin_at: Option<Instant>,
    /// Offsets that were sent to Kafka for the group.
    group_offsets: GroupOffsets,
    group_sent_at: Instant,
    group_commit: Option<JoinHandle<Vec<Reached>>>,
    /// The offsets that Kafka has acknowledged. Still to be stored in Postgres.
    group_acknowledged: Vec<Reached>,
    /// Keys whose events this process parks, though their dead letters may be gone. The table of letters is read before the next batch.
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
            kafka: Outage::of("kafka", Trouble::Kafka, readiness.clone()),
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
    /// The catalog has other views now, or a new Kafka client is needed ([`Failure::Client`], [`Failure::OutdatedClient`]: the batch in hand
    /// has ended, and another builder may begin).
    pub async fn run(mut self, shutdown: Shutdown) -> Result<(), Failure> {
        let ended = self.run_loop(shutdown).await;
        if matches!(ended, Ok(()) | Err(Failure::Client(_) | Failure::OutdatedClient)) {
            self.stop().await;
        }
        ended
    }

    async fn run_loop(&mut self, mut shutdown: Shutdown) -> Result<(), Failure> {
        let consumer = self.consumer.clone();
        self.subscribe()?;
        let mut records = consumer.stream();
        let mut look_interval = tokio::time::interval(LOOK_INTERVAL);
        loop {
            self.start_next_job();
            tokio::select! {
                // The arms are tried in this order, and the first one that is ready runs. Records come last, since some are nearly always there.
                biased;
                () = shutdown.triggered() => return Ok(()),
                ended = jobs::end_of(&mut self.job) => self.job_ended(ended)?,
                () = consumer.context().changed() => self.assignment_changed(),
                answer = parting::answer_to(&mut self.parting) => self.handle_answer_about_logs(answer),
                _ = look_interval.tick() => self.look_at_everything()?,
                // While Postgres is away and the next batch is full, nothing asks Kafka's client for records. After `max.poll.interval.ms` it leaves the group.
                // Nothing is lost by that: positions move in Postgres alone. When there is room again, the client joins again, and the partitions are claimed.
                Some(first) = records.next(), if self.assignment.has_room() => self.take_records(first, &mut records)?,
            }
        }
    }
}
