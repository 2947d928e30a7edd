//! SQL for the outbox table's partitions: list, make, detach and drop them. [`crate::outbox::days`] decides what has to be done.
//!
//! We wait only a moment for each lock: all writers that come while we wait have to queue behind us.

use anyhow::Context;

use super::table::table_name;
use crate::outbox::days::{Detached, Partition, date_of_day};
use crate::outbox::rows::{first_row, named_rows};
use crate::settings::Config;
use pg_replication::Lsn;
use pg_replication::{Connection, PgError, quote_identifier, quote_literal};

/// Longest wait for a lock. A writer may have to wait behind us as long.
const LOCK_TIMEOUT_MS: u32 = 200;
/// How many rows one statement deletes at most.
const DELETE_ROWS: usize = 1_000;

/// How the outbox table is partitioned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// An ordinary table.
    Plain { has_created_at: bool },
    /// Partitioned by range of its `created_at` alone.
    ByDay,
    /// Partitioned by anything else, in words.
    Other(String),
}

/// Prepares a session for the other functions of this module. Returns false if another relay maintains the table now.
///
/// # Errors
/// The connection broke.
pub async fn begin_maintenance(connection: &mut Connection, config: &Config) -> anyhow::Result<bool> {
    connection
        .rows(&format!(
            "set lock_timeout = {LOCK_TIMEOUT_MS}; set statement_timeout = '5s'"
        ))
        .await?;
    let lock = quote_literal(&format!("outbox-relay maintenance of {}", table_name(config)));
    let answer = connection
        .query(&format!(
            "select pg_try_advisory_lock(hashtextextended({lock}, 0)) as is_locked"
        ))
        .await?;
    first_row(&answer).context("no answer")?.is_true("is_locked")
}

/// Reads how the table is partitioned.
///
/// # Errors
/// The table does not exist, or the connection broke.
pub async fn read_shape(connection: &mut Connection, config: &Config) -> anyhow::Result<Shape> {
    let sql = format!(
        "select coalesce(p.partstrat::text, '') as strategy,
                coalesce(p.partnatts, 0) as columns,
                coalesce(a.attname, '') as first_column,
                coalesce(format_type(a.atttypid, null), '') as first_type,
                exists (select from pg_attribute c where c.attrelid = t.oid and c.attname = 'created_at' and not c.attisdropped)
                    as has_created_at
         from (select {}::regclass::oid as oid) as t
         left join pg_partitioned_table p on p.partrelid = t.oid
         left join pg_attribute a on a.attrelid = t.oid and a.attnum = p.partattrs[0]",
        quote_literal(&table_name(config))
    );
    let answer = connection.query(&sql).await?;
    let row = first_row(&answer).context("no answer")?;
    let (strategy, columns) = (row.text("strategy")?, row.text("columns")?);
    let (column, column_type) = (row.text("first_column")?, row.text("first_type")?);
    Ok(match (strategy, columns) {
        ("", _) => Shape::Plain {
            has_created_at: row.is_true("has_created_at")?,
        },
        ("r", "1") if column == "created_at" && column_type.starts_with("timestamp") => Shape::ByDay,
        _ => Shape::Other(format!(
            "strategy {strategy}, {columns} columns, {column} {column_type}"
        )),
    })
}

/// The time by the server's clock, in seconds since 1970. `created_at` is by this clock.
///
/// # Errors
/// The connection broke.
pub async fn server_time_s(connection: &mut Connection) -> anyhow::Result<i64> {
    let answer = connection
        .query("select floor(extract(epoch from clock_timestamp()))::bigint as now_s")
        .await?;
    first_row(&answer).context("no answer")?.parse("now_s")
}

/// Lists the table's partitions.
///
/// # Errors
/// The connection broke.
pub async fn list_partitions(connection: &mut Connection, config: &Config) -> anyhow::Result<Vec<Partition>> {
    // An infinite bound is as one that is not there, such as MAXVALUE.
    let bound_sql = |word: &str| {
        format!(
            "extract(epoch from nullif(nullif(
                 (regexp_match(pg_get_expr(c.relpartbound, c.oid), '{word} \\(''([^'']+)''\\)'))[1]::timestamptz, 'infinity'), '-infinity'))::bigint"
        )
    };
    let sql = format!(
        "select format('%I.%I', n.nspname, c.relname) as name,
                pg_get_expr(c.relpartbound, c.oid) = 'DEFAULT' as is_default,
                {} as from_s, {} as to_s
         from pg_inherits i join pg_class c on c.oid = i.inhrelid join pg_namespace n on n.oid = c.relnamespace
         where i.inhparent = {}::regclass and not i.inhdetachpending order by from_s nulls first, name",
        bound_sql("FROM"),
        bound_sql("TO"),
        quote_literal(&table_name(config))
    );
    let answer = connection.query(&sql).await?;
    named_rows(&answer)
        .map(|row| {
            Ok(Partition {
                name: row.text("name")?.to_owned(),
                is_default: row.is_true("is_default")?,
                from_s: row.parse_nullable("from_s")?,
                to_s: row.parse_nullable("to_s")?,
            })
        })
        .collect()
}

/// How the comment on a detached partition begins. It ends with a position.
#[must_use]
pub fn detached_comment(config: &Config) -> String {
    format!("detached from {} by outbox-relay; ", table_name(config))
}

/// Lists the tables that this run or an earlier one has detached and not dropped yet.
///
/// # Errors
/// The connection broke.
pub async fn list_detached(connection: &mut Connection, config: &Config) -> anyhow::Result<Vec<Detached>> {
    let sql = format!(
        "select format('%I.%I', n.nspname, c.relname) as name, substring(d.description from '[0-9A-F]+/[0-9A-F]+$') as after
         from pg_description d join pg_class c on c.oid = d.objoid join pg_namespace n on n.oid = c.relnamespace
         where d.classoid = 'pg_class'::regclass and d.objsubid = 0 and c.relkind in ('r', 'p') and not c.relispartition
           and starts_with(d.description, {})",
        quote_literal(&detached_comment(config))
    );
    let answer = connection.query(&sql).await?;
    named_rows(&answer)
        .map(|row| {
            Ok(Detached {
                name: row.text("name")?.to_owned(),
                after: row.parse("after")?,
            })
        })
        .collect()
}

/// Makes the partition of a day since 1970. Returns false if the default partition has rows of that day already: they stay there.
///
/// `is_current`: rows of that day may be written now. Suppose that a writer has chosen the default partition for its row, and waits there until the new
/// partition is attached. Then its row violates the default partition's constraint, and the writer fails. So for such a day we keep all writers out of the
/// table for a moment.
///
/// # Errors
/// We did not get a lock in time, a right is missing, or the connection broke.
pub async fn create_partition(
    connection: &mut Connection,
    config: &Config,
    day: i64,
    is_current: bool,
) -> anyhow::Result<bool> {
    let (table, name) = (table_name(config), day_name(config, day));
    let bound = |day: i64| {
        let (year, month, day) = date_of_day(day);
        format!("'{year:04}-{month:02}-{day:02} 00:00:00+00'")
    };
    let lock = if is_current {
        format!("lock table {table} in share row exclusive mode;")
    } else {
        String::new()
    };
    // The partition is made as a table and then attached, since this does not lock out writers to other days. The statements of one simple query are one
    // transaction.
    let sql = format!(
        "{lock} create table {name} (like {table} including all excluding identity excluding indexes excluding statistics);
         {targets};
         alter table {table} attach partition {name} for values from ({}) to ({})",
        bound(day),
        bound(day + 1),
        targets = copy_statistics_targets(&table, &name)
    );
    match connection.rows(&sql).await {
        Ok(_) => Ok(true),
        // check_violation
        Err(err) if PgError::code_of(&err) == Some("23514") => Ok(false),
        Err(err) => Err(err),
    }
}

/// Gives the columns of a new partition the statistics targets of the table's columns, which `like` leaves out. Without this, Postgres would sample columns of
/// each partition that are not sampled in the table.
fn copy_statistics_targets(table: &str, name: &str) -> String {
    let alter = quote_literal(&format!(
        "alter table {} alter %I set statistics %s",
        name.replace('%', "%%")
    ));
    let table = quote_literal(table);
    format!(
        "do $body$ declare target record; begin
           for target in select attname, attstattarget from pg_attribute
             where attrelid = {table}::regclass and attnum > 0 and not attisdropped and attstattarget >= 0
           loop execute format({alter}, target.attname, target.attstattarget); end loop;
         end $body$"
    )
}

fn day_name(config: &Config, day: i64) -> String {
    let (year, month, day) = date_of_day(day);
    // A name may have at most 63 bytes. The day takes 9 of them.
    let mut table = config.outbox.table.clone();
    while table.len() > 54 {
        table.pop();
    }
    format!(
        "{}.{}",
        quote_identifier(&config.outbox.schema),
        quote_identifier(&format!("{table}_{year:04}{month:02}{day:02}"))
    )
}

/// Takes a partition out of the table. The position in its comment is read while we hold the locks. So every transaction that wrote to the partition has
/// committed before that position, and none can write to it any more.
///
/// # Errors
/// We did not get a lock in time, a right is missing, or the connection broke.
pub async fn detach_partition(connection: &mut Connection, config: &Config, name: &str) -> anyhow::Result<()> {
    let table = table_name(config);
    let comment = quote_literal(&format!("comment on table {} is %L", name.replace('%', "%%")));
    let text = quote_literal(&format!(
        "{}to be dropped once the slot has confirmed ",
        detached_comment(config)
    ));
    // Not `concurrently`: Postgres refuses that if the table has a default partition.
    let sql = format!(
        "alter table {table} detach partition {name};
         do $body$ begin execute format({comment}, {text} || pg_current_wal_insert_lsn()); end $body$"
    );
    connection.rows(&sql).await.map(drop)
}

/// Drops a table that was detached.
///
/// # Errors
/// We did not get a lock in time, a right is missing, or the connection broke.
pub async fn drop_detached(connection: &mut Connection, name: &str) -> anyhow::Result<()> {
    connection.rows(&format!("drop table {name}")).await.map(drop)
}

/// Reads where the WAL ends, and what the slot has confirmed. `None`: there is no slot.
///
/// # Errors
/// The connection broke.
pub async fn read_positions(connection: &mut Connection, config: &Config) -> anyhow::Result<(Lsn, Option<Lsn>)> {
    let sql = format!(
        "select pg_current_wal_insert_lsn() as wal_end,
                (select confirmed_flush_lsn from pg_replication_slots where slot_name = {}) as confirmed",
        quote_literal(&config.source.slot)
    );
    let answer = connection.query(&sql).await?;
    let row = first_row(&answer).context("no answer")?;
    Ok((row.parse("wal_end")?, row.parse_nullable("confirmed")?))
}

/// Whether `table` has rows older than `before_s`, in seconds since 1970.
///
/// # Errors
/// A right is missing, or the connection broke.
pub async fn has_rows_before(connection: &mut Connection, table: &str, before_s: i64) -> anyhow::Result<bool> {
    // Without an index on created_at this scans the table.
    let sql = format!(
        "set local statement_timeout = '60s'; select exists (select from only {table} where created_at < to_timestamp({before_s})) as has_rows_before"
    );
    let answer = connection.query(&sql).await?;
    first_row(&answer).context("no answer")?.is_true("has_rows_before")
}

/// Deletes some rows of `table` that are older than `before_s`. Returns how many.
///
/// # Errors
/// We did not get a lock in time, a right is missing, or the connection broke.
pub async fn delete_rows_before(connection: &mut Connection, table: &str, before_s: i64) -> anyhow::Result<usize> {
    let sql = format!(
        "with gone as (delete from only {table} where ctid = any (array(
             select ctid from only {table} where created_at < to_timestamp({before_s}) limit {DELETE_ROWS})) returning 1)
         select count(*) as deleted from gone"
    );
    let answer = connection.query(&sql).await?;
    first_row(&answer).context("no answer")?.parse("deleted")
}

/// Names of the tables that retention has detached from the outbox and not dropped yet, sorted. Their comment says so.
///
/// # Errors
/// The connection broke.
pub(crate) async fn names_of_detached_tables(
    connection: &mut Connection,
    config: &Config,
) -> anyhow::Result<Vec<String>> {
    let sql = format!(
        "select format('%I.%I', n.nspname, c.relname) as name
         from pg_description d join pg_class c on c.oid = d.objoid join pg_namespace n on n.oid = c.relnamespace
         where d.classoid = 'pg_class'::regclass and d.objsubid = 0 and c.relkind in ('r', 'p') and not c.relispartition
           and starts_with(d.description, {})
         order by name",
        quote_literal(&detached_comment(config))
    );
    let answer = connection.query(&sql).await?;
    named_rows(&answer)
        .map(|row| Ok(row.text("name")?.to_owned()))
        .collect()
}
