//! The loop: read, decode, publish, confirm.
//!
//! One task owns the socket, the decoder and the producers. Each producer has a thread that ends its Kafka transactions.
//!
//! While a transaction is being flushed, nothing may be sent to Kafka. For the first moment the loop does not read the socket, so that the kernel gathers
//! what comes and the next read gets it in one piece. After that it reads ahead into a bounded buffer. It answers Postgres however long Kafka takes.

mod metrics;
mod poison;
mod status;
mod waiting;

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::Context;
use service::{Readiness, Shutdown};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use self::metrics::StreamMetrics;
use self::poison::{ParkedCounts, Parking};
use self::status::CONFIRM_INTERVAL;
use crate::continuity::checkpoint::{Checkpoint, FORMAT, State};
use crate::continuity::progress::{Progress, Published};
use crate::guard::Guard;
use crate::intake::{Intake, Pause};
use crate::kafka::{Amount, Committed, Publisher};
use crate::process::stop::{RelayError, Stop};
use crate::relay::pause::PauseGate;
use crate::relay::startup::Proven;
use crate::relay::topic_watch::TopicWatch;
use crate::relay::unpublished::{self, seconds_since};
use crate::settings::Config;
use crate::topics::destination;
use pg_replication::ReplicationStream;

/// librdkafka's queue is full: the same record is offered again after this time.
const QUEUE_FULL_WAIT: Duration = Duration::from_millis(1);
/// How long a stop waits until the open transaction has committed.
const STOP_PATIENCE: Duration = Duration::from_secs(3);
/// How long a stop waits for the guard's last look. If Postgres is gone, there is none.
const LAST_LOOK_PATIENCE: Duration = Duration::from_millis(500);

/// A running stream.
pub struct Streaming<'c> {
    config: &'c Config,
    stream: ReplicationStream,
    publisher: Publisher,
    intake: Intake,
    checkpoint: Checkpoint,
    guard: Guard,
    topics: TopicWatch,
    pause: PauseGate,
    /// The transactions that are being committed, the oldest first.
    committing: VecDeque<Committing>,
    /// Bytes of the last read; 0 if there was nothing to read.
    last_read_bytes: usize,
    /// When the server last sent something, or when we last did not read the socket and so could not know.
    last_heard_at: Instant,
    status_at: Instant,
    status_due: Instant,
    checkpointed_at: Instant,
    probe: Option<JoinHandle<bool>>,
    probed_at: Instant,
    metrics: StreamMetrics,
    parking: Parking,
}

/// A Kafka transaction that is being committed.
struct Committing {
    published: Published,
    rows: u64,
    /// What it has for each topic of rows.
    by_topic: Vec<(String, Amount)>,
    parked: ParkedCounts,
    /// Commit time of its oldest row, as that of the newest.
    oldest_commit_us: Option<i64>,
    /// Commit time of its newest row, microseconds since 1970; `None` if it has a checkpoint and no row.
    newest_commit_us: Option<i64>,
}

impl<'c> Streaming<'c> {
    #[must_use]
    pub fn new(config: &'c Config, transaction_bytes: u64, proven: Proven, pause: PauseGate) -> Self {
        let now = Instant::now();
        let incarnation = uuid::Uuid::new_v4().to_string();
        let progress = Progress::resume(proven.checkpoint.published);
        let mut intake = Intake::new(config, progress, &proven.checkpoint.lineage, transaction_bytes);
        let parking = Parking::resume(config, proven.parked, &proven.checkpoint, &mut intake);
        Self {
            config,
            stream: proven.stream,
            publisher: proven.publisher,
            intake,
            checkpoint: Checkpoint {
                format: FORMAT,
                state: State::Running,
                incarnation,
                ..proven.checkpoint
            },
            guard: proven.guard,
            topics: proven.topics,
            pause,
            committing: VecDeque::new(),
            last_read_bytes: 0,
            last_heard_at: now,
            status_at: now,
            status_due: now,
            checkpointed_at: now,
            probe: None,
            probed_at: now,
            metrics: StreamMetrics::new(),
            parking,
        }
    }

    /// Streams until `shutdown`.
    ///
    /// # Errors
    /// A [`Stop`], or an error after which the relay has to begin again from the checkpoint.
    pub async fn run(mut self, readiness: &Readiness, shutdown: &mut Shutdown) -> Result<(), RelayError> {
        // Without tokio's budget for a task: a forced yield would look like a silent socket, and close batches early.
        let ended = tokio::task::unconstrained(self.stream_until_shutdown(readiness, shutdown)).await;
        unpublished::forget_unless_unpublished();
        match ended {
            Ok(()) => {}
            // Nothing more is committed: the rows in the open transaction would go to a topic that has lost the rows before them.
            Err(RelayError::Stop(stop @ Stop::TopicRecreated { .. })) => return Err(stop.into()),
            Err(RelayError::Stop(stop)) => {
                // If a column is missing in the stream, somebody may have altered the publication. The guard knows.
                let stop = match stop {
                    Stop::Config { .. } => self.guard.explain_stop(stop).await,
                    other => other,
                };
                self.note_stop(&stop);
                // The rows before the row that stops us are good. They are published, so that this row is the first one that is not.
                if let Err(err) = self.commit_and_confirm_rest().await {
                    // Kafka may refuse a row before it as well. The next start publishes the good ones, and meets both rows again.
                    if stop.poison().is_some() {
                        return Err(err);
                    }
                    tracing::warn!(
                        error = format!("{err:#}"),
                        "the last transaction before the stop did not commit"
                    );
                }
                return Err(stop.into());
            }
            Err(err) => return Err(err),
        }
        self.commit_and_confirm_rest().await?;
        self.stream.close().await;
        Ok(())
    }

    /// The loop. Each turn first does what is due by the clock, then one of: wait while paused, wait for Kafka, decode what was read.
    async fn stream_until_shutdown(
        &mut self,
        readiness: &Readiness,
        shutdown: &mut Shutdown,
    ) -> Result<(), RelayError> {
        while !shutdown.is_triggered() {
            self.do_what_is_due(readiness).await?;
            if !self.pause.is_open() {
                self.wait_while_paused(shutdown).await?;
                continue;
            }
            if !self.publisher.can_send() {
                self.wait_for_kafka(shutdown).await?;
                continue;
            }
            let (consumed, pause) = self.intake.decode(self.stream.buffer(), &mut self.publisher)?;
            self.stream.consume(consumed);
            match pause {
                Pause::BatchFull => self.close_batch()?,
                Pause::BufferUsed => self.read_or_close_batch(shutdown).await?,
                Pause::UnknownTopic { route, topic } => self.resolve_topic(route, topic).await?,
                Pause::QueueFull => {
                    self.publisher.poll();
                    sleep(QUEUE_FULL_WAIT).await;
                }
                Pause::Poison(stop) => self.handle_poison_row(stop).await?,
                Pause::Claimed(claim) => self.handle_claimed_row(claim).await?,
            }
        }
        Ok(())
    }

    /// Orders the commit of the open Kafka transaction, with the checkpoint as its last record.
    fn close_batch(&mut self) -> Result<(), RelayError> {
        let published = self.intake.progress.decoded();
        let batch = self.intake.batch;
        self.checkpoint.published = published;
        if !batch.is_empty() {
            self.checkpoint.newest_commit_us = Some(batch.newest_commit_us);
        }
        self.checkpoint.parking.pass(&published);
        self.checkpoint.parking.rows = self.parking.rows;
        self.publisher.commit(
            &self.config.sink.checkpoint_topic,
            &self.config.checkpoint_key(),
            &self.checkpoint.to_json(),
        )?;
        let parked = self.parking.take_counts();
        self.committing.push_back(Committing {
            published,
            rows: batch.rows - parked.sum(),
            by_topic: self.intake.known_routes.take_sent(),
            parked,
            oldest_commit_us: (!batch.is_empty()).then_some(batch.oldest_commit_us),
            newest_commit_us: (!batch.is_empty()).then_some(batch.newest_commit_us),
        });
        self.intake.batch.clear();
        self.checkpointed_at = Instant::now();
        Ok(())
    }

    /// Notes a step of the oldest commit: it has committed, or (`None`) only its records are acknowledged.
    fn note_commit_step(&mut self, step: Option<Committed>) -> Result<(), RelayError> {
        let Some(Committed { took }) = step else {
            return Ok(());
        };
        let transaction = self
            .committing
            .pop_front()
            .context("kafka committed what was not ordered")?;
        self.intake.progress.note_kafka_commit(transaction.published);
        self.status_due = self.status_due.min(self.status_at + CONFIRM_INTERVAL);
        self.metrics.records.increment(transaction.rows);
        metrics::count_by_topic(&transaction.by_topic);
        self.parking.note_committed(transaction.parked);
        self.metrics.transactions.increment(1);
        self.metrics.commit_seconds.record(took);
        if let Some(commit_us) = transaction.newest_commit_us {
            self.metrics.commit_to_kafka_seconds.record(seconds_since(commit_us));
        }
        if self.publisher.is_disturbed() {
            // It is committed. But librdkafka may have sent the EndTxn twice, and the late one must not end our next transaction.
            return Err(anyhow::anyhow!("the connection to kafka was disturbed: the producers are replaced").into());
        }
        Ok(())
    }

    /// Finds the topic of a route that is new to this stream, and creates it if `--create-topics` says so.
    ///
    /// Postgres hears nothing meanwhile. If Kafka's answers take longer than `wal_sender_timeout`, Postgres ends the session, and the relay begins again from
    /// the checkpoint. Nothing is lost or repeated: the open Kafka transaction was not committed, and a relay that has taken the slot over has fenced this one.
    async fn resolve_topic(&mut self, route: String, topic: String) -> Result<(), RelayError> {
        let found = destination::find_destination(self.config, &mut self.checkpoint.lineage, &route, &topic).await?;
        self.intake.known_routes.insert(route, found);
        self.topics.compare_with(&self.checkpoint.lineage);
        Ok(())
    }

    /// Commits the open transaction and confirms what is published, or gives up after [`STOP_PATIENCE`].
    async fn commit_and_confirm_rest(&mut self) -> Result<(), RelayError> {
        let finished = tokio::time::timeout(STOP_PATIENCE, async {
            self.wait_for_commits().await?;
            if !self.intake.batch.is_empty() || self.parking.stop_is_new {
                self.close_batch()?;
                self.wait_for_commits().await?;
            }
            let verified = self.guard.look_now(LAST_LOOK_PATIENCE).await;
            self.intake.progress.verify_up_to(verified);
            self.send_status(false).await
        });
        match finished.await {
            Ok(outcome) => outcome,
            Err(_) => {
                // Nothing of that transaction is confirmed. The next start aborts it and goes on from the checkpoint.
                tracing::warn!("kafka did not answer in time; the transaction in hand is left to the next start");
                Ok(())
            }
        }
    }

    /// Waits for the transactions that are being committed.
    async fn wait_for_commits(&mut self) -> Result<(), RelayError> {
        while self.publisher.is_ending() {
            let step = self.publisher.next_commit_step().await?;
            self.note_commit_step(step)?;
        }
        Ok(())
    }
}
