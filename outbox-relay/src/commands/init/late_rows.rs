//! Late rows: rows up to an earlier attempt's progress that this attempt may not have published.
//!
//! An earlier `init` has published rows up to some `created_at`: those **that its snapshot saw**. Let X be that snapshot's own `xmin`: every transaction
//! with a lower id had ended when the snapshot was taken. If a row's inserting transaction (the row's `xmin`) has an id below X, that transaction had ended
//! by then. The row is visible now, so that transaction had committed. So the snapshot saw the row, and the row is published. The same holds for a
//! subtransaction, whose id is above its parent's.
//!
//! The other rows up to there are **late**: perhaps they were committed between the two attempts. We look up their ids in the topics, as `recover` does with
//! all rows. So it does no harm if a row counts as late and is not. That happens to a row whose `xmin` is from an earlier epoch (the column shows 32 bits,
//! also for frozen rows), to a row that was updated, and to the whole table after it was rewritten. The opposite mistake is not possible: since the earlier
//! snapshot's `xmin`, fewer than 2^32 ids were given out, or else all rows count as late.
//!
//! Memory is bounded: we look up at most [`LATE_ROWS_MAX`] late rows at a time. Usually there are none, and then no topic is read.

use anyhow::Context;
use service::Shutdown;

use super::piece_writer::PieceWriter;
use crate::continuity::checkpoint::ExistingRowsProgress;
use crate::continuity::comparison::Memory;
use crate::continuity::event_ids::EventIds;
use crate::intake::outbox_snapshot::{FETCH_ROWS, OutboxSnapshot, RowOrder, TransactionsSeen};
use crate::kafka::{TopicToRead, cleanup, read_ids};
use crate::outbox::rows::{column_index, named_rows, text_at};
use crate::process::faults;
use crate::process::stop::{RelayError, Stop};
use crate::settings::{Config, Undecided};
use pg_replication::{quote_identifier, quote_literal};

/// How many late rows we look up in one pass over the topics. Each takes 16 bytes.
const LATE_ROWS_MAX: usize = 400_000;
/// The number of transaction ids that the column `xmin` can tell apart.
const XID_EPOCH: u64 = 1 << 32;
/// The cursor that gives the ids of the late rows.
const IDS_CURSOR: &str = "late_ids";
/// The cursor that gives the late rows themselves, in the same order.
const ROWS_CURSOR: &str = "late_rows";

/// What we need to find and publish late rows.
pub(super) struct LateRows<'a> {
    pub(super) config: &'a Config,
    /// How far the earlier attempts came.
    pub(super) earlier: &'a ExistingRowsProgress,
    /// The transactions that the snapshot of this attempt sees.
    pub(super) transactions: TransactionsSeen,
    /// What the operator wants done with rows that may have been published, if a topic may have removed them since.
    pub(super) undecided: Option<Undecided>,
    pub(super) shutdown: &'a Shutdown,
}

impl LateRows<'_> {
    /// Publishes the late rows that are in no topic.
    ///
    /// # Errors
    /// [`Stop::NotConfirmed`] where the operator has to decide; anything else is worth another try.
    pub(super) async fn publish_those_in_no_topic(
        &self,
        snapshot: &mut OutboxSnapshot,
        pieces: &mut PieceWriter<'_>,
    ) -> Result<(), RelayError> {
        let condition = late_rows_condition(self.earlier, self.transactions);
        let id = quote_identifier(&self.config.outbox.router.id_column);
        snapshot
            .open_cursor(
                IDS_CURSOR,
                &format!("{id}::text as relay_id"),
                &condition,
                RowOrder::OldestFirst,
            )
            .await?;
        snapshot
            .open_cursor(ROWS_CURSOR, "*", &condition, RowOrder::OldestFirst)
            .await?;
        loop {
            let (ids, looked_up) = fetch_ids(snapshot).await?;
            if looked_up == 0 {
                break;
            }
            tracing::info!(
                rows = looked_up,
                "looking up in the topics which rows an earlier init has published"
            );
            // Our own open transaction would hide the records behind it.
            pieces.commit_open().await?;
            let unpublished = self.remove_published(ids, pieces).await?;
            faults::point("init.late-rows-compared")?;
            self.write_unpublished(snapshot, pieces, &unpublished, looked_up)
                .await?;
        }
        snapshot.close_cursor(IDS_CURSOR).await?;
        snapshot.close_cursor(ROWS_CURSOR).await
    }

    /// Of the next `looked_up` late rows, writes those whose ids are in `unpublished`.
    async fn write_unpublished(
        &self,
        snapshot: &mut OutboxSnapshot,
        pieces: &mut PieceWriter<'_>,
        unpublished: &EventIds,
        looked_up: usize,
    ) -> Result<(), RelayError> {
        let mut left = looked_up;
        while left > 0 {
            let mut answer = snapshot.fetch_from(ROWS_CURSOR, left.min(FETCH_ROWS)).await?;
            if answer.rows.is_empty() {
                return Err(anyhow::anyhow!("the snapshot has fewer rows than before").into());
            }
            left -= answer.rows.len();
            let id_index = column_index(&answer.columns, &self.config.outbox.router.id_column)?;
            let mut kept = Vec::new();
            for row in std::mem::take(&mut answer.rows) {
                if unpublished.contains(text_at(&row, id_index)?) {
                    kept.push(row);
                }
            }
            answer.rows = kept;
            pieces.write(&answer).await?;
        }
        Ok(())
    }

    /// Returns those of `ids` that no topic has. If a topic may have removed records since, it is not certain that these rows were not published. Then the
    /// operator has to decide.
    async fn remove_published(&self, mut ids: EventIds, pieces: &PieceWriter<'_>) -> Result<EventIds, RelayError> {
        let mut forgetful_topic = None;
        for (topic, partitions) in pieces.topics() {
            let to_read = TopicToRead {
                topic: topic.clone(),
                partitions,
                cleanup: cleanup(&self.config.sink.kafka, topic).await?,
                since_ms: None,
                position_header: None,
            };
            let (settings, shutdown) = (self.config.sink.kafka.clone(), self.shutdown.clone());
            let (read, not_found) = tokio::task::spawn_blocking(move || {
                let read = read_ids(&settings, &to_read, &mut ids, &|| shutdown.is_triggered());
                (read, ids)
            })
            .await
            .context("reading a topic")?;
            ids = not_found;
            if may_have_forgotten(&read?.memory, self.earlier.began_ms) {
                forgetful_topic = Some(topic.clone());
            }
        }
        let Some(topic) = forgetful_topic.filter(|_| !ids.is_empty()) else {
            return Ok(ids);
        };
        match self.undecided {
            Some(Undecided::Publish) => Ok(ids),
            Some(Undecided::Skip) => Ok(EventIds::default()),
            None => Err(Stop::NotConfirmed {
                what: format!(
                    "{} rows may have been published by an earlier init and removed from topic `{topic}` since, or not; run init with --undecided publish (they may come twice) or --undecided skip (they may be lost)",
                    ids.len()
                ),
            }
            .into()),
        }
    }
}

/// Fetches the ids of the next late rows. Also returns how many rows these are, since several rows may have one id.
async fn fetch_ids(snapshot: &mut OutboxSnapshot) -> Result<(EventIds, usize), RelayError> {
    let mut ids = EventIds::default();
    let mut rows = 0;
    while rows < LATE_ROWS_MAX {
        let answer = snapshot.fetch_from(IDS_CURSOR, FETCH_ROWS).await?;
        if answer.rows.is_empty() {
            break;
        }
        rows += answer.rows.len();
        for row in named_rows(&answer) {
            ids.insert(row.text("relay_id")?);
        }
    }
    Ok((ids, rows))
}

/// SQL for the rows up to `earlier` that its snapshot may not have seen, or that it may not have published. `transactions` are those that the snapshot of
/// this attempt sees.
fn late_rows_condition(earlier: &ExistingRowsProgress, transactions: TransactionsSeen) -> String {
    let Some(last) = &earlier.last_created_at else {
        return "true".to_owned();
    };
    let last = quote_literal(last);
    // If the transaction ids went back, the server was restored. Then the ids say nothing, and all rows are late.
    let Some(new_ids) = transactions
        .none_began_from
        .checked_sub(earlier.snapshot_xmin)
        .filter(|_| earlier.snapshot_xmin > 0)
    else {
        return format!("created_at <= {last}");
    };
    let first_id = earlier.snapshot_xmin % XID_EPOCH;
    let is_new = format!("(relay_xmin::text::bigint + {XID_EPOCH} - {first_id}) % {XID_EPOCH} < {new_ids}");
    if earlier.is_whole {
        format!("created_at <= {last} and {is_new}")
    } else {
        format!("(created_at = {last} or created_at < {last} and {is_new})")
    }
}

/// Whether a topic may have removed a record that was written since `began_ms`.
fn may_have_forgotten(memory: &Memory, began_ms: i64) -> bool {
    let compacted = memory.compacted_before_ms.is_some_and(|before_ms| before_ms > began_ms);
    let removed = memory.removed_before_ms.values().any(|first_ms| *first_ms > began_ms);
    compacted || removed
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::{ExistingRowsProgress, Memory, TransactionsSeen, late_rows_condition, may_have_forgotten};

    fn seen(ended_below: u64, none_began_from: u64) -> TransactionsSeen {
        TransactionsSeen {
            ended_below,
            none_began_from,
        }
    }

    fn progress(last_created_at: Option<&str>, is_whole: bool) -> ExistingRowsProgress {
        ExistingRowsProgress {
            began_ms: 1_000,
            snapshot_xmin: (1 << 32) + 7,
            last_created_at: last_created_at.map(str::to_owned),
            is_whole,
            rows: 5_000,
        }
    }

    #[test]
    fn late_are_the_rows_of_transactions_that_the_earlier_snapshot_may_not_have_seen() {
        let transactions = seen((1 << 32) + 9, (1 << 32) + 17);
        assert_eq!(
            late_rows_condition(&progress(Some("t"), true), transactions),
            "created_at <= 't' and (relay_xmin::text::bigint + 4294967296 - 7) % 4294967296 < 10"
        );
        assert_eq!(
            late_rows_condition(&progress(Some("t"), false), transactions),
            "(created_at = 't' or created_at < 't' and (relay_xmin::text::bigint + 4294967296 - 7) % 4294967296 < 10)"
        );
    }

    #[test]
    fn where_nothing_tells_transactions_apart_all_rows_are_late() {
        assert_eq!(late_rows_condition(&progress(None, false), seen(9, 17)), "true");
        let restored = late_rows_condition(&progress(Some("t"), true), seen(5, 6));
        assert_eq!(restored, "created_at <= 't'");
        let unknown = ExistingRowsProgress {
            snapshot_xmin: 0,
            ..progress(Some("t"), true)
        };
        assert_eq!(late_rows_condition(&unknown, seen(9, 17)), "created_at <= 't'");
    }

    #[test]
    fn a_topic_that_keeps_everything_since_the_beginning_has_forgotten_nothing() {
        let compacted = |before_ms| Memory {
            compacted_before_ms: Some(before_ms),
            ..Memory::default()
        };
        let removed = |first_ms| Memory {
            removed_before_ms: HashMap::from([(0, first_ms)]),
            ..Memory::default()
        };
        assert!(!may_have_forgotten(&Memory::default(), 1_000));
        assert!(!may_have_forgotten(&compacted(1_000), 1_000) && may_have_forgotten(&compacted(1_001), 1_000));
        assert!(!may_have_forgotten(&removed(999), 1_000) && may_have_forgotten(&removed(1_001), 1_000));
    }
}
