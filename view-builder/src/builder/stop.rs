//! How a builder ends.

use std::time::Duration;

use super::Builder;
use crate::contract::position::Reached;
use crate::kafka;
use crate::process::faults;
use crate::views::database::Database;

/// How long the batch in hand may take to end. If it is cut off, the next holder repeats it.
const STOP_BATCH_MAX: Duration = Duration::from_secs(3);
/// How long Kafka may take to accept the last offsets and the farewell. Without the farewell the group waits for the session's timeout.
const STOP_KAFKA_MAX: Duration = Duration::from_millis(900);
/// How long a commit of group offsets that is under way may take, and each note in Postgres. No view depends on these, and the whole stop must take
/// less than five seconds.
const STOP_NOTE_MAX: Duration = Duration::from_millis(300);

impl Builder {
    /// Ends the batch in hand, tells Kafka the last positions, leaves the group.
    pub(super) async fn stop(mut self) {
        faults::hold("stop.begun").await;
        self.end_job_in_hand().await;
        faults::hold("stop.batch-ended").await;
        self.wait_for_group_commit().await;
        let acknowledged = std::mem::take(&mut self.group_acknowledged);
        let database = self.database.take();
        let sent = self.leave_group().await;
        faults::hold("stop.left").await;
        if let Some(database) = database {
            // The newer offsets come last, since the last ones stay.
            record_group_offsets(database, [acknowledged, sent]).await;
        }
    }

    async fn end_job_in_hand(&mut self) {
        let Some(job) = self.job.take() else { return };
        let abort = job.task.abort_handle();
        match tokio::time::timeout(STOP_BATCH_MAX, job.task).await {
            Ok(ended) => {
                if let Err(failure) = self.job_ended(ended) {
                    tracing::warn!(error = %failure, "the job in hand failed");
                }
            }
            Err(_) => {
                tracing::warn!(
                    "the batch in hand does not end: the next start asks the position whether it has committed"
                );
                abort.abort();
            }
        }
    }

    /// Waits for a commit that is under way, so that its offsets are stored too. By the stored offsets the next claim notices that the group was
    /// reset.
    async fn wait_for_group_commit(&mut self) {
        if let Some(commit) = self.group_commit.take()
            && let Ok(Ok(acknowledged)) = tokio::time::timeout(STOP_NOTE_MAX, commit).await
        {
            self.group_acknowledged = acknowledged;
        }
    }

    /// Leaves the group. Returns the last offsets of the group that Kafka has acknowledged.
    async fn leave_group(mut self) -> Vec<Reached> {
        let farewell = tokio::task::spawn_blocking(move || {
            let due = self.take_group_offsets_due();
            let sent = kafka::commit(&self.consumer, due);
            // The last handle to the consumer: dropping it leaves the group.
            drop(self);
            sent
        });
        match tokio::time::timeout(STOP_KAFKA_MAX, farewell).await {
            Ok(Ok(sent)) => sent,
            Ok(Err(err)) => {
                tracing::error!(error = %err, "leaving the group failed");
                Vec::new()
            }
            Err(_) => {
                tracing::warn!("kafka does not answer the farewell: the group notices after its session timeout");
                Vec::new()
            }
        }
    }
}

/// Stores what the group has committed to Kafka.
async fn record_group_offsets(mut database: Database, commits: [Vec<Reached>; 2]) {
    for offsets in commits {
        let recorded = tokio::time::timeout(STOP_NOTE_MAX, database.record_group_offsets(&offsets));
        if !offsets.is_empty() && recorded.await.is_err() {
            tracing::debug!("the group's offsets are not written down");
        }
    }
}
