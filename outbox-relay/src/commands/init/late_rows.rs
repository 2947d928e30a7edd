//! Rows up to an earlier attempt's progress that the attempt may not have published.
//!
//! Rows up to the progress' `created_at` are published **if the earlier snapshot saw them**. A row whose inserting transaction's id (`xmin`) lies below
//! the earlier snapshot's own `xmin` was inserted by a transaction that had ended before that snapshot; since the row is visible now, that transaction
//! had committed. The same holds for a subtransaction, whose id is above its parent's. So such a row was seen, and is published.
//!
//! The other rows up to there are **late**: perhaps they were committed in between. Their ids are looked up in the topics, which is what recover
//! does with all rows. So it does no harm where a row counts as late and is not: one whose `xmin` is from an earlier epoch (the
//! column shows 32 bits, also of frozen rows), one that was updated, or the whole table after it was rewritten. The other mistake is not
//! possible: the ids from the earlier snapshot's `xmin` on are fewer than 2^32, or else all rows count as late.
//!
//! Memory is bounded: late rows are looked up [`LATE_ROWS_MAX`] at a time. The usual case, none at all, reads no topic.

use anyhow::Context;
use service::Shutdown;

use super::piece_writer::PieceWriter;
use crate::continuity::checkpoint::ExistingRowsProgress;
use crate::continuity::comparison::{EventIds, Memory};
use crate::intake::outbox_snapshot::{FETCH_ROWS, OutboxSnapshot, RowOrder, TransactionsSeen};
use crate::kafka::{TopicToRead, cleanup, read_ids};
use crate::outbox::rows::{column_index, named_rows, text_at};
use crate::process::faults;
use crate::process::stop::{RelayError, Stop};
use crate::settings::{Config, Undecided};
use pg_replication::{quote_identifier, quote_literal};

/// Late rows that are looked up in one pass over the topics; 16 bytes each.
const LATE_ROWS_MAX: usize = 400_000;
/// The number of transaction ids that the column `xmin` can tell apart.
const XID_EPOCH: u64 = 1 << 32;
/// Names of cursors: the ids of the late rows, and the same rows in the same order.
const IDS: &str = "late_ids";
const ROWS: &str = "late_rows";

/// What it takes to find late rows.
pub(super) struct LateRows<'a> {
    pub(super) config: &'a Config,
    /// How far the earlier attempts came.
    pub(super) earlier: &'a ExistingRowsProgress,
    /// Of the snapshot that is read now.
    pub(super) transactions: TransactionsSeen,
    /// What the operator says of rows of which no topic tells.
    pub(super) undecided: Option<Undecided>,
    pub(super) shutdown: &'a Shutdown,
}

impl LateRows<'_> {
    /// Publishes those late rows that are in no topic.
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
                IDS,
                &format!("{id}::text as relay_id"),
                &condition,
                RowOrder::OldestFirst,
            )
            .await?;
        snapshot
            .open_cursor(ROWS, "*", &condition, RowOrder::OldestFirst)
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
            // Our own open transaction would hide what stands behind its records.
            pieces.commit_open().await?;
            let absent = self.remove_published(ids, pieces).await?;
            faults::point("init.late-rows-compared")?;
            self.write_absent(snapshot, pieces, &absent, looked_up).await?;
        }
        snapshot.close_cursor(IDS).await?;
        snapshot.close_cursor(ROWS).await
    }

    /// Writes those of the next `looked_up` late rows whose ids are in `absent`.
    async fn write_absent(
        &self,
        snapshot: &mut OutboxSnapshot,
        pieces: &mut PieceWriter<'_>,
        absent: &EventIds,
        looked_up: usize,
    ) -> Result<(), RelayError> {
        let mut left = looked_up;
        while left > 0 {
            let mut answer = snapshot.fetch_from(ROWS, left.min(FETCH_ROWS)).await?;
            if answer.rows.is_empty() {
                return Err(anyhow::anyhow!("the snapshot has fewer rows than before").into());
            }
            left -= answer.rows.len();
            let id_place = column_index(&answer.columns, &self.config.outbox.router.id_column)?;
            let mut kept = Vec::new();
            for row in std::mem::take(&mut answer.rows) {
                if absent.contains(text_at(&row, id_place)?) {
                    kept.push(row);
                }
            }
            answer.rows = kept;
            pieces.write(&answer).await?;
        }
        Ok(())
    }

    /// Returns those of `ids` that no topic has, once it is certain, or decided by the operator, that they were not published.
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
            let (read, remaining) = tokio::task::spawn_blocking(move || {
                let read = read_ids(&settings, &to_read, &mut ids, &|| shutdown.is_triggered());
                (read, ids)
            })
            .await
            .context("reading a topic")?;
            ids = remaining;
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

/// The ids of the next late rows, and how many rows that are.
async fn fetch_ids(snapshot: &mut OutboxSnapshot) -> Result<(EventIds, usize), RelayError> {
    let mut ids = EventIds::default();
    let mut rows = 0;
    while rows < LATE_ROWS_MAX {
        let answer = snapshot.fetch_from(IDS, FETCH_ROWS).await?;
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

/// SQL for the rows up to `earlier` that its snapshot may not have seen, or that it may not have come to. `transactions` are those of the
/// snapshot that is read now.
fn late_rows_condition(earlier: &ExistingRowsProgress, transactions: TransactionsSeen) -> String {
    let Some(last) = &earlier.last_created_at else {
        return "true".to_owned();
    };
    let last = quote_literal(last);
    // A server whose ids went back was restored: nothing is known of them.
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
