//! How a builder ends.

use std::time::Duration;

use super::Builder;
use crate::kafka;
use crate::process::faults;

/// Time that the batch in hand has to end after the wish to stop.
const STOP_BATCH_MAX: Duration = Duration::from_secs(3);
/// Time that Kafka has to take the last offsets and the farewell.
const STOP_KAFKA_MAX: Duration = Duration::from_millis(900);
/// Time that Postgres has to take a note at the end.
const STOP_NOTE_MAX: Duration = Duration::from_millis(300);

impl Builder {
    /// Ends the batch in hand, tells Kafka the last positions, leaves the group.
    pub(super) async fn stop(mut self) {
        faults::hold("stop.begun").await;
        if let Some(job) = self.job.take() {
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
        faults::hold("stop.batch-ended").await;
        // A commit that is under way is written down as well: a reset of the group is told by what was committed before.
        if let Some(commit) = self.group_commit.take()
            && let Ok(Ok(acknowledged)) = tokio::time::timeout(STOP_NOTE_MAX, commit).await
        {
            self.group_acknowledged = acknowledged;
        }
        let acknowledged = std::mem::take(&mut self.group_acknowledged);
        let mut database = self.database.take();
        let farewell = tokio::task::spawn_blocking(move || {
            let due = self.group_offsets_due();
            let sent = kafka::commit(&self.consumer, due);
            // The last handle to the consumer: dropping it leaves the group.
            drop(self);
            sent
        });
        let sent = match tokio::time::timeout(STOP_KAFKA_MAX, farewell).await {
            Ok(sent) => sent.unwrap_or_default(),
            Err(_) => {
                tracing::warn!("kafka does not answer the farewell: the group notices after its session timeout");
                Vec::new()
            }
        };
        faults::hold("stop.left").await;
        let Some(database) = &mut database else { return };
        // In this order, since the last ones hold.
        for offsets in [acknowledged, sent] {
            let recorded = tokio::time::timeout(STOP_NOTE_MAX, database.record(&offsets));
            if !offsets.is_empty() && recorded.await.is_err() {
                tracing::debug!("the group's offsets are not written down");
            }
        }
    }
}
