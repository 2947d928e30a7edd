//! Keeps the outbox table in order while this relay owns the slot: makes partitions ahead of time ([`by_day`]), and removes old rows.
//!
//! A row may be removed once the slot has confirmed a position behind the row's commit, and not before. Nothing is removed while a parked row has values
//! that are in the table alone. There are two ways to remove rows:
//!
//! - **A partition** is detached first, so that no more rows can come into it. It is dropped when the slot has confirmed the position that the WAL had at
//!   that moment. The comment on the detached table has this position, so the next round knows it after a crash.
//! - **Rows of the default partition**, or of a table without partitions, are deleted one by one ([`old_rows`]).
//!
//! This work has a thread and sessions of its own. No error here stops the stream.

pub mod attached;
mod by_day;
mod old_rows;

use std::collections::HashSet;

use service::clock::now_us;
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::outbox::days::DAY_S;
use crate::outbox::partitions::{self, Shape};
use crate::outbox::table::table_name;
use crate::parking::log::ParkedRowsNeedTable;
use crate::process::faults;
use crate::settings::{Config, Maintenance};
use crate::upkeep::attached::KnownAttachments;
use pg_replication::{Connection, Mode, PgError};

/// SQLSTATE `lock_not_available`: somebody writes for a long time. The next round tries again.
const LOCK_NOT_AVAILABLE: &str = "55P03";
/// SQLSTATE `insufficient_privilege`.
const INSUFFICIENT_PRIVILEGE: &str = "42501";

/// Ends the work when it is dropped.
#[derive(Debug)]
pub struct RunningMaintenance(#[expect(dead_code, reason = "dropping it ends the work")] Option<oneshot::Sender<()>>);

/// Starts the work. It ends when the returned value is dropped. `catalog_xmin` is the slot's, as it was when this relay took the slot.
#[must_use]
pub fn start_maintenance(
    config: &Config,
    parked_rows_need_table: &ParkedRowsNeedTable,
    catalog_xmin: Option<u32>,
) -> RunningMaintenance {
    let Some(options) = config.maintenance.clone() else {
        return RunningMaintenance(None);
    };
    describe_metrics();
    let (end, ended) = oneshot::channel();
    let upkeep = Upkeep {
        config: config.clone(),
        options,
        parked_rows_need_table: parked_rows_need_table.clone(),
        logged: Logged::default(),
    };
    let thread = std::thread::Builder::new()
        .name("maintenance".to_owned())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            match runtime {
                Ok(runtime) => runtime.block_on(async {
                    tokio::select! {
                        () = upkeep.run(KnownAttachments::since(catalog_xmin)) => {}
                        _ = ended => {}
                    }
                }),
                Err(err) => tracing::error!(error = %err, "the outbox is not maintained"),
            }
        });
    if let Err(err) = thread {
        tracing::error!(error = %err, "the outbox is not maintained");
    }
    RunningMaintenance(Some(end))
}

fn describe_metrics() {
    metrics::describe_gauge!(
        "relay_outbox_partitions",
        "Partitions of the outbox table, the default one included."
    );
    metrics::describe_gauge!(
        "relay_outbox_oldest_partition_age_seconds",
        "Age of the end of the oldest partition that has one, in seconds; negative while it is still to come."
    );
    metrics::describe_counter!(
        "relay_outbox_partitions_dropped_total",
        "Partitions of the outbox table that were dropped."
    );
    metrics::describe_counter!(
        "relay_outbox_rows_deleted_total",
        "Rows that were deleted one by one because they were older than --retain."
    );
    metrics::describe_gauge!(
        "relay_outbox_maintenance_success_timestamp_seconds",
        "When the outbox table was last looked after without an error, in seconds since 1970."
    );
    metrics::describe_gauge!(
        "relay_outbox_maintenance_failing",
        "1 while the last attempt to look after the outbox table failed."
    );
}

/// Which messages were logged already. There is a round every minute, and each message is logged once.
#[derive(Default)]
struct Logged(HashSet<String>);

impl Logged {
    /// Whether the message is logged for the first time.
    fn is_first(&mut self, message: &str) -> bool {
        self.0.insert(message.to_owned())
    }

    fn contains(&self, message: &str) -> bool {
        self.0.contains(message)
    }
}

/// The work on one outbox table.
struct Upkeep {
    config: Config,
    options: Maintenance,
    parked_rows_need_table: ParkedRowsNeedTable,
    logged: Logged,
}

impl Upkeep {
    /// Does one round after the other, for ever.
    async fn run(mut self, mut attachments: KnownAttachments) {
        loop {
            match self.run_round(&mut attachments).await {
                Ok(()) => {
                    metrics::gauge!("relay_outbox_maintenance_failing").set(0.0);
                    metrics::gauge!("relay_outbox_maintenance_success_timestamp_seconds").set(now_us() as f64 / 1e6);
                }
                Err(err) => {
                    metrics::gauge!("relay_outbox_maintenance_failing").set(1.0);
                    self.log_error(&err);
                }
            }
            sleep(self.options.interval).await;
        }
    }

    fn log_error(&mut self, err: &anyhow::Error) {
        let code = PgError::code_of(err).unwrap_or("connection").to_owned();
        match code.as_str() {
            LOCK_NOT_AVAILABLE => tracing::debug!("the outbox is busy; its partitions are looked after later"),
            INSUFFICIENT_PRIVILEGE if self.logged.is_first(&code) => tracing::warn!(
                error = format!("{err:#}"),
                "the outbox table is not maintained: it takes its owner; give one by --maintenance-url, or --retain off --partitions-ahead 0"
            ),
            _ if self.logged.is_first(&code) => tracing::warn!(
                error = format!("{err:#}"),
                "the outbox table could not be looked after; publishing goes on"
            ),
            _ => {}
        }
    }

    async fn run_round(&mut self, attachments: &mut KnownAttachments) -> anyhow::Result<()> {
        let mut connection = Connection::open(&self.options.target, Mode::Sql).await?;
        faults::point("maintenance.round")?;
        if !partitions::begin_maintenance(&mut connection, &self.config).await? {
            return Ok(());
        }
        // The attachments come first, so that an error of the other work does not prevent this check. Its own error does not prevent the other work either.
        let attachments_checked = attachments.warn_of_rows_attached(&mut connection, &self.config).await;
        self.keep_in_order(&mut connection).await?;
        attachments_checked
    }

    async fn keep_in_order(&mut self, connection: &mut Connection) -> anyhow::Result<()> {
        let now_s = partitions::server_time_s(connection).await?;
        let oldest_s = self.options.retain_days.map(|days| now_s - i64::from(days) * DAY_S);
        match partitions::read_shape(connection, &self.config).await? {
            Shape::ByDay => self.keep_days_in_order(connection, now_s, oldest_s).await?,
            Shape::Plain { has_created_at } => match oldest_s {
                Some(oldest_s) if self.options.purge_rows && has_created_at => {
                    self.delete_old_rows(connection, &table_name(&self.config), oldest_s)
                        .await?;
                }
                Some(_) if self.logged.is_first("plain") => tracing::info!(
                    "the outbox table has no partitions: nothing is removed from it; --purge-rows true would delete confirmed rows older than --retain"
                ),
                _ => {}
            },
            Shape::Other(partitioned_by) => {
                if self.logged.is_first("other") {
                    tracing::info!(
                        partitioned = partitioned_by,
                        "the outbox table is not partitioned by created_at alone: its partitions are yours to look after"
                    );
                }
            }
        }
        let removes_rows = self.options.retain_days.is_some();
        if self.parked_rows_need_table.is_set() && removes_rows && self.logged.is_first("parked") {
            tracing::warn!(
                "nothing is removed from the outbox table: a parked row has values there that were too large for the parking topic; retry or discard it"
            );
        }
        Ok(())
    }
}
