//! Publishes the rows that were there before the slot, in Kafka transactions of bounded size, each row once however often `init` is killed.
//!
//! A small outbox goes in one transaction, together with the checkpoint that is `running`. A larger one goes in pieces, in the order of
//! `created_at`. Each piece carries a checkpoint that is still `initialising` and says how far the rows are published
//! ([`ExistingRowsProgress`]): all rows of the snapshot up to some `created_at`.
//!
//! A slot's snapshot ends with its session, so an `init` that goes on makes the slot anew. Its own snapshot has every row that the new slot's
//! stream will not send, so nothing can be lost. What remains is to tell which of its rows are published already:
//!
//! - Rows behind the progress' `created_at` are not: no attempt came so far. They are published in order.
//! - Rows up to there are published **if the earlier snapshot saw them**. A row whose inserting transaction's id (`xmin`) lies below the earlier
//!   snapshot's own `xmin` was inserted by a transaction that had ended before that snapshot; since the row is visible now, that transaction
//!   had committed. The same holds for a subtransaction, whose id is above its parent's. So such a row was seen, and is published.
//! - The other rows up to there are **late**: perhaps they were committed in between. Their ids are looked up in the topics, which is what recover
//!   does with all rows. So it does no harm that a row counts as late that is none: one whose `xmin` is from an earlier epoch (the
//!   column shows 32 bits, also of frozen rows), one that was updated, or the whole table after it was rewritten. The other mistake is not
//!   possible: the ids from the earlier snapshot's `xmin` on are fewer than 2^32, or else all rows count as late.
//!
//! Late rows are published before the rest, and only then is the progress that of the new snapshot. Until then it stays the earlier one's, so that
//! the next attempt looks the same rows up again and finds those that were published in the topics.
//!
//! The order within a key holds: a late row was committed after all rows that an earlier snapshot saw, and has been waited for by no
//! other transaction of its key.
//!
//! Memory is bounded: late rows are looked up [`LATE_ROWS_MAX`] at a time. The usual case, none at all, reads no topic.

use anyhow::Context;
use service::clock::now_us;

use crate::commands::init::commit;
use crate::continuity::checkpoint::{Checkpoint, ExistingRowsProgress, State};
use crate::continuity::comparison::{EventIds, Memory};
use crate::intake::existing_rows::{ExistingRowsWriter, FETCH_ROWS, OutboxSnapshot};
use crate::kafka::{Publisher, TopicToRead, cleanup, read_ids};
use crate::outbox::source;
use crate::process::faults::{self, Bug};
use crate::process::progress_bar::RowsProgress;
use crate::process::stop::{RelayError, Stop};
use crate::settings::{Config, Undecided};
use pg_replication::Lsn;
use pg_replication::{Answer, Row, quote_identifier, quote_literal};
use service::Shutdown;

/// Rows and bytes of one Kafka transaction. An outbox that has no more is published in one.
const PIECE_ROWS: u64 = 5_000;
const PIECE_BYTES: usize = 16 << 20;
/// Late rows that are looked up in one pass over the topics; 16 bytes each.
const LATE_ROWS_MAX: usize = 400_000;
/// The number of transaction ids that the column `xmin` can tell apart.
const XID_EPOCH: u64 = 1 << 32;
const IDS: &str = "late_ids";
const LATE: &str = "late_rows";

/// What an attempt to publish the existing rows works with.
pub(crate) struct ExistingRowsJob<'a> {
    pub(crate) config: &'a Config,
    /// Name of the slot's snapshot, and where its stream begins.
    pub(crate) exported: &'a str,
    pub(crate) consistent_point: Lsn,
    pub(crate) undecided: Option<Undecided>,
    pub(crate) shutdown: &'a Shutdown,
}

impl ExistingRowsJob<'_> {
    /// Publishes every row of the snapshot that is not published yet; how many. The last rows stay in the open Kafka transaction, for the checkpoint
    /// that ends the init. `checkpoint` is the one that is `initialising`, with the progress of earlier attempts.
    ///
    /// # Errors
    /// A [`Stop`]; anything else is worth another try, which goes on behind what is published.
    pub(crate) async fn publish(
        &self,
        checkpoint: &mut Checkpoint,
        publisher: &mut Publisher,
    ) -> Result<u64, RelayError> {
        assert!(
            checkpoint.state == State::Initialising,
            "only a checkpoint that says so lets init go on"
        );
        let mut snapshot = OutboxSnapshot::open(self.config, Some(self.exported), Vec::new()).await?;
        let bounds = snapshot.transaction_bounds().await?;
        let earlier = checkpoint.existing_rows.clone();
        let mut lineage = checkpoint.lineage.clone();
        let mut pieces = Pieces {
            progress: earlier.clone().unwrap_or(ExistingRowsProgress {
                began_ms: now_us() / 1_000,
                snapshot_xmin: bounds.0,
                last_created_at: None,
                is_whole: false,
                rows: 0,
            }),
            config: self.config,
            writer: ExistingRowsWriter::new(self.config, &mut lineage, publisher, self.consistent_point),
            checkpoint,
            open_rows: 0,
            open_bytes: 0,
            shutdown: self.shutdown,
        };
        if let Some(earlier) = &earlier {
            self.publish_late_rows(&mut snapshot, &mut pieces, earlier, bounds)
                .await?;
        }
        pieces.progress.snapshot_xmin = bounds.0;
        publish_rows_behind(&mut snapshot, &mut pieces, earlier.as_ref()).await?;
        let rows = pieces.writer.rows;
        checkpoint.lineage = lineage;
        snapshot.close().await?;
        Ok(rows)
    }

    /// Publishes those rows up to the earlier attempts' progress that are in no topic.
    async fn publish_late_rows(
        &self,
        snapshot: &mut OutboxSnapshot,
        pieces: &mut Pieces<'_>,
        earlier: &ExistingRowsProgress,
        bounds: (u64, u64),
    ) -> Result<(), RelayError> {
        if faults::is_planted(Bug::ContinueBehindLastRow) {
            return Ok(());
        }
        let condition = late_rows_condition(earlier, bounds);
        let id = quote_identifier(&self.config.router.id_column);
        snapshot
            .open_cursor(IDS, &format!("{id}::text"), &condition, true)
            .await?;
        snapshot.open_cursor(LATE, "*", &condition, true).await?;
        loop {
            let mut absent = EventIds::default();
            let mut looked_up = 0;
            while looked_up < LATE_ROWS_MAX {
                let answer = snapshot.fetch_from(IDS, FETCH_ROWS).await?;
                if answer.rows.is_empty() {
                    break;
                }
                looked_up += answer.rows.len();
                for row in &answer.rows {
                    absent.insert(source::text(row, 0)?);
                }
            }
            if looked_up == 0 {
                break;
            }
            tracing::info!(
                rows = looked_up,
                "looking up in the topics which rows an earlier init has published"
            );
            // Our own open transaction would hide what stands behind its records.
            pieces.commit_open().await?;
            let absent = self.absent_from_topics(absent, pieces, earlier).await?;
            faults::point("init.late-rows-compared")?;
            let mut left = looked_up;
            while left > 0 {
                let mut answer = snapshot.fetch_from(LATE, left.min(FETCH_ROWS)).await?;
                if answer.rows.is_empty() {
                    return Err(anyhow::anyhow!("the snapshot has fewer rows than before").into());
                }
                left -= answer.rows.len();
                let id = id_index(self.config, &answer)?;
                let mut kept = Vec::new();
                for row in std::mem::take(&mut answer.rows) {
                    if absent.contains(source::text(&row, id)?) {
                        kept.push(row);
                    }
                }
                answer.rows = kept;
                pieces.write(&answer).await?;
            }
        }
        snapshot.close_cursor(IDS).await?;
        snapshot.close_cursor(LATE).await
    }

    /// Those of `ids` that no topic has, once it is certain, or decided by the operator, that they were not published.
    async fn absent_from_topics(
        &self,
        mut ids: EventIds,
        pieces: &Pieces<'_>,
        earlier: &ExistingRowsProgress,
    ) -> Result<EventIds, RelayError> {
        let mut forgetful = None;
        for (topic, partitions) in &pieces.writer.lineage().partitions {
            let cleaned = cleanup(&self.config.kafka, topic).await?;
            let to_read = TopicToRead {
                topic: topic.clone(),
                partitions: *partitions,
                cleanup: cleaned,
                since_ms: None,
                position_header: None,
            };
            let (settings, stop) = (self.config.kafka.clone(), self.shutdown.clone());
            let (read, rest) = tokio::task::spawn_blocking(move || {
                let gives_up = || stop.is_triggered();
                let read = read_ids(&settings, &to_read, &mut ids, &gives_up);
                (read, ids)
            })
            .await
            .context("reading a topic")?;
            ids = rest;
            if may_have_forgotten(&read?.memory, earlier.began_ms) {
                forgetful = Some(topic.clone());
            }
        }
        let Some(topic) = forgetful.filter(|_| !ids.is_empty()) else {
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

/// Publishes the rows behind the earlier attempts' progress, or all.
async fn publish_rows_behind(
    snapshot: &mut OutboxSnapshot,
    pieces: &mut Pieces<'_>,
    earlier: Option<&ExistingRowsProgress>,
) -> Result<(), RelayError> {
    let condition = rows_behind_condition(earlier);
    let created_at = if snapshot.has_created_at() {
        "created_at::text"
    } else {
        "null::text"
    };
    snapshot
        .open_cursor(
            "existing",
            &format!("*, {created_at} as relay_created_at"),
            &condition,
            true,
        )
        .await?;
    let total = snapshot
        .value(&format!("count(*) filter (where {condition})"))
        .await?
        .context("no count")?;
    let mut bar = RowsProgress::start("publishing existing rows", total.parse().context("a count")?);
    loop {
        let answer = snapshot.fetch().await?;
        let (Some(first), Some(last)) = (answer.rows.first(), answer.rows.last()) else {
            break;
        };
        if pieces.is_full() {
            pieces.progress.is_whole = created_at_of(first) != pieces.progress.last_created_at;
            pieces.commit_open().await?;
        }
        let last_created_at = created_at_of(last);
        pieces.write_into_open(&answer).await?;
        pieces.progress.last_created_at = last_created_at;
        bar.advance(answer.rows.len() as u64);
    }
    bar.finish();
    Ok(())
}

/// The value of the column that was added last.
fn created_at_of(row: &Row) -> Option<String> {
    row.last().cloned().flatten()
}

fn id_index(config: &Config, answer: &Answer) -> anyhow::Result<usize> {
    answer
        .columns
        .iter()
        .position(|(name, _)| *name == config.router.id_column)
        .context("the outbox table has no id")
}

/// SQL for the rows up to `earlier` that its snapshot may not have seen, or that it may not have come to. `bounds` are those of the snapshot that
/// is read now.
fn late_rows_condition(earlier: &ExistingRowsProgress, bounds: (u64, u64)) -> String {
    let Some(last) = &earlier.last_created_at else {
        return "true".to_owned();
    };
    let last = quote_literal(last);
    let (_, snapshot_xmax) = bounds;
    // A server whose ids went back was restored: nothing is known of them.
    let Some(new_ids) = snapshot_xmax
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

/// SQL for the rows that no earlier attempt came to. Rows without a `created_at` are the last.
fn rows_behind_condition(earlier: Option<&ExistingRowsProgress>) -> String {
    match earlier.map(|earlier| &earlier.last_created_at) {
        None => "true".to_owned(),
        Some(None) => "false".to_owned(),
        Some(Some(last)) => format!("(created_at > {} or created_at is null)", quote_literal(last)),
    }
}

/// Whether a topic may have removed a record that was written since `began_ms`.
fn may_have_forgotten(memory: &Memory, began_ms: i64) -> bool {
    let compacted = memory.compacted_before_ms.is_some_and(|before_ms| before_ms > began_ms);
    let removed = memory.removed_before_ms.values().any(|first_ms| *first_ms > began_ms);
    compacted || removed
}

/// The Kafka transactions, and the checkpoint that goes with each.
struct Pieces<'a> {
    config: &'a Config,
    checkpoint: &'a mut Checkpoint,
    writer: ExistingRowsWriter<'a>,
    /// What is true once the open transaction has committed.
    progress: ExistingRowsProgress,
    open_rows: u64,
    open_bytes: usize,
    shutdown: &'a Shutdown,
}

impl Pieces<'_> {
    fn is_full(&self) -> bool {
        self.open_rows >= PIECE_ROWS || self.open_bytes >= PIECE_BYTES
    }

    /// Writes rows, and commits the open transaction before them where it is full.
    async fn write(&mut self, answer: &Answer) -> Result<(), RelayError> {
        if self.is_full() {
            self.commit_open().await?;
        }
        self.write_into_open(answer).await
    }

    async fn write_into_open(&mut self, answer: &Answer) -> Result<(), RelayError> {
        self.writer.write(answer).await?;
        self.open_rows += answer.rows.len() as u64;
        self.progress.rows += answer.rows.len() as u64;
        self.open_bytes += answer.rows.iter().flatten().flatten().map(String::len).sum::<usize>();
        Ok(())
    }

    /// Commits the open transaction, if there is one, with a checkpoint that says how far the rows are published.
    async fn commit_open(&mut self) -> Result<(), RelayError> {
        if self.open_rows == 0 {
            return Ok(());
        }
        (self.open_rows, self.open_bytes) = (0, 0);
        self.checkpoint.existing_rows = Some(self.progress.clone());
        let lineage = self.writer.lineage().clone();
        self.checkpoint.lineage = lineage;
        faults::point("init.piece-written")?;
        commit(self.writer.publisher(), self.config, self.checkpoint).await?;
        faults::point("init.piece-committed")?;
        if self.shutdown.is_triggered() {
            return Err(anyhow::anyhow!("told to stop; run init again, it goes on from here").into());
        }
        if self.writer.publisher().is_disturbed() {
            // librdkafka may have sent the EndTxn twice, and the late one could end the next transaction.
            return Err(
                anyhow::anyhow!("the connection to kafka was disturbed; run init again, it goes on from here").into(),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::{ExistingRowsProgress, Memory, late_rows_condition, may_have_forgotten, rows_behind_condition};

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
        let bounds = ((1 << 32) + 9, (1 << 32) + 17);
        assert_eq!(
            late_rows_condition(&progress(Some("t"), true), bounds),
            "created_at <= 't' and (relay_xmin::text::bigint + 4294967296 - 7) % 4294967296 < 10"
        );
        assert_eq!(
            late_rows_condition(&progress(Some("t"), false), bounds),
            "(created_at = 't' or created_at < 't' and (relay_xmin::text::bigint + 4294967296 - 7) % 4294967296 < 10)"
        );
    }

    #[test]
    fn where_nothing_tells_transactions_apart_all_rows_are_late() {
        assert_eq!(late_rows_condition(&progress(None, false), (9, 17)), "true");
        let restored = late_rows_condition(&progress(Some("t"), true), (5, 6));
        assert_eq!(restored, "created_at <= 't'");
        let unknown = ExistingRowsProgress {
            snapshot_xmin: 0,
            ..progress(Some("t"), true)
        };
        assert_eq!(late_rows_condition(&unknown, (9, 17)), "created_at <= 't'");
    }

    #[test]
    fn every_row_is_either_behind_the_progress_or_up_to_it() {
        assert_eq!(rows_behind_condition(None), "true");
        assert_eq!(rows_behind_condition(Some(&progress(None, false))), "false");
        assert_eq!(
            rows_behind_condition(Some(&progress(Some("t"), true))),
            "(created_at > 't' or created_at is null)"
        );
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
