//! Publishes the rows that no topic has, in several Kafka transactions.

use crate::continuity::checkpoint::Checkpoint;
use crate::continuity::comparison::Verdicts;
use crate::continuity::event_ids::EventIds;
use crate::intake::existing_rows::ExistingRowsWriter;
use crate::intake::outbox_snapshot::{OutboxSnapshot, RowOrder};
use crate::outbox::rows::{column_index, text_at};
use crate::parking::behind::ParksBehind;
use crate::process::stop::RelayError;
use crate::settings::{Config, Undecided};
use crate::topics::checkpoint_topic::commit_checkpoint;
use pg_replication::Answer;

/// Most rows and bytes of one Kafka transaction. They bound the memory of librdkafka's queue.
const TRANSACTION_ROWS: usize = 5_000;
const TRANSACTION_BYTES: usize = 16 << 20;

/// Ids of the rows to publish.
pub(super) struct RowsToPublish {
    missing: EventIds,
    /// Rows that may have been published; `None` if the operator does not want them published.
    undecided: Option<EventIds>,
}

impl RowsToPublish {
    pub(super) fn from_verdicts(verdicts: Verdicts, undecided: Option<Undecided>) -> Self {
        Self {
            missing: verdicts.missing,
            undecided: (undecided == Some(Undecided::Publish)).then_some(verdicts.undecided),
        }
    }

    fn contains(&self, id: &str) -> bool {
        self.missing.contains(id) || self.undecided.as_ref().is_some_and(|ids| ids.contains(id))
    }
}

/// Publishes the rows in their order, in Kafka transactions of bounded size. Each transaction ends with `checkpoint`, but for the last, which stays
/// open: the caller commits it with its own checkpoint.
///
/// # Errors
/// A row cannot be a record; anything else is worth another try.
pub(super) async fn publish_rows(
    config: &Config,
    snapshot: &mut OutboxSnapshot,
    to_publish: &RowsToPublish,
    writer: &mut ExistingRowsWriter<'_>,
    checkpoint: &mut Checkpoint,
) -> Result<(), RelayError> {
    snapshot.begin_reading("*", RowOrder::OldestFirst).await?;
    let parked_before = checkpoint.parking.rows;
    let (mut open_rows, mut open_bytes) = (0, 0);
    loop {
        let Answer { columns, rows } = snapshot.fetch().await?;
        if rows.is_empty() {
            return Ok(());
        }
        let id_index = column_index(&columns, &config.outbox.router.id_column)?;
        let mut chosen = Answer {
            columns,
            rows: Vec::new(),
        };
        for row in rows {
            let id = text_at(&row, id_index)?;
            let is_parked = writer.parks.as_ref().is_some_and(|parks| parks.is_ahead(id));
            if is_parked {
                // Earlier rows of its key must be sent before it counts as passed: from then on, rows of its key are parked.
                writer.write(&chosen).await?;
                chosen.rows.clear();
                if let Some(parks) = &mut writer.parks {
                    parks.pass(id);
                }
            } else if to_publish.contains(id) {
                open_bytes += row.iter().flatten().map(String::len).sum::<usize>();
                open_rows += 1;
                chosen.rows.push(row);
            }
        }
        writer.write(&chosen).await?;
        checkpoint.parking.rows = parked_before + writer.parks.as_ref().map_or(0, ParksBehind::parked);
        if open_rows >= TRANSACTION_ROWS || open_bytes >= TRANSACTION_BYTES {
            (open_rows, open_bytes) = (0, 0);
            checkpoint.lineage.partitions.clone_from(&writer.lineage().partitions);
            commit_checkpoint(writer.publisher(), config, checkpoint).await?;
            if writer.publisher().is_disturbed() {
                // librdkafka may have sent the EndTxn twice, and the late one could end the next transaction.
                return Err(anyhow::anyhow!("the connection to kafka was disturbed; run recover again").into());
            }
            tracing::info!(rows = writer.rows, "publishing rows that were missing");
        }
    }
}
