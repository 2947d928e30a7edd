//! Publishes the rows that were in the table before the slot, in Kafka transactions of bounded size. Each row is published once, however often `init` is
//! killed.
//!
//! A small outbox is published in one transaction, together with the checkpoint that says `running`. A larger one is published in pieces, in the order of
//! `created_at`. Each piece carries a checkpoint that still says `initialising`. It says how far the rows are published ([`ExistingRowsProgress`]): all rows
//! of the snapshot up to some `created_at`.
//!
//! A slot's snapshot ends with its session, so an `init` that goes on makes the slot anew. The new snapshot has every row that the new slot's stream will not
//! send, so nothing can be lost. But it has to find out which of these rows are published already:
//!
//! - Rows behind the progress' `created_at` are not published: no attempt came so far. They are published in order.
//! - Rows up to there are published, except those that were committed since: see [`super::late_rows`].
//!
//! Late rows are published before the rest. Only after them does the progress say that it belongs to the new snapshot. Until then it belongs to the earlier
//! one. So after a kill, the next attempt looks the same rows up again, and finds in the topics those that were published.
//!
//! The order within a key holds: a late row was committed after all rows that an earlier snapshot saw, and no other transaction of its key has waited for it.

use anyhow::Context;
use service::clock::now_us;

use super::late_rows::LateRows;
use super::piece_writer::PieceWriter;
use crate::commands::planted;
use crate::continuity::checkpoint::{Checkpoint, ExistingRowsProgress, State};
use crate::intake::existing_rows::ExistingRowsWriter;
use crate::intake::outbox_snapshot::{OutboxSnapshot, RowOrder};
use crate::kafka::Publisher;
use crate::outbox::rows::named_rows;
use crate::process::progress_bar::RowsProgress;
use crate::process::stop::RelayError;
use crate::settings::{Config, Undecided};
use pg_replication::Lsn;
use pg_replication::quote_literal;
use service::Shutdown;

/// Column that is added to a row's own: its `created_at` as text, or null.
const CREATED_AT: &str = "relay_created_at";

/// What an attempt to publish the existing rows works with.
pub(crate) struct ExistingRowsJob<'a> {
    pub(crate) config: &'a Config,
    /// Name of the slot's snapshot.
    pub(crate) exported_snapshot: &'a str,
    /// Where the slot's stream begins.
    pub(crate) consistent_point: Lsn,
    pub(crate) undecided: Option<Undecided>,
    pub(crate) shutdown: &'a Shutdown,
}

impl ExistingRowsJob<'_> {
    /// Publishes every row of the snapshot that is not published yet. Returns how many. The last rows stay in the open Kafka transaction, for the
    /// checkpoint that ends the init. `checkpoint` is the one that is `initialising`, with the progress of earlier attempts.
    ///
    /// # Errors
    /// A [`crate::process::stop::Stop`]; anything else is worth another try, which goes on behind what is published.
    pub(crate) async fn publish(
        &self,
        checkpoint: &mut Checkpoint,
        publisher: &mut Publisher,
    ) -> Result<u64, RelayError> {
        assert!(
            checkpoint.state == State::Initialising,
            "only a checkpoint that says so lets init go on"
        );
        let mut snapshot = OutboxSnapshot::open(self.config, Some(self.exported_snapshot), Vec::new()).await?;
        let transactions = snapshot.transactions_seen().await?;
        let earlier = checkpoint.existing_rows.clone();
        let progress = earlier.clone().unwrap_or(ExistingRowsProgress {
            began_ms: now_us() / 1_000,
            snapshot_xmin: transactions.ended_below,
            last_created_at: None,
            is_whole: false,
            rows: 0,
        });
        let mut lineage = checkpoint.lineage.clone();
        let writer = ExistingRowsWriter::new(self.config, &mut lineage, publisher, self.consistent_point);
        let mut pieces = PieceWriter::new(self.config, checkpoint, writer, progress, self.shutdown);
        if let Some(earlier) = &earlier
            && !planted::continues_behind_last_row()
        {
            let late = LateRows {
                config: self.config,
                earlier,
                transactions,
                undecided: self.undecided,
                shutdown: self.shutdown,
            };
            late.publish_those_in_no_topic(&mut snapshot, &mut pieces).await?;
        }
        // Only after the late rows: see the top of this file.
        pieces.progress.snapshot_xmin = transactions.ended_below;
        publish_rows_behind(&mut snapshot, &mut pieces, earlier.as_ref()).await?;
        let rows = pieces.rows();
        checkpoint.lineage = lineage;
        snapshot.close().await?;
        Ok(rows)
    }
}

/// Publishes the rows behind the earlier attempts' progress. If there was no earlier attempt, publishes all rows.
async fn publish_rows_behind(
    snapshot: &mut OutboxSnapshot,
    pieces: &mut PieceWriter<'_>,
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
            &format!("*, {created_at} as {CREATED_AT}"),
            &condition,
            RowOrder::OldestFirst,
        )
        .await?;
    let total = snapshot
        .aggregate(&format!("count(*) filter (where {condition})"))
        .await?
        .context("no count")?;
    let mut bar = RowsProgress::start("publishing existing rows", total.parse().context("a count")?);
    loop {
        let answer = snapshot.fetch().await?;
        let (Some(first), Some(last)) = (named_rows(&answer).next(), named_rows(&answer).last()) else {
            break;
        };
        if pieces.is_full() {
            // Rows with the same `created_at` may come in two pieces, and the next attempt has to know.
            pieces.progress.is_whole = first.nullable(CREATED_AT)? != pieces.progress.last_created_at.as_deref();
            pieces.commit_open().await?;
        }
        let last_created_at = last.nullable(CREATED_AT)?.map(str::to_owned);
        pieces.write_into_open(&answer).await?;
        pieces.progress.last_created_at = last_created_at;
        bar.advance(answer.rows.len() as u64);
    }
    bar.finish();
    Ok(())
}

/// SQL for the rows that no earlier attempt came to. Rows without a `created_at` are the last.
fn rows_behind_condition(earlier: Option<&ExistingRowsProgress>) -> String {
    match earlier.map(|earlier| &earlier.last_created_at) {
        None => "true".to_owned(),
        Some(None) => "false".to_owned(),
        Some(Some(last)) => format!("(created_at > {} or created_at is null)", quote_literal(last)),
    }
}

#[cfg(test)]
mod tests {
    use super::{ExistingRowsProgress, rows_behind_condition};

    #[test]
    fn every_row_is_either_behind_the_progress_or_up_to_it() {
        let progress = |last_created_at: Option<&str>| ExistingRowsProgress {
            began_ms: 1_000,
            snapshot_xmin: 7,
            last_created_at: last_created_at.map(str::to_owned),
            is_whole: true,
            rows: 5_000,
        };
        assert_eq!(rows_behind_condition(None), "true");
        assert_eq!(rows_behind_condition(Some(&progress(None))), "false");
        assert_eq!(
            rows_behind_condition(Some(&progress(Some("t")))),
            "(created_at > 't' or created_at is null)"
        );
    }
}
