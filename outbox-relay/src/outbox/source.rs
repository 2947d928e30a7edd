//! What the relay asks Postgres: which server it is, and how the slot stands.

use std::collections::BTreeMap;

use anyhow::Context;

use super::publication::{Publication, outbox_oid};
use super::rows::first_row;
use crate::continuity::checkpoint::Lineage;
use crate::continuity::source::{Slot, Source};
use crate::continuity::timeline::History;
use crate::settings::Config;
use pg_replication::Lsn;
use pg_replication::{Connection, PgError, quote_literal};

/// The server's answer to `IDENTIFY_SYSTEM`.
#[derive(Clone, Debug)]
pub struct System {
    pub identifier: String,
    pub timeline: u32,
    /// End of the flushed WAL.
    pub wal_end: Lsn,
    /// From which earlier timelines it comes.
    pub history: Option<History>,
    /// When the server started, in microseconds since 1970 by its clock.
    pub started_us: Option<i64>,
}

/// Asks who the server is. For a replication session only.
///
/// # Errors
/// The connection broke.
pub async fn identify_server(connection: &mut Connection) -> anyhow::Result<System> {
    let answer = connection.query("IDENTIFY_SYSTEM").await?;
    let row = first_row(&answer).context("IDENTIFY_SYSTEM has no answer")?;
    let timeline = row.parse("timeline")?;
    Ok(System {
        identifier: row.text("systemid")?.to_owned(),
        timeline,
        wal_end: row.parse("xlogpos")?,
        history: read_timeline_history(connection, timeline).await?,
        started_us: connection.instance().await?.started_us(),
    })
}

/// Asks in a second session with the same server where its WAL ends now.
///
/// # Errors
/// It is not the same any more: the server was promoted meanwhile. Worth another try from the start.
pub async fn identify_same_server(connection: &mut Connection, before: &System) -> anyhow::Result<System> {
    let system = identify_server(connection).await?;
    anyhow::ensure!(
        system.identifier == before.identifier && system.timeline == before.timeline,
        "the server was cluster {} on timeline {} when this start began, and is cluster {} on timeline {} now",
        before.identifier,
        before.timeline,
        system.identifier,
        system.timeline
    );
    Ok(system)
}

/// Fails unless the slot that a second session sees is the one that our walsender reads.
///
/// # Errors
/// Somebody else reads it, or nobody does. So this session is with another server, or our stream has ended. Worth another try from the start.
pub fn ensure_slot_is_read_by(slot: Option<&Slot>, walsender_pid: i32) -> anyhow::Result<()> {
    let reader = slot.and_then(|slot| slot.active_pid);
    anyhow::ensure!(
        reader == Some(walsender_pid),
        "the slot is read by backend {}, and not by this relay's backend {walsender_pid}",
        reader.map_or_else(|| "0 (nobody)".to_owned(), |pid| pid.to_string())
    );
    Ok(())
}

/// The history of a timeline. `None`: it is the first timeline, or the server has lost the file.
async fn read_timeline_history(connection: &mut Connection, timeline: u32) -> anyhow::Result<Option<History>> {
    if timeline <= 1 {
        return Ok(None);
    }
    let answer = match connection.query(&format!("TIMELINE_HISTORY {timeline}")).await {
        Ok(answer) => answer,
        Err(err) if PgError::code_of(&err).is_some() => {
            tracing::warn!(
                timeline,
                error = format!("{err:#}"),
                "the server cannot tell where its timeline comes from"
            );
            return Ok(None);
        }
        Err(err) => return Err(err),
    };
    let row = first_row(&answer).context("TIMELINE_HISTORY has no answer")?;
    History::parse(row.text("content")?)
        .map(Some)
        .map_err(anyhow::Error::msg)
}

/// The slot's row in `pg_replication_slots`. `None`: there is no such slot.
///
/// # Errors
/// The connection broke.
pub async fn find_slot(connection: &mut Connection, name: &str) -> anyhow::Result<Option<Slot>> {
    // `failover` and `invalidation_reason` are columns of PostgreSQL 17 and later; to_jsonb has null for a column that is not there.
    let sql = format!(
        "select coalesce(plugin, 'physical') as plugin,
                coalesce(database, '') as database,
                coalesce(confirmed_flush_lsn, '0/0') as confirmed,
                coalesce(wal_status, '') as wal_status,
                coalesce((to_jsonb(s) ->> 'failover')::boolean, false) and not temporary as is_failover,
                coalesce(to_jsonb(s) ->> 'invalidation_reason', '') as invalidation_reason,
                active_pid, two_phase, catalog_xmin
         from pg_replication_slots s where slot_name = {}",
        quote_literal(name)
    );
    let answer = connection.query(&sql).await.context("cannot look at the slot")?;
    let Some(row) = first_row(&answer) else {
        return Ok(None);
    };
    Ok(Some(Slot {
        plugin: row.text("plugin")?.to_owned(),
        database: row.text("database")?.to_owned(),
        confirmed: row.parse("confirmed")?,
        wal_status: row.text("wal_status")?.to_owned(),
        is_failover: row.is_true("is_failover")?,
        invalidation_reason: row.text("invalidation_reason")?.to_owned(),
        active_pid: row.parse_nullable("active_pid")?,
        is_two_phase: row.is_true("two_phase")?,
        catalog_xmin: row.parse_nullable("catalog_xmin")?,
    }))
}

/// The lineage that a checkpoint pins from now on.
#[must_use]
pub(crate) fn new_lineage(
    config: &Config,
    system: &System,
    publication: &Publication,
    partitions: BTreeMap<String, i32>,
) -> Lineage {
    Lineage {
        system_identifier: system.identifier.clone(),
        timeline: system.timeline,
        database: config.source.target.database.clone(),
        slot: config.source.slot.to_string(),
        publication_entry: publication.entry,
        publication_version: Some(publication.version.clone()),
        outbox: publication.outbox.clone(),
        server_started_us: system.started_us,
        partitions,
        former_partitions: BTreeMap::new(),
        topic_ids: BTreeMap::new(),
        positions_raised_by: 0,
        counted_rows: Some(describe_counted_rows(config, publication)),
    }
}

/// Everything that [`crate::continuity::lineage::verify`] looks at.
#[must_use]
pub fn describe_source(config: &Config, system: &System, slot: Option<Slot>, publication: &Publication) -> Source {
    Source {
        system_identifier: system.identifier.clone(),
        timeline: system.timeline,
        history: system.history.clone(),
        started_us: system.started_us,
        database: config.source.target.database.clone(),
        wal_end: system.wal_end,
        slot,
        publication_entry: publication.entry,
        publication_version: publication.version.clone(),
        outbox: publication.outbox.clone(),
        counted_rows: describe_counted_rows(config, publication),
    }
}

/// Names every setting that decides which rows and messages of a transaction the relay counts. The index of a row depends on them, and so does the number
/// of rows in the checkpoint of a transaction that is published in part. The table has its oid, since a table that was renamed keeps its rows.
fn describe_counted_rows(config: &Config, publication: &Publication) -> String {
    let mut settings = vec![format!("--publication {}", config.source.publication)];
    if !config.outbox.table.is_empty() {
        let oid = publication.outbox.as_deref().and_then(outbox_oid).unwrap_or_default();
        settings.push(format!(
            "--table {}.{} (oid {oid})",
            config.outbox.schema, config.outbox.table
        ));
    }
    if let Some(prefix) = &config.outbox.message_prefix {
        settings.push(format!("--message-prefix {prefix}"));
    }
    settings.join(" ")
}
