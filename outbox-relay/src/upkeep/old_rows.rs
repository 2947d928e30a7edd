//! Deletes old rows one by one, where no partition can be dropped: in the default partition, and in a table without partitions.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Upkeep;
use crate::outbox::partitions;
use pg_replication::{Connection, Lsn};

/// How long a round waits for a confirmation. An idle relay confirms every 10 s.
const CONFIRMATION_MAX: Duration = Duration::from_secs(25);
const CONFIRMATION_POLL: Duration = Duration::from_millis(100);
/// How many delete statements one transaction has at most, and how many transactions one round.
const DELETES_IN_A_TRANSACTION: usize = 10;
const TRANSACTIONS_IN_A_ROUND: usize = 100;

impl Upkeep {
    /// Deletes the rows of `table` itself that are older than `oldest_s` (seconds since 1970) and confirmed.
    ///
    /// The transaction's snapshot is older than a position that the slot has confirmed. So every row that the transaction sees is published or parked.
    pub(super) async fn delete_old_rows(
        &self,
        connection: &mut Connection,
        table: &str,
        oldest_s: i64,
    ) -> anyhow::Result<()> {
        for _ in 0..TRANSACTIONS_IN_A_ROUND {
            if !partitions::has_rows_before(connection, table, oldest_s).await? {
                return Ok(());
            }
            connection
                .rows("begin transaction isolation level repeatable read")
                .await?;
            // The snapshot is taken before the position is read, so every commit that it sees lies below the position.
            let (wal_end, _) = partitions::read_positions(connection, &self.config).await?;
            let is_confirmed = self.wait_until_confirmed(connection, wal_end).await?;
            let mut deleted = 0;
            if is_confirmed && !self.parked_rows_need_table.is_set() {
                for _ in 0..DELETES_IN_A_TRANSACTION {
                    let rows = partitions::delete_rows_before(connection, table, oldest_s).await?;
                    deleted += rows;
                    if rows == 0 {
                        break;
                    }
                }
            }
            connection.rows("commit").await?;
            if deleted == 0 {
                return Ok(());
            }
            metrics::counter!("relay_outbox_rows_deleted_total").increment(deleted as u64);
            tracing::info!(
                table,
                rows = deleted,
                "deleted rows that are confirmed and older than --retain"
            );
        }
        Ok(())
    }

    /// Waits until the slot has confirmed `position`. Returns false if that takes too long, or if there is no slot.
    pub(super) async fn wait_until_confirmed(
        &self,
        connection: &mut Connection,
        position: Lsn,
    ) -> anyhow::Result<bool> {
        let started = Instant::now();
        loop {
            let (_, confirmed) = partitions::read_positions(connection, &self.config).await?;
            match confirmed {
                Some(confirmed) if confirmed >= position => return Ok(true),
                Some(_) if started.elapsed() < CONFIRMATION_MAX => sleep(CONFIRMATION_POLL).await,
                _ => return Ok(false),
            }
        }
    }
}
