//! What the loop does by the clock: it tells Postgres what is published, and checks that Postgres and Kafka still answer.

use std::time::Duration;

use service::Readiness;
use tokio::time::Instant;

use super::Streaming;
use crate::process::faults;
use crate::process::stop::RelayError;
use crate::relay::keepalive::STATUS_INTERVAL;
use crate::relay::unpublished;
use pg_replication::Lsn;
use pg_replication::StandbyStatus;

/// Confirmations come at most this often.
pub(super) const CONFIRM_INTERVAL: Duration = Duration::from_millis(50);
/// While there is nothing to publish, the relay writes a checkpoint of the server's position and confirms it: this often, or after this much WAL.
const IDLE_CHECKPOINT_INTERVAL: Duration = Duration::from_secs(10);
const IDLE_CHECKPOINT_BYTES: u64 = 16 << 20;
/// A server that is silent for so long is asked to answer.
const PING_AFTER: Duration = Duration::from_secs(20);
/// A server that is silent for so long is given up.
const DEAD_AFTER: Duration = Duration::from_secs(60);
/// A commit that takes longer makes the relay not ready.
const STALLED_AFTER: Duration = Duration::from_secs(5);
/// While there is nothing to commit, the relay asks Kafka this often whether it answers.
const PROBE_INTERVAL: Duration = Duration::from_secs(3);

impl Streaming<'_> {
    /// Sends the server a status when one is due, and looks whether server, guard, topics and Kafka are as they should be.
    pub(super) async fn do_what_is_due(&mut self, readiness: &Readiness) -> Result<(), RelayError> {
        let now = Instant::now();
        let silence = now - self.last_heard_at;
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
            self.note_oldest_unpublished();
            self.metrics
                .unconfirmed_bytes
                .set(self.intake.received.bytes_since(self.intake.progress.published().lsn) as f64);
            // A paused relay needs no Kafka, which may be away on purpose; its producers are looked at before they are used again.
            if self.pause.is_open() {
                self.check_kafka(readiness).await?;
            } else {
                self.publisher.poll();
            }
        }
        Ok(())
    }

    /// Checks that Kafka is reachable even when there is nothing to publish, so that `/readyz` is right.
    async fn check_kafka(&mut self, readiness: &Readiness) -> Result<(), RelayError> {
        self.publisher.poll();
        // This does not wait for a commit that is under way. Its producer has to be replaced in any case, and librdkafka may try for long. The next
        // start aborts the transaction, or finds that it has committed: the checkpoint tells which.
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
            // A probe that panicked got no answer either.
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

    /// Confirms what was published since the last status. Without news the status confirms no position; then a server that shuts down need not wait for us.
    pub(super) async fn send_status(&mut self, reply_requested: bool) -> Result<(), RelayError> {
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
            // A server that asks may be about to stop. A checkpoint is due now, so that it can forget its WAL before.
            self.intake.reply_requested = false;
            // On a machine that has just started the subtraction may fail. Then the checkpoint comes at its usual time.
            self.checkpointed_at = self
                .checkpointed_at
                .checked_sub(IDLE_CHECKPOINT_INTERVAL)
                .unwrap_or(self.checkpointed_at);
        }
        self.status_at = Instant::now();
        // A status that confirms something is followed soon by one that does not: until then a server that shuts down waits for us.
        self.status_due = self.status_at
            + if confirmed == Lsn::INVALID {
                STATUS_INTERVAL
            } else {
                CONFIRM_INTERVAL
            };
        Ok(())
    }

    /// Looks which row is the oldest that is not published. Cheap: it looks at memory.
    fn note_oldest_unpublished(&self) {
        let committing = self
            .committing
            .iter()
            .find_map(|transaction| transaction.oldest_commit_us);
        let batch = &self.intake.batch;
        let open = (!batch.is_empty()).then_some(batch.oldest_commit_us);
        let oldest = committing
            .or(open)
            .or_else(|| self.intake.oldest_undecoded_us(self.stream.buffer()));
        unpublished::note(oldest);
    }

    pub(super) fn idle_checkpoint_is_due(&self) -> bool {
        let idle_bytes = self.intake.progress.idle_bytes();
        self.intake.batch.is_empty()
            && idle_bytes > 0
            && (idle_bytes >= IDLE_CHECKPOINT_BYTES || self.checkpointed_at.elapsed() >= IDLE_CHECKPOINT_INTERVAL)
    }
}
