//! What the relay asks Postgres: who it is, what the publication carries, how the slot stands.

use super::table::table_name;
use std::collections::BTreeMap;

use anyhow::Context;

use crate::continuity::checkpoint::Lineage;
use crate::continuity::lineage::{Slot, Source};
use crate::continuity::timeline::History;
use crate::process::stop::{RelayError, Stop};
use crate::settings::Config;
use pg_replication::Lsn;
use pg_replication::{Connection, PgError, Row, quote_identifier, quote_literal};

/// The server's answer to `IDENTIFY_SYSTEM`.
#[derive(Clone, Debug)]
pub struct System {
    pub identifier: String,
    pub timeline: u32,
    /// End of the flushed WAL.
    pub wal_end: Lsn,
    /// Where the timeline comes from.
    pub history: Option<History>,
    /// When the server started, in microseconds since 1970 by its clock.
    pub started_us: Option<i64>,
}

/// The publication, as far as the outbox table is concerned.
#[derive(Clone, Debug)]
pub struct Publication {
    /// Oid of what puts the table into the publication.
    pub entry: u32,
    /// Oid and `xmin` of the publication's row and of the entry's: any alteration that concerns the outbox changes it, also one that was
    /// taken back since. Other tables may come and go.
    pub version: String,
    /// The outbox table: its name, oid, kind and persistence (unlogged where a partition is), or the prefix of the messages where there is no table. A publication FOR ALL TABLES has no entry that would change with the table.
    pub outbox: Option<String>,
    pub publishes_inserts: bool,
    pub has_row_filter: bool,
    pub has_column_list: bool,
    /// The table, or a partition of it, is unlogged: its rows are in no WAL.
    pub is_unlogged: bool,
    /// The table is partitioned, and its rows come under its partitions' names.
    pub has_partitions_names: bool,
}

/// SQL for [`Publication::version`], of the tables that [`from_publication`] joins.
pub(crate) const VERSION: &str =
    "p.oid || ':' || p.xmin || ':' || coalesce(pr.oid || ':' || pr.xmin, pn.oid || ':' || pn.xmin, 'all')";

/// SQL for a table's oid and those of its partitions, in the column `relid`, from the catalog alone: `pg_partition_tree` takes a lock on each of
/// them, so that it waits for one that somebody has locked, and who attaches another one waits for it.
pub(crate) fn partition_tree(oid: &str) -> String {
    format!(
        "(with recursive tree(relid) as (
             select {oid}::oid
             union
             select i.inhrelid from tree join pg_inherits i on i.inhparent = tree.relid join pg_class k on k.oid = i.inhrelid
             where k.relispartition
         ) select relid from tree)"
    )
}

/// SQL for [`Publication::outbox`], of the tables that [`from_publication`] joins.
pub(crate) fn outbox_sql(config: &Config) -> String {
    // Null where there is no table. Rows of an unlogged partition are in no WAL, whatever the table itself is.
    let table = format!(
        "case when c.oid is not null then format('%I.%I %s %s %s', n.nspname, c.relname, c.oid, c.relkind,
        case when exists (select from {} pt join pg_class i on i.oid = pt.relid where i.relpersistence = 'u')
             then 'u' else c.relpersistence end) end",
        partition_tree("c.oid")
    );
    match &config.message_prefix {
        None => table,
        Some(prefix) => format!(
            "coalesce({table}, {})",
            quote_literal(&format!("messages {prefix} 0 m p"))
        ),
    }
}

/// The table's oid in a [`Publication::outbox`], where that is a table: oid, kind and persistence stand behind its name, which may have spaces.
pub(crate) fn outbox_oid(outbox: &str) -> Option<u32> {
    outbox.rsplit(' ').nth(2)?.parse().ok().filter(|oid| *oid != 0)
}

/// The publication, and what puts the outbox table into it: `p`, `c`, `pr` and `pn`, of which all but `p` may be missing.
pub(crate) fn from_publication(config: &Config) -> String {
    let name = quote_literal(&config.publication);
    let (schema, table) = (quote_literal(&config.schema), quote_literal(&config.table));
    format!(
        "from pg_publication p
         left join (pg_class c join pg_namespace n on n.oid = c.relnamespace and n.nspname = {schema}) on c.relname = {table}
         left join pg_publication_rel pr on pr.prpubid = p.oid and pr.prrelid = c.oid
         left join pg_publication_namespace pn on pn.pnpubid = p.oid and pn.pnnspid = c.relnamespace
         where p.pubname = {name}"
    )
}

/// Asks who the server is. For a replication session only.
///
/// # Errors
/// The connection broke.
pub async fn identify(connection: &mut Connection) -> anyhow::Result<System> {
    let rows = connection.rows("IDENTIFY_SYSTEM").await?;
    let row = rows.first().context("IDENTIFY_SYSTEM has no answer")?;
    let timeline = text(row, 1)?.parse().context("timeline")?;
    Ok(System {
        identifier: text(row, 0)?.to_owned(),
        timeline,
        wal_end: text(row, 2)?.parse()?,
        history: history(connection, timeline).await?,
        started_us: connection.instance().await?.started_us(),
    })
}

/// Asks once more, in a further session with the same server, where its WAL ends.
///
/// # Errors
/// It is not the same any more: the server was promoted meanwhile. Worth another try from the start.
pub async fn identify_again(connection: &mut Connection, before: &System) -> anyhow::Result<System> {
    let system = identify(connection).await?;
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

/// Makes sure that the slot which a further session sees is the one that our walsender reads.
///
/// # Errors
/// It is read by somebody else, or by nobody: this session is with another server, or our stream has ended. Worth another try from the start.
pub fn ensure_read_by(slot: Option<&Slot>, walsender_pid: i32) -> anyhow::Result<()> {
    let reader = slot.and_then(|slot| slot.active_pid);
    anyhow::ensure!(
        reader == Some(walsender_pid),
        "the slot is read by backend {}, and not by this relay's backend {walsender_pid}",
        reader.map_or_else(|| "0 (nobody)".to_owned(), |pid| pid.to_string())
    );
    Ok(())
}

/// The history of a timeline; `None` for the first, and where the server has lost the file.
async fn history(connection: &mut Connection, timeline: u32) -> anyhow::Result<Option<History>> {
    if timeline <= 1 {
        return Ok(None);
    }
    let rows = match connection.rows(&format!("TIMELINE_HISTORY {timeline}")).await {
        Ok(rows) => rows,
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
    let row = rows.first().context("TIMELINE_HISTORY has no answer")?;
    History::parse(text(row, 1)?).map(Some).map_err(anyhow::Error::msg)
}

/// Looks the publication up; `None` where it does not exist.
///
/// # Errors
/// The connection broke.
pub async fn publication(connection: &mut Connection, config: &Config) -> anyhow::Result<Option<PublicationFound>> {
    let (schema, table) = (quote_literal(&config.schema), quote_literal(&config.table));
    let (from, outbox, partitions) = (from_publication(config), outbox_sql(config), partition_tree("c.oid"));
    let sql = format!(
        "select p.pubinsert, c.oid is not null, coalesce(pr.oid, pn.oid, p.oid),
                pr.prqual is not null, pr.prattrs is not null,
                exists (select from pg_publication_tables t where t.pubname = p.pubname and t.schemaname = {schema}
                        and t.tablename = {table}) or coalesce(c.relkind = 'p' and not p.pubviaroot, false),
                {VERSION},
                coalesce(c.relpersistence = 'u', false) or exists (
                    select from {partitions} pt join pg_class i on i.oid = pt.relid where i.relpersistence = 'u'),
                coalesce(c.relkind = 'p' and not p.pubviaroot, false),
                {outbox}
         {from}"
    );
    let rows = connection.rows(&sql).await.context("cannot look at the publication")?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    // Messages are in every stream, whatever the publication has; without a table its own oid tells whether it was made anew.
    let has_messages_only = text(row, 1)? != "t" && config.message_prefix.is_some();
    if text(row, 1)? != "t" && !has_messages_only {
        return Ok(Some(PublicationFound::NoTable));
    }
    // Publications leave unlogged tables out; that is what has to be said of them then.
    let is_unlogged = text(row, 7)? == "t";
    if text(row, 5)? != "t" && !is_unlogged && !has_messages_only {
        return Ok(Some(PublicationFound::TableNotPublished));
    }
    Ok(Some(PublicationFound::Published(Publication {
        entry: text(row, 2)?.parse().context("oid")?,
        version: text(row, 6)?.to_owned(),
        outbox: row.get(9).cloned().flatten(),
        publishes_inserts: text(row, 0)? == "t" || has_messages_only,
        has_row_filter: text(row, 3)? == "t",
        has_column_list: text(row, 4)? == "t",
        is_unlogged,
        has_partitions_names: text(row, 8)? == "t",
    })))
}

/// Whether there is an outbox table; where messages are the outbox, there need not be.
///
/// # Errors
/// The connection broke.
pub async fn has_table(connection: &mut Connection, config: &Config) -> anyhow::Result<bool> {
    let sql = format!(
        "select exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
                        where n.nspname = {} and c.relname = {})",
        quote_literal(&config.schema),
        quote_literal(&config.table)
    );
    let rows = connection
        .rows(&sql)
        .await
        .context("cannot look for the outbox table")?;
    Ok(rows.first().map(|row| text(row, 0)).transpose()? == Some("t"))
}

/// A publication that exists.
#[derive(Clone, Debug)]
pub enum PublicationFound {
    /// The outbox table does not exist.
    NoTable,
    /// The publication has other tables only.
    TableNotPublished,
    Published(Publication),
}

/// The publication, or why no stream may be read from it.
///
/// # Errors
/// [`Stop::Publication`] says what is wrong; anything else is transient.
pub async fn usable_publication(connection: &mut Connection, config: &Config) -> Result<Publication, RelayError> {
    let table = table_name(config);
    let name = quote_identifier(&config.publication);
    let what = match publication(connection, config).await? {
        None => format!(
            "it does not exist; create publication {name} for table {table} with (publish = 'insert', publish_via_partition_root = true)"
        ),
        Some(PublicationFound::NoTable) => format!("table {table} does not exist; create it, or give another --table"),
        Some(PublicationFound::TableNotPublished) => {
            format!(
                "table {table} is not in it, so its rows are in no stream; alter publication {name} add table {table}"
            )
        }
        Some(PublicationFound::Published(found)) => {
            if !found.publishes_inserts {
                format!(
                    "it does not publish inserts, so events are in no stream; alter publication {name} set (publish = 'insert')"
                )
            } else if found.has_row_filter {
                format!(
                    "it has a row filter, which hides events; alter publication {name} drop table {table}; alter publication {name} add table {table}"
                )
            } else if found.has_column_list {
                format!(
                    "it has a column list, which hides columns of events; alter publication {name} drop table {table}; alter publication {name} add table {table}"
                )
            } else if found.has_partitions_names {
                format!(
                    "table {table} is partitioned, and the rows come under its partitions' names; alter publication {name} set (publish_via_partition_root = true)"
                )
            } else if found.is_unlogged {
                format!(
                    "table {table}, or a partition of it, is unlogged, so its rows are in no stream; alter table {table} set logged (of a partitioned table, each unlogged partition), and then `outbox-relay recover --compare-anyway`"
                )
            } else {
                return Ok(found);
            }
        }
    };
    Err(Stop::Publication {
        publication: config.publication.clone(),
        what,
    }
    .into())
}

/// The slot's row in `pg_replication_slots`; `None` where there is none.
///
/// # Errors
/// The connection broke.
pub async fn slot(connection: &mut Connection, name: &str) -> anyhow::Result<Option<Slot>> {
    // The reason is a column of PostgreSQL 17 and later.
    let sql = format!(
        "select coalesce(plugin, 'physical'), coalesce(database, ''), coalesce(confirmed_flush_lsn, '0/0'), coalesce(wal_status, ''),
                coalesce((to_jsonb(s) ->> 'failover')::boolean, false) and not temporary,
                coalesce(to_jsonb(s) ->> 'invalidation_reason', ''), active_pid, two_phase, catalog_xmin
         from pg_replication_slots s where slot_name = {}",
        quote_literal(name)
    );
    let rows = connection.rows(&sql).await.context("cannot look at the slot")?;
    rows.first().map(read_slot).transpose()
}

fn read_slot(row: &Row) -> anyhow::Result<Slot> {
    Ok(Slot {
        plugin: text(row, 0)?.to_owned(),
        database: text(row, 1)?.to_owned(),
        confirmed: text(row, 2)?.parse()?,
        wal_status: text(row, 3)?.to_owned(),
        is_failover: text(row, 4)? == "t",
        invalidation_reason: text(row, 5)?.to_owned(),
        active_pid: row.get(6).and_then(Option::as_deref).map(str::parse).transpose()?,
        is_two_phase: text(row, 7)? == "t",
        catalog_xmin: row.get(8).and_then(Option::as_deref).map(str::parse).transpose()?,
    })
}

/// The lineage that a checkpoint pins from now on.
#[must_use]
pub(crate) fn lineage(
    config: &Config,
    system: &System,
    publication: &Publication,
    partitions: BTreeMap<String, i32>,
) -> Lineage {
    Lineage {
        system_identifier: system.identifier.clone(),
        timeline: system.timeline,
        database: config.target.database.clone(),
        slot: config.slot.clone(),
        publication_entry: publication.entry,
        publication_version: Some(publication.version.clone()),
        outbox: publication.outbox.clone(),
        server_started_us: system.started_us,
        partitions,
        former_partitions: BTreeMap::new(),
        topic_ids: BTreeMap::new(),
        positions_raised_by: 0,
    }
}

/// Everything that [`crate::continuity::lineage::verify`] looks at.
#[must_use]
pub fn source(system: &System, database: &str, slot: Option<Slot>, publication: &Publication) -> Source {
    Source {
        system_identifier: system.identifier.clone(),
        timeline: system.timeline,
        history: system.history.clone(),
        started_us: system.started_us,
        database: database.to_owned(),
        wal_end: system.wal_end,
        slot,
        publication_entry: publication.entry,
        publication_version: publication.version.clone(),
        outbox: publication.outbox.clone(),
    }
}

pub(crate) fn text(row: &Row, index: usize) -> anyhow::Result<&str> {
    row.get(index)
        .and_then(Option::as_deref)
        .with_context(|| format!("column {index} of the answer is missing"))
}
