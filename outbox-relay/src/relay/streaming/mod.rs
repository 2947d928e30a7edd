//! The loop: read, decode, publish, confirm.
//!
//! One task owns the socket, the decoder and the producers; transactions are ended by threads of their own. While one is being flushed and
//! nothing may be sent, the socket is left alone for a moment, so that the kernel gathers what comes and the next read gets it in one
//! piece; after that it is read into a bounded buffer, and Postgres is answered however long Kafka takes.

mod poison;

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::Context;
use service::clock::now_us;
use service::{Readiness, Shutdown};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use self::poison::{ParkedCounts, Parking};
use crate::continuity::checkpoint::{Checkpoint, FORMAT, State};
use crate::continuity::progress::{Progress, Published};
use crate::guard::Guard;
use crate::intake::batch::Situation;
use crate::intake::{Intake, Pause};
use crate::kafka::{Committed, Publisher};
use crate::process::faults;
use crate::process::stop::{RelayError, Stop};
use crate::relay::keepalive::STATUS_INTERVAL;
use crate::relay::pause::PauseGate;
use crate::relay::startup::Proven;
use crate::relay::topic_watch::TopicWatch;
use crate::settings::Config;
use crate::topics::destination;
use pg_replication::Lsn;
use pg_replication::{ReplicationStream, StandbyStatus};

/// Confirmations come at most this often.
const CONFIRM_INTERVAL: Duration = Duration::from_millis(50);
/// How long the socket is left alone while a commit is under way.
const GATHER: Duration = Duration::from_millis(50);
/// How much is read ahead while a commit is under way, in bytes.
const READ_AHEAD_BYTES: usize = 4 << 20;
/// While catching up, a short nap lets the server send more at once: a third less CPU, a quarter more rows.
const NAP: Duration = Duration::from_micros(500);
const NAP_BELOW_BYTES: usize = 64 * 1024;
/// A source transaction with more rows than this is a large one.
const LARGE_TRANSACTION_ROWS: u64 = 1_000;
/// With nothing to publish, the server's position is checkpointed and confirmed this often, or after this much WAL.
const IDLE_CHECKPOINT_INTERVAL: Duration = Duration::from_secs(10);
const IDLE_CHECKPOINT_BYTES: u64 = 16 << 20;
/// A silent server is asked whether it lives, and then given up.
const PING_AFTER: Duration = Duration::from_secs(20);
const DEAD_AFTER: Duration = Duration::from_secs(60);
/// A commit that takes longer makes the relay not ready.
const STALLED_AFTER: Duration = Duration::from_secs(5);
/// With nothing to commit, Kafka is asked this often whether it is there.
const PROBE_INTERVAL: Duration = Duration::from_secs(3);
/// How long a stop waits for the transaction in hand.
const STOP_PATIENCE: Duration = Duration::from_secs(3);
/// Longest wait for the guard at the end, in vain where Postgres is gone.
const LAST_LOOK_PATIENCE: Duration = Duration::from_millis(500);
const TICK: Duration = Duration::from_secs(1);

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
    last_read_bytes: usize,
    heard_at: Instant,
    status_at: Instant,
    status_due: Instant,
    checkpointed_at: Instant,
    probe: Option<JoinHandle<bool>>,
    probed_at: Instant,
    metrics: StreamMetrics,
    parking: Parking,
}

/// What a transaction that is being committed says.
struct Committing {
    published: Published,
    rows: u64,
    parked: ParkedCounts,
    /// Commit time of its newest row, microseconds since 1970; of an idle checkpoint none.
    newest_commit_us: Option<i64>,
}

struct StreamMetrics {
    records: metrics::Counter,
    transactions: metrics::Counter,
    skipped: metrics::Counter,
    commit_seconds: metrics::Histogram,
    commit_to_kafka_seconds: metrics::Histogram,
    unconfirmed_bytes: metrics::Gauge,
}

impl StreamMetrics {
    fn new() -> Self {
        metrics::describe_counter!(
            "relay_published_records_total",
            "Records in committed Kafka transactions."
        );
        metrics::describe_counter!(
            "relay_transactions_total",
            "Committed Kafka transactions, idle checkpoints included."
        );
        metrics::describe_counter!(
            "relay_skipped_rows_total",
            "Rows that the slot sent again and that were published already."
        );
        metrics::describe_histogram!(
            "relay_kafka_commit_seconds",
            "From the order to commit until the broker's answer."
        );
        metrics::describe_histogram!(
            "relay_commit_to_kafka_seconds",
            "From the commit in Postgres of a transaction's newest row until it is visible to a read_committed reader."
        );
        metrics::describe_gauge!("relay_unconfirmed_bytes", "WAL that was read and is not confirmed yet.");
        metrics::describe_gauge!("relay_leader", "1 while this relay has the slot and streams.");
        metrics::describe_counter!(
            "relay_restarts_total",
            "Cycles that began again at the checkpoint after trouble."
        );
        Self {
            records: metrics::counter!("relay_published_records_total"),
            transactions: metrics::counter!("relay_transactions_total"),
            skipped: metrics::counter!("relay_skipped_rows_total"),
            commit_seconds: metrics::histogram!("relay_kafka_commit_seconds"),
            commit_to_kafka_seconds: metrics::histogram!("relay_commit_to_kafka_seconds"),
            unconfirmed_bytes: metrics::gauge!("relay_unconfirmed_bytes"),
        }
    }
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
            heard_at: now,
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
    /// A [`Stop`], or trouble after which a new cycle is to begin.
    pub async fn run(mut self, readiness: &Readiness, shutdown: &mut Shutdown) -> Result<(), RelayError> {
        // The task's turns are its own to divide: a forced yield would look like a silent socket and close batches early.
        match tokio::task::unconstrained(self.turns(readiness, shutdown)).await {
            Ok(()) => {}
            // What is in hand would go to a topic that has lost what comes before it.
            Err(RelayError::Stop(stop @ Stop::TopicRecreated { .. })) => return Err(stop.into()),
            Err(RelayError::Stop(stop)) => {
                // An altered publication may show first in what the stream lacks.
                let stop = match stop {
                    Stop::Config { .. } => self.guard.explain(stop).await,
                    other => other,
                };
                self.note_stop(&stop);
                // What was read before the row that stops us is good: publish it, so that it is the first that is not.
                if let Err(err) = self.finish().await {
                    // A row before it may be no good either: the next start publishes what is, and comes by both again.
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
        self.finish().await?;
        self.stream.close().await;
        Ok(())
    }

    async fn turns(&mut self, readiness: &Readiness, shutdown: &mut Shutdown) -> Result<(), RelayError> {
        while !shutdown.is_triggered() {
            self.housekeeping(readiness).await?;
            if !self.pause.is_open() {
                self.rest(shutdown).await?;
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
                Pause::BufferUsed => self.read(shutdown).await?,
                Pause::UnknownTopic { route, topic } => self.resolve_topic(route, topic).await?,
                Pause::QueueFull => {
                    self.publisher.poll();
                    sleep(Duration::from_millis(1)).await;
                }
                Pause::Poison(stop) => self.poison(stop).await?,
                Pause::Claimed(claim) => self.claimed(claim).await?,
            }
        }
        Ok(())
    }

    /// An operator has paused the relay: ends the transaction in hand, and then only listens, so that the slot stays its own.
    async fn rest(&mut self, shutdown: &mut Shutdown) -> Result<(), RelayError> {
        if !self.intake.batch.is_empty() && self.publisher.can_send() {
            return self.close_batch();
        }
        let has_room = self.stream.buffer().len() < READ_AHEAD_BYTES;
        if !has_room {
            // Nothing can be heard while nothing is read.
            self.heard_at = Instant::now();
        }
        let tick = self.next_tick();
        tokio::select! {
            progressed = self.publisher.progressed() => self.progressed(progressed?)?,
            bytes = self.stream.read(), if has_room => self.was_read(bytes?),
            // Its producers may be broken since: look at them first.
            () = self.pause.changed() => self.status_due = Instant::now(),
            () = sleep_until(tick) => {}
            () = shutdown.triggered() => {}
        }
        Ok(())
    }

    /// The buffer is used up: close the batch, or get more.
    async fn read(&mut self, shutdown: &mut Shutdown) -> Result<(), RelayError> {
        self.stream.reserve_for_next_frame().context("replication stream")?;
        let behind = self.is_behind();
        if behind
            && self.last_read_bytes < NAP_BELOW_BYTES
            && self.last_read_bytes > 0
            && self.stream.buffers_while_napping()
        {
            // Blocks this thread on purpose: it has nothing else to do, and the runtime's timers are too coarse for it.
            std::thread::sleep(NAP);
        }
        let read = self.stream.try_read()?;
        if let Some(bytes) = read {
            faults::point("receive.after")?;
            self.was_read(bytes);
        } else {
            self.last_read_bytes = 0;
        }
        let situation = Situation {
            silent: read.is_none(),
            between_transactions: self.intake.progress.between_transactions(),
            behind,
        };
        if self.intake.batch.should_close(situation) {
            return self.close_batch();
        }
        if read.is_some() {
            return Ok(());
        }
        if self.idle_checkpoint_is_due() {
            return self.close_batch();
        }
        let batch_due = self
            .intake
            .batch
            .due(behind)
            .map_or(self.next_tick(), Instant::from_std);
        let wake = batch_due.min(self.next_tick());
        tokio::select! {
            bytes = self.stream.read() => self.was_read(bytes?),
            progressed = self.publisher.progressed() => self.progressed(progressed?)?,
            () = sleep_until(wake) => {}
            () = shutdown.triggered() => {}
        }
        Ok(())
    }

    /// Nothing may be sent until Kafka has acknowledged, or committed, what is under way.
    async fn wait_for_kafka(&mut self, shutdown: &mut Shutdown) -> Result<(), RelayError> {
        let gathers = self
            .publisher
            .ending_since()
            .is_some_and(|since| since.elapsed() < GATHER);
        let has_room = self.stream.buffer().len() < READ_AHEAD_BYTES;
        if gathers || !has_room {
            // Nothing can be heard while nothing is read.
            self.heard_at = Instant::now();
            tokio::select! {
                progressed = self.publisher.progressed() => self.progressed(progressed?)?,
                () = sleep(if gathers { GATHER } else { TICK.min(CONFIRM_INTERVAL * 4) }) => {}
                () = shutdown.triggered() => {}
            }
            return Ok(());
        }
        let tick = self.next_tick();
        tokio::select! {
            progressed = self.publisher.progressed() => self.progressed(progressed?)?,
            bytes = self.stream.read() => self.was_read(bytes?),
            () = sleep_until(tick) => {}
            () = shutdown.triggered() => {}
        }
        Ok(())
    }

    /// Orders the commit of the open Kafka transaction, with the checkpoint as its last record.
    fn close_batch(&mut self) -> Result<(), RelayError> {
        let published = self.intake.progress.decoded();
        self.checkpoint.published = published;
        self.checkpoint.parking.pass(&published);
        self.checkpoint.parking.rows = self.parking.rows;
        self.publisher.commit(
            &self.config.sink.checkpoint_topic,
            &self.config.checkpoint_key(),
            &self.checkpoint.to_json(),
        )?;
        let batch = self.intake.batch;
        let parked = self.parking.take_counts();
        self.committing.push_back(Committing {
            published,
            rows: batch.rows - parked.sum(),
            parked,
            newest_commit_us: (!batch.is_empty()).then_some(batch.newest_commit_us),
        });
        self.intake.batch.clear();
        self.checkpointed_at = Instant::now();
        Ok(())
    }

    /// Takes note of a step of a transaction that is being ended.
    fn progressed(&mut self, step: Option<Committed>) -> Result<(), RelayError> {
        let Some(Committed { took }) = step else {
            return Ok(());
        };
        let transaction = self
            .committing
            .pop_front()
            .context("kafka committed what was not ordered")?;
        self.intake.progress.committed(transaction.published);
        self.status_due = self.status_due.min(self.status_at + CONFIRM_INTERVAL);
        self.metrics.records.increment(transaction.rows);
        self.parking.committed(transaction.parked);
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

    /// Statuses, liveness, readiness.
    async fn housekeeping(&mut self, readiness: &Readiness) -> Result<(), RelayError> {
        let now = Instant::now();
        let silence = now - self.heard_at;
        if silence > DEAD_AFTER {
            return Err(anyhow::anyhow!("the server has been silent for {} s", DEAD_AFTER.as_secs()).into());
        }
        if now >= self.status_due || self.intake.reply_requested {
            self.intake.progress.verify_up_to(self.guard.verified()?);
            self.topics.ensure_as_pinned()?;
            self.send_status(silence > PING_AFTER).await?;
            self.metrics
                .skipped
                .increment(std::mem::take(&mut self.intake.rows_skipped));
            self.metrics
                .unconfirmed_bytes
                .set(self.intake.received.bytes_since(self.intake.progress.published().lsn) as f64);
            // A paused relay needs no Kafka, which may be away on purpose; its producers are looked at before they are used again.
            if self.pause.is_open() {
                self.look_at_kafka(readiness).await?;
            } else {
                self.publisher.poll();
            }
        }
        Ok(())
    }

    /// Tells the truth about Kafka, also while there is nothing to say to it.
    async fn look_at_kafka(&mut self, readiness: &Readiness) -> Result<(), RelayError> {
        self.publisher.poll();
        // Also while a commit is under way: its producer would be replaced after it anyway, and nothing says how long librdkafka tries.
        // The next start ends the transaction either way, and the checkpoint tells which.
        if self.publisher.is_disturbed() {
            readiness.not_ready("kafka", "the connection is disturbed");
            return Err(anyhow::anyhow!("the connection to kafka was disturbed: the producers are replaced").into());
        }
        if let Some(since) = self.publisher.ending_since() {
            if since.elapsed() > STALLED_AFTER {
                let waited_s = since.elapsed().as_secs();
                readiness.not_ready("kafka", format!("a transaction has not committed for {waited_s} s"));
            }
            return Ok(());
        }
        if let Some(probe) = self.probe.take_if(|probe| probe.is_finished())
            && !probe.await.unwrap_or(false)
        {
            readiness.not_ready("kafka", "it does not answer");
            return Err(anyhow::anyhow!("kafka does not answer: the producers are replaced").into());
        }
        readiness.ready("kafka");
        let is_calm = self.checkpointed_at.elapsed() > PROBE_INTERVAL && self.probed_at.elapsed() > PROBE_INTERVAL;
        if self.probe.is_none() && is_calm {
            self.probed_at = Instant::now();
            self.probe = Some(tokio::task::spawn_blocking(
                self.publisher.probe(&self.config.sink.checkpoint_topic),
            ));
        }
        Ok(())
    }

    /// Confirms what is newly published. A status without news confirms nothing: a server that shuts down would otherwise wait for us.
    async fn send_status(&mut self, reply_requested: bool) -> Result<(), RelayError> {
        let confirmed = self.intake.progress.confirm().unwrap_or(Lsn::INVALID);
        let status = StandbyStatus {
            received: self.intake.received,
            confirmed,
            reply_requested,
        };
        if confirmed != Lsn::INVALID {
            faults::point("confirm.before")?;
        }
        self.stream.send_status(status).await?;
        if confirmed != Lsn::INVALID {
            faults::point("confirm.after")?;
        }
        if self.intake.reply_requested {
            // A server that asks may be about to stop: let it forget what it can.
            self.intake.reply_requested = false;
            self.checkpointed_at = self
                .checkpointed_at
                .checked_sub(IDLE_CHECKPOINT_INTERVAL)
                .unwrap_or(self.checkpointed_at);
        }
        self.status_at = Instant::now();
        // A status that confirmed something is followed soon by one that does not, see above.
        self.status_due = self.status_at
            + if confirmed == Lsn::INVALID {
                STATUS_INTERVAL
            } else {
                CONFIRM_INTERVAL
            };
        Ok(())
    }

    fn idle_checkpoint_is_due(&self) -> bool {
        let idle_bytes = self.intake.progress.idle_bytes();
        self.intake.batch.is_empty()
            && idle_bytes > 0
            && (idle_bytes >= IDLE_CHECKPOINT_BYTES || self.checkpointed_at.elapsed() >= IDLE_CHECKPOINT_INTERVAL)
    }

    /// Finds the topic of a route that comes for the first time, and creates it where that is wanted.
    async fn resolve_topic(&mut self, route: String, topic: String) -> Result<(), RelayError> {
        let found = destination::find(self.config, &mut self.checkpoint.lineage, &route, &topic).await?;
        self.intake.topics.insert(route, found);
        self.topics.pin(&self.checkpoint.lineage);
        Ok(())
    }

    /// Commits and confirms what is in hand, within the patience of a stop.
    async fn finish(&mut self) -> Result<(), RelayError> {
        let finished = tokio::time::timeout(STOP_PATIENCE, async {
            self.drain().await?;
            if !self.intake.batch.is_empty() || self.parking.stop_is_new {
                self.close_batch()?;
                self.drain().await?;
            }
            let verified = self.guard.look_now(LAST_LOOK_PATIENCE).await;
            self.intake.progress.verify_up_to(verified);
            self.send_status(false).await
        });
        match finished.await {
            Ok(outcome) => outcome,
            Err(_) => {
                // Nothing of it is confirmed; the next start ends it and goes on from the checkpoint.
                tracing::warn!("kafka did not answer in time; the transaction in hand is left to the next start");
                Ok(())
            }
        }
    }

    /// Waits for the transactions that are being committed.
    async fn drain(&mut self) -> Result<(), RelayError> {
        while self.publisher.is_ending() {
            let step = self.publisher.progressed().await?;
            self.progressed(step)?;
        }
        Ok(())
    }

    fn was_read(&mut self, bytes: usize) {
        self.last_read_bytes = bytes;
        self.heard_at = Instant::now();
    }

    fn next_tick(&self) -> Instant {
        self.status_due.min(Instant::now() + TICK)
    }

    fn is_behind(&self) -> bool {
        self.intake.progress.open_rows() > LARGE_TRANSACTION_ROWS
            || (self.intake.newest_commit_us > 0
                && seconds_since(self.intake.newest_commit_us) > 1.0
                && self.last_read_bytes > 0)
    }
}

/// Seconds from a time stamp (microseconds since 1970) until now; 0 where the clocks disagree.
fn seconds_since(timestamp_us: i64) -> f64 {
    (now_us() - timestamp_us).max(0) as f64 / 1e6
}
