//! Keeps the outbox table in order while this relay leads: makes partitions ahead, and removes what has served its time.
//!
//! A row may go once the slot has confirmed a position behind its commit, and not before. A partition is detached first, so that no row can come
//! any more, and is dropped when the slot has confirmed the position that the WAL had then. After a crash in between, the comment on the
//! detached table tells the next round. Rows in the default partition, which has no end, are deleted one by one, in a transaction whose snapshot is
//! older than a position that the slot has confirmed: what it sees is published, or parked. Nothing is removed while a parked row has values in the
//! table alone.
//!
//! It has a thread and sessions of its own, and whatever goes wrong here never stops the stream.

pub mod attached;

use std::collections::HashSet;
use std::time::Duration;

use service::clock::now_us;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use crate::outbox::days::{DAY_S, Partition, Work, droppable, is_current};
use crate::outbox::partitions::{self, Shape};
use crate::outbox::table::table_name;
use crate::parking::log::ParkedRowsNeedTable;
use crate::process::faults;
use crate::settings::{Config, Maintenance};
use crate::upkeep::attached::KnownAttachments;
use pg_replication::Lsn;
use pg_replication::{Connection, Mode, PgError};

/// How long a round waits for a confirmation; an idle relay confirms every 10 s.
const CONFIRMATION_MAX: Duration = Duration::from_secs(25);
const CONFIRMATION_POLL: Duration = Duration::from_millis(100);
/// Statements that delete rows in one transaction, and transactions in one round.
const DELETES_IN_A_TRANSACTION: usize = 10;
const TRANSACTIONS_IN_A_ROUND: usize = 100;

/// Ends the work when dropped.
#[derive(Debug)]
pub struct RunningMaintenance(#[expect(dead_code, reason = "its end is what tells")] Option<oneshot::Sender<()>>);

/// Works until the answer is dropped. `catalog_xmin` is the slot's, as it was when this relay began to lead.
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
    let (config, parked_rows_need_table) = (config.clone(), parked_rows_need_table.clone());
    let spawned = std::thread::Builder::new()
        .name("maintenance".to_owned())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            match runtime {
                Ok(runtime) => runtime.block_on(async {
                    tokio::select! {
                        () = maintain_until_dropped(&config, &options, &parked_rows_need_table, KnownAttachments::since(catalog_xmin)) => {}
                        _ = ended => {}
                    }
                }),
                Err(err) => tracing::error!(error = %err, "the outbox is not maintained"),
            }
        });
    if let Err(err) = spawned {
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
        "Age of the end of the oldest partition that has one; negative while it is still to come."
    );
    metrics::describe_counter!(
        "relay_outbox_partitions_dropped_total",
        "Partitions of the outbox table that were dropped."
    );
    metrics::describe_counter!(
        "relay_outbox_rows_deleted_total",
        "Rows that were deleted one by one because they had served their time."
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

/// What was said already, since a round comes every minute.
#[derive(Default)]
struct Said(HashSet<String>);

impl Said {
    fn is_new(&mut self, what: &str) -> bool {
        self.0.insert(what.to_owned())
    }
}

async fn maintain_until_dropped(
    config: &Config,
    options: &Maintenance,
    parked_rows_need_table: &ParkedRowsNeedTable,
    mut attached: KnownAttachments,
) {
    let mut said = Said::default();
    loop {
        match maintain_once(config, options, parked_rows_need_table, &mut said, &mut attached).await {
            Ok(()) => {
                metrics::gauge!("relay_outbox_maintenance_failing").set(0.0);
                metrics::gauge!("relay_outbox_maintenance_success_timestamp_seconds").set(now_us() as f64 / 1e6);
            }
            Err(err) => {
                metrics::gauge!("relay_outbox_maintenance_failing").set(1.0);
                let code = PgError::code_of(&err).unwrap_or("connection").to_owned();
                match code.as_str() {
                    // lock_not_available: somebody writes for long; the next round tries again.
                    "55P03" => tracing::debug!("the outbox is busy; its partitions are looked after later"),
                    // insufficient_privilege
                    "42501" if said.is_new(&code) => tracing::warn!(
                        error = format!("{err:#}"),
                        "the outbox table is not maintained: it takes its owner; give one by --maintenance-url, or --retain off --partitions-ahead 0"
                    ),
                    _ if said.is_new(&code) => tracing::warn!(
                        error = format!("{err:#}"),
                        "the outbox table could not be looked after; publishing goes on"
                    ),
                    _ => {}
                }
            }
        }
        sleep(options.interval).await;
    }
}

async fn maintain_once(
    config: &Config,
    options: &Maintenance,
    parked_rows_need_table: &ParkedRowsNeedTable,
    said: &mut Said,
    attached: &mut KnownAttachments,
) -> anyhow::Result<()> {
    let mut connection = Connection::open(&options.target, Mode::Sql).await?;
    faults::point("maintenance.round")?;
    if !partitions::begin_maintenance(&mut connection, config).await? {
        return Ok(());
    }
    // First, so that no error of the rest keeps it from looking; nor does its own keep the rest from working.
    let looked = attached.warn_of_rows_attached(&mut connection, config).await;
    keep_in_order(&mut connection, config, options, parked_rows_need_table, said).await?;
    looked
}

async fn keep_in_order(
    connection: &mut Connection,
    config: &Config,
    options: &Maintenance,
    parked_rows_need_table: &ParkedRowsNeedTable,
    said: &mut Said,
) -> anyhow::Result<()> {
    let now_s = partitions::server_time_s(connection).await?;
    let oldest_s = options.retain_days.map(|days| now_s - i64::from(days) * DAY_S);
    match partitions::read_shape(connection, config).await? {
        Shape::ByDay => look_after(connection, config, options, parked_rows_need_table, now_s, said).await?,
        Shape::Plain { has_created_at } => match oldest_s {
            Some(oldest_s) if options.purge_rows && has_created_at => {
                delete(
                    connection,
                    config,
                    parked_rows_need_table,
                    &table_name(config),
                    oldest_s,
                )
                .await?;
            }
            Some(_) if said.is_new("plain") => tracing::info!(
                "the outbox table has no partitions: nothing is removed from it; --purge-rows true would delete confirmed rows older than --retain"
            ),
            _ => {}
        },
        Shape::Other(what) => {
            if said.is_new("other") {
                tracing::info!(
                    partitioned = what,
                    "the outbox table is not partitioned by created_at alone: its partitions are yours to look after"
                );
            }
        }
    }
    if parked_rows_need_table.is_set() && options.retain_days.is_some() && said.is_new("parked") {
        tracing::warn!(
            "nothing is removed from the outbox table: a parked row has values there that were too large for the parking topic; retry or discard it"
        );
    }
    Ok(())
}

/// A table that is partitioned by day.
async fn look_after(
    connection: &mut Connection,
    config: &Config,
    options: &Maintenance,
    parked_rows_need_table: &ParkedRowsNeedTable,
    now_s: i64,
    said: &mut Said,
) -> anyhow::Result<()> {
    let found = partitions::list_partitions(connection, config).await?;
    report(&found, now_s);
    let work = Work::plan(&found, now_s, options.retain_days, options.partitions_ahead);
    for day in work.create {
        let in_default = format!("default {day}");
        if said.0.contains(&in_default) {
            continue;
        }
        let is_made = match partitions::create_partition(connection, config, day, is_current(day, now_s)).await {
            // Somebody writes to what would have to be locked for this day: it comes in a later round, the other days now.
            Err(err) if PgError::code_of(&err) == Some("55P03") => continue,
            made => made?,
        };
        if is_made {
            tracing::info!(partition.day = day, "made a partition of the outbox");
        } else {
            said.is_new(&in_default);
            tracing::warn!(
                partition.day = day,
                "rows of a day without a partition are in the default one: that day gets none, and its rows are deleted one by one in their time"
            );
        }
    }
    if !work.detach.is_empty() {
        // Detached rows are out of sight for whoever reads the table: not before all that is visible now is confirmed.
        let (now, _) = partitions::read_positions(connection, config).await?;
        if confirmed(connection, config, now).await? && !parked_rows_need_table.is_set() {
            for name in &work.detach {
                partitions::detach_partition(connection, config, name).await?;
                tracing::info!(partition = name, "detached a partition of the outbox");
            }
        }
    }
    let detached = partitions::list_detached(connection, config).await?;
    if let Some(last) = detached.iter().map(|table| table.after).max() {
        confirmed(connection, config, last).await?;
        let (_, confirmed) = partitions::read_positions(connection, config).await?;
        // Asked after the position: a row is taken note of before it is confirmed.
        let droppable = droppable(&detached, confirmed);
        for table in droppable.into_iter().filter(|_| !parked_rows_need_table.is_set()) {
            partitions::drop_detached(connection, &table.name).await?;
            metrics::counter!("relay_outbox_partitions_dropped_total").increment(1);
            tracing::info!(
                partition = table.name,
                "dropped a partition whose rows are all confirmed"
            );
        }
    }
    let default = found.iter().find(|partition| partition.is_default);
    if let (Some(default), Some(days)) = (default, options.retain_days) {
        delete(
            connection,
            config,
            parked_rows_need_table,
            &default.name,
            now_s - i64::from(days) * DAY_S,
        )
        .await?;
    }
    report(&partitions::list_partitions(connection, config).await?, now_s);
    Ok(())
}

fn report(found: &[Partition], now_s: i64) {
    metrics::gauge!("relay_outbox_partitions").set(found.len() as f64);
    if let Some(oldest_s) = found.iter().filter_map(|partition| partition.to_s).min() {
        metrics::gauge!("relay_outbox_oldest_partition_age_seconds").set((now_s - oldest_s) as f64);
    }
}

/// Waits until the slot has confirmed `position`; false where it takes too long, or there is no slot.
async fn confirmed(connection: &mut Connection, config: &Config, position: Lsn) -> anyhow::Result<bool> {
    let started = Instant::now();
    loop {
        let (_, confirmed) = partitions::read_positions(connection, config).await?;
        match confirmed {
            Some(confirmed) if confirmed >= position => return Ok(true),
            Some(_) if started.elapsed() < CONFIRMATION_MAX => sleep(CONFIRMATION_POLL).await,
            _ => return Ok(false),
        }
    }
}

/// Deletes rows of `table` itself that are older than `before_s` and confirmed.
async fn delete(
    connection: &mut Connection,
    config: &Config,
    parked_rows_need_table: &ParkedRowsNeedTable,
    table: &str,
    before_s: i64,
) -> anyhow::Result<()> {
    for _ in 0..TRANSACTIONS_IN_A_ROUND {
        if !partitions::has_older(connection, table, before_s).await? {
            return Ok(());
        }
        connection
            .rows("begin transaction isolation level repeatable read")
            .await?;
        // The transaction's snapshot is taken before the position is read: every commit that it sees lies below.
        let (position, _) = partitions::read_positions(connection, config).await?;
        let is_confirmed = confirmed(connection, config, position).await?;
        let mut deleted = 0;
        if is_confirmed && !parked_rows_need_table.is_set() {
            for _ in 0..DELETES_IN_A_TRANSACTION {
                let rows = partitions::delete_older(connection, table, before_s).await?;
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
            "deleted rows that are confirmed and have served their time"
        );
    }
    Ok(())
}
