//! Looks after an outbox table that is partitioned by day: makes partitions, detaches them, drops them.

use super::{LOCK_NOT_AVAILABLE, Upkeep};
use crate::outbox::days::{Partition, Work, droppable, is_current};
use crate::outbox::partitions;
use pg_replication::{Connection, PgError};

impl Upkeep {
    /// Makes the missing partitions, and removes what is older than `oldest_s` (seconds since 1970) and confirmed. `None` removes nothing.
    pub(super) async fn keep_days_in_order(
        &mut self,
        connection: &mut Connection,
        now_s: i64,
        oldest_s: Option<i64>,
    ) -> anyhow::Result<()> {
        let existing = partitions::list_partitions(connection, &self.config).await?;
        report_partitions(&existing, now_s);
        let work = Work::plan(
            &existing,
            now_s,
            self.options.retain_days,
            self.options.partitions_ahead,
        );
        self.create_partitions(connection, &work.create, now_s).await?;
        self.detach_partitions(connection, &work.detach).await?;
        self.drop_detached_partitions(connection).await?;
        let default = existing.iter().find(|partition| partition.is_default);
        if let (Some(default), Some(oldest_s)) = (default, oldest_s) {
            self.delete_old_rows(connection, &default.name, oldest_s).await?;
        }
        report_partitions(&partitions::list_partitions(connection, &self.config).await?, now_s);
        Ok(())
    }

    async fn create_partitions(&mut self, connection: &mut Connection, days: &[i64], now_s: i64) -> anyhow::Result<()> {
        for &day in days {
            let rows_are_in_default = format!("default {day}");
            if self.logged.contains(&rows_are_in_default) {
                continue;
            }
            let created = partitions::create_partition(connection, &self.config, day, is_current(day, now_s)).await;
            let is_made = match created {
                // Somebody writes to a table that we would have to lock for this day. A later round makes this day, and this round makes the other days.
                Err(err) if PgError::code_of(&err) == Some(LOCK_NOT_AVAILABLE) => continue,
                created => created?,
            };
            if is_made {
                tracing::info!(partition.day = day, "made a partition of the outbox");
            } else {
                self.logged.is_first(&rows_are_in_default);
                tracing::warn!(
                    partition.day = day,
                    "rows of a day without a partition are in the default one: that day gets none, and its rows are deleted one by one in their time"
                );
            }
        }
        Ok(())
    }

    async fn detach_partitions(&self, connection: &mut Connection, names: &[String]) -> anyhow::Result<()> {
        if names.is_empty() {
            return Ok(());
        }
        // Whoever reads the table does not see detached rows. So nothing is detached before everything that is visible now is confirmed.
        let (wal_end, _) = partitions::read_positions(connection, &self.config).await?;
        if self.wait_until_confirmed(connection, wal_end).await? && !self.parked_rows_need_table.is_set() {
            for name in names {
                partitions::detach_partition(connection, &self.config, name).await?;
                tracing::info!(partition = name, "detached a partition of the outbox");
            }
        }
        Ok(())
    }

    /// Drops the detached tables whose rows are all confirmed. An earlier run may have detached them.
    async fn drop_detached_partitions(&self, connection: &mut Connection) -> anyhow::Result<()> {
        let detached = partitions::list_detached(connection, &self.config).await?;
        let Some(last) = detached.iter().map(|table| table.after).max() else {
            return Ok(());
        };
        self.wait_until_confirmed(connection, last).await?;
        let (_, confirmed) = partitions::read_positions(connection, &self.config).await?;
        for table in droppable(&detached, confirmed) {
            // Asked after the confirmed position was read: the stream notes that a parked row needs the table before that row is confirmed.
            if self.parked_rows_need_table.is_set() {
                continue;
            }
            partitions::drop_detached(connection, &table.name).await?;
            metrics::counter!("relay_outbox_partitions_dropped_total").increment(1);
            tracing::info!(
                partition = table.name,
                "dropped a partition whose rows are all confirmed"
            );
        }
        Ok(())
    }
}

fn report_partitions(existing: &[Partition], now_s: i64) {
    metrics::gauge!("relay_outbox_partitions").set(existing.len() as f64);
    if let Some(oldest_s) = existing.iter().filter_map(|partition| partition.to_s).min() {
        metrics::gauge!("relay_outbox_oldest_partition_age_seconds").set((now_s - oldest_s) as f64);
    }
}
