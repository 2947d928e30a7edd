//! The publication, which says that the outbox table is in the stream.

use anyhow::Context;

use super::rows::first_row;
use super::table::{has_table, table_name};
use crate::process::stop::{RelayError, Stop};
use crate::settings::Config;
use pg_replication::{Connection, quote_identifier, quote_literal};

/// The publication, as far as the outbox table is concerned.
#[derive(Clone, Debug)]
pub struct Publication {
    /// Oid of the catalog row that puts the table into the publication.
    pub entry: u32,
    /// Oid and `xmin` of the publication's row and of the entry's row. Every alteration that concerns the outbox changes them, even if it was taken back
    /// afterwards. Other tables may come and go.
    pub version: String,
    /// The outbox table: its name, oid, kind and persistence (unlogged if one of its partitions is). If there is no table, the prefix of the messages. We need
    /// this because a publication FOR ALL TABLES has no entry that would change with the table.
    pub outbox: Option<String>,
    pub publishes_inserts: bool,
    pub has_row_filter: bool,
    pub has_column_list: bool,
    /// The table, or a partition of it, is unlogged: its rows are not in the WAL.
    pub is_unlogged: bool,
    /// The table is partitioned, and its rows come under its partitions' names.
    pub publishes_under_partition_names: bool,
}

/// SQL for [`Publication::version`], from the tables that [`from_publication`] joins.
pub(crate) const VERSION_SQL: &str =
    "p.oid || ':' || p.xmin || ':' || coalesce(pr.oid || ':' || pr.xmin, pn.oid || ':' || pn.xmin, 'all')";

/// SQL for a table's oid and those of its partitions, in the column `relid`. It reads the catalog alone. `pg_partition_tree` would lock each partition: it
/// would wait for a partition that somebody has locked, and whoever attaches another partition would wait for it.
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

/// SQL for [`Publication::outbox`], from the tables that [`from_publication`] joins.
pub(crate) fn outbox_sql(config: &Config) -> String {
    // Null if there is no table. Rows of an unlogged partition are not in the WAL, even if the table itself is logged.
    let table = format!(
        "case when c.oid is not null then format('%I.%I %s %s %s', n.nspname, c.relname, c.oid, c.relkind,
        case when exists (select from {} pt join pg_class i on i.oid = pt.relid where i.relpersistence = 'u')
             then 'u' else c.relpersistence end) end",
        partition_tree("c.oid")
    );
    match &config.outbox.message_prefix {
        None => table,
        Some(prefix) => format!(
            "coalesce({table}, {})",
            quote_literal(&format!("messages {prefix} 0 m p"))
        ),
    }
}

/// The table's oid in a [`Publication::outbox`], if that is a table. Oid, kind and persistence stand behind the name, and the name may have spaces.
pub(crate) fn outbox_oid(outbox: &str) -> Option<u32> {
    outbox.rsplit(' ').nth(2)?.parse().ok().filter(|oid| *oid != 0)
}

/// SQL for the publication (`p`), the outbox table (`c`), and what puts the table into the publication (`pr` or `pn`). All but `p` may be missing.
pub(crate) fn from_publication(config: &Config) -> String {
    let name = quote_literal(&config.source.publication);
    let (schema, table) = (
        quote_literal(&config.outbox.schema),
        quote_literal(&config.outbox.table),
    );
    format!(
        "from pg_publication p
         left join (pg_class c join pg_namespace n on n.oid = c.relnamespace and n.nspname = {schema}) on c.relname = {table}
         left join pg_publication_rel pr on pr.prpubid = p.oid and pr.prrelid = c.oid
         left join pg_publication_namespace pn on pn.pnpubid = p.oid and pn.pnnspid = c.relnamespace
         where p.pubname = {name}"
    )
}

/// Looks the publication up. `None`: it does not exist.
///
/// # Errors
/// The connection broke.
pub async fn find_publication(
    connection: &mut Connection,
    config: &Config,
) -> anyhow::Result<Option<PublicationFound>> {
    let (schema, table) = (
        quote_literal(&config.outbox.schema),
        quote_literal(&config.outbox.table),
    );
    let (from, outbox, partitions) = (from_publication(config), outbox_sql(config), partition_tree("c.oid"));
    let sql = format!(
        "select p.pubinsert as publishes_inserts,
                c.oid is not null as has_table,
                coalesce(pr.oid, pn.oid, p.oid) as entry,
                pr.prqual is not null as has_row_filter,
                pr.prattrs is not null as has_column_list,
                exists (select from pg_publication_tables t where t.pubname = p.pubname and t.schemaname = {schema}
                        and t.tablename = {table}) or coalesce(c.relkind = 'p' and not p.pubviaroot, false) as publishes_table,
                {VERSION_SQL} as version,
                coalesce(c.relpersistence = 'u', false) or exists (
                    select from {partitions} pt join pg_class i on i.oid = pt.relid where i.relpersistence = 'u') as is_unlogged,
                coalesce(c.relkind = 'p' and not p.pubviaroot, false) as publishes_under_partition_names,
                {outbox} as outbox
         {from}"
    );
    let answer = connection.query(&sql).await.context("cannot look at the publication")?;
    let Some(row) = first_row(&answer) else {
        return Ok(None);
    };
    // Messages are in every stream, whatever the publication has. If there is no table, the publication's own oid says whether it was made anew.
    let has_table = row.is_true("has_table")?;
    let has_messages_only = !has_table && config.outbox.message_prefix.is_some();
    if !has_table && !has_messages_only {
        return Ok(Some(PublicationFound::NoTable));
    }
    // A publication leaves unlogged tables out. Then the caller has to be told that the table is unlogged.
    let is_unlogged = row.is_true("is_unlogged")?;
    if !row.is_true("publishes_table")? && !is_unlogged && !has_messages_only {
        return Ok(Some(PublicationFound::TableNotPublished));
    }
    Ok(Some(PublicationFound::Published(Publication {
        entry: row.parse("entry")?,
        version: row.text("version")?.to_owned(),
        outbox: row.nullable("outbox")?.map(str::to_owned),
        publishes_inserts: row.is_true("publishes_inserts")? || has_messages_only,
        has_row_filter: row.is_true("has_row_filter")?,
        has_column_list: row.is_true("has_column_list")?,
        is_unlogged,
        publishes_under_partition_names: row.is_true("publishes_under_partition_names")?,
    })))
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

/// Returns the publication, or why no stream may be read from it.
///
/// # Errors
/// [`Stop::Publication`] says what is wrong; anything else is transient.
pub async fn require_usable_publication(
    connection: &mut Connection,
    config: &Config,
) -> Result<Publication, RelayError> {
    let table = table_name(config);
    let name = quote_identifier(&config.source.publication);
    let what = match find_publication(connection, config).await? {
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
            } else if found.publishes_under_partition_names {
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
        publication: config.source.publication.to_string(),
        what,
    }
    .into())
}

/// Creates the publication, if there is none.
///
/// # Errors
/// The role may not create it, or the connection broke.
pub(crate) async fn create_publication(connection: &mut Connection, config: &Config) -> Result<(), RelayError> {
    if find_publication(connection, config).await?.is_some() {
        return Ok(());
    }
    let table = format!(
        "{}.{}",
        quote_identifier(&config.outbox.schema),
        quote_identifier(&config.outbox.table)
    );
    // If messages are the outbox, there may be no table. A stream needs a publication even then.
    let tables = if config.outbox.message_prefix.is_none() || has_table(connection, config).await? {
        format!("for table {table}")
    } else {
        String::new()
    };
    // Only inserts are events. And with `publish_via_partition_root` a partitioned outbox is one table in the stream.
    let sql = format!(
        "create publication {} {tables} with (publish = 'insert', publish_via_partition_root = true)",
        quote_identifier(&config.source.publication)
    );
    connection
        .rows(&sql)
        .await
        .context("cannot create the publication (it takes the table's owner, and create on the database)")?;
    tracing::info!(
        publication = config.source.publication.as_str(),
        "created the publication"
    );
    Ok(())
}
