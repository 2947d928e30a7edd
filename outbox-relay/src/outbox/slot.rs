//! What the commands do with the slot: take it over, make it, drop it, move it.

use std::time::Duration;

use anyhow::Context;
use tokio::time::{Instant, sleep};

use crate::outbox::rows::first_row;
use crate::outbox::standby;
use crate::process::stop::RelayError;
use crate::settings::Config;
use pg_replication::Lsn;
use pg_replication::{Connection, Mode, PgError, quote_identifier, quote_literal};

/// SQLSTATE `object_in_use`: another session has the slot.
pub(crate) const OBJECT_IN_USE: &str = "55006";
/// SQLSTATE `undefined_object`: there is no such slot.
pub(crate) const UNDEFINED_OBJECT: &str = "42704";

/// How long the server may take to notice that the session that read the slot has ended.
const RELEASE_PATIENCE: Duration = Duration::from_secs(10);
/// As [`RELEASE_PATIENCE`], but shorter. The operator may have forgotten to stop the relay, and waits until the command says so.
const TAKE_OVER_PATIENCE: Duration = Duration::from_secs(3);
/// How long we wait between two tries.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Whether the new slot is a failover slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failover {
    /// Standbys keep a copy of it (PostgreSQL 17 and later).
    Yes,
    No,
}

/// A slot that was just made.
pub(crate) struct NewSlot {
    /// Where its stream begins.
    pub(crate) consistent_point: Lsn,
    /// Name of the snapshot that has all rows before that. It ends when the session that made the slot runs another command.
    pub(crate) exported_snapshot: String,
}

/// Takes the slot over in a new session. Nobody else can move the slot as long as the returned session lives.
///
/// # Errors
/// Somebody else reads the slot, or it cannot be read.
pub(crate) async fn take_over_slot(config: &Config) -> Result<Connection, RelayError> {
    let began_at = Instant::now();
    loop {
        let mut owner = Connection::open(&config.source.target, Mode::Replication).await?;
        let started = owner
            .start_replication(&config.source.slot, Lsn::INVALID, &config.source.publication)
            .await;
        match started {
            Ok(()) => return Ok(owner),
            Err(err) if is_in_use(&err) && began_at.elapsed() < TAKE_OVER_PATIENCE => sleep(RETRY_INTERVAL).await,
            Err(err) => {
                return Err(err
                    .context(format!(
                        "slot `{}` cannot be taken over; stop what reads it first",
                        config.source.slot
                    ))
                    .into());
            }
        }
    }
}

/// Waits until nobody reads the slot. A slot that does not exist is free. A relay that runs has to be stopped before.
///
/// # Errors
/// Somebody still reads it.
pub(crate) async fn wait_until_slot_is_free(connection: &mut Connection, config: &Config) -> Result<(), RelayError> {
    let began_at = Instant::now();
    while standby::is_taken(connection, &config.source.slot).await? {
        if began_at.elapsed() > RELEASE_PATIENCE {
            return Err(anyhow::anyhow!("a relay has slot `{}`; stop what reads it first", config.source.slot).into());
        }
        sleep(RETRY_INTERVAL).await;
    }
    Ok(())
}

/// Makes the slot.
///
/// # Errors
/// The server refuses, or the connection broke.
pub(crate) async fn create_slot(
    connection: &mut Connection,
    config: &Config,
    failover: Failover,
) -> Result<NewSlot, RelayError> {
    let sql = format!(
        "CREATE_REPLICATION_SLOT {} LOGICAL pgoutput (SNAPSHOT 'export'{})",
        quote_identifier(&config.source.slot),
        match failover {
            Failover::Yes => ", FAILOVER true",
            Failover::No => "",
        }
    );
    let answer = connection.query(&sql).await.context(
        "cannot create the slot (it takes the role attribute replication, wal_level = logical and a free slot)",
    )?;
    let row = first_row(&answer).context("CREATE_REPLICATION_SLOT has no answer")?;
    let consistent_point = row.parse("consistent_point")?;
    tracing::info!(slot = config.source.slot.as_str(), lsn = %consistent_point, "created the slot");
    Ok(NewSlot {
        consistent_point,
        exported_snapshot: row.text("snapshot_name")?.to_owned(),
    })
}

/// Drops the slot. It may be gone already: Postgres drops a half-made slot when the session that makes it ends.
///
/// # Errors
/// Somebody still reads the slot, or the connection broke.
pub(crate) async fn drop_slot(connection: &mut Connection, config: &Config) -> anyhow::Result<()> {
    let sql = format!(
        "select pg_drop_replication_slot({})",
        quote_literal(&config.source.slot)
    );
    match run_once_slot_is_free(connection, &sql).await {
        Err(err) if PgError::code_of(&err) == Some(UNDEFINED_OBJECT) => Ok(()),
        outcome => outcome.context("cannot drop the slot"),
    }
}

/// Moves the slot forward to `lsn`, so that it sends only what is committed after that.
///
/// # Errors
/// Somebody still reads the slot, or the connection broke.
pub(crate) async fn advance_slot(connection: &mut Connection, config: &Config, lsn: Lsn) -> anyhow::Result<()> {
    let slot = quote_literal(&config.source.slot);
    let sql = format!("select pg_replication_slot_advance({slot}, '{lsn}')");
    run_once_slot_is_free(connection, &sql)
        .await
        .context("cannot move the slot")
}

/// Runs `sql`, and tries again while the slot is in use: perhaps the server has not noticed yet that the slot's reader is gone.
async fn run_once_slot_is_free(connection: &mut Connection, sql: &str) -> anyhow::Result<()> {
    let began_at = Instant::now();
    loop {
        match connection.rows(sql).await {
            Ok(_) => return Ok(()),
            Err(err) if is_in_use(&err) && began_at.elapsed() < RELEASE_PATIENCE => sleep(RETRY_INTERVAL).await,
            Err(err) => return Err(err),
        }
    }
}

fn is_in_use(err: &anyhow::Error) -> bool {
    PgError::code_of(err) == Some(OBJECT_IN_USE)
}
