//! The tables that have rows of the outbox: the outbox table itself, and what retention has detached from it.

use crate::outbox::rows::named_rows;
use crate::outbox::table::table_name;
use crate::settings::Config;
use pg_replication::{Connection, quote_literal};

/// A table that has rows of the outbox.
pub(super) struct Table {
    pub(super) name: String,
    /// SQL for the value of each column of the outbox, in their order.
    pub(super) values: Vec<String>,
}

/// SQL for the table with the outbox's own rows. `only` leaves out the rows of a table that inherits the outbox: no stream has them either. A partitioned
/// table has no rows of its own, so there the rows of its partitions are read.
pub(super) async fn own_rows_sql(connection: &mut Connection, config: &Config) -> anyhow::Result<String> {
    let table = table_name(config);
    let sql = format!(
        "select from pg_class where oid = to_regclass({}) and relkind = 'p'",
        quote_literal(&table)
    );
    let is_partitioned = !connection.rows(&sql).await?.is_empty();
    Ok(if is_partitioned { table } else { format!("only {table}") })
}

/// SQL for the values of a detached table. The outbox may have been altered since: where the table lacks a column, its rows have no value for it.
pub(super) async fn values_of_detached(
    connection: &mut Connection,
    config: &Config,
    detached: &str,
) -> anyhow::Result<Vec<String>> {
    let sql = format!(
        "select case when d.attname is null then format('null::%s as %I', format_type(a.atttypid, a.atttypmod), a.attname)
                     when d.atttypid <> a.atttypid then format('%1$I::%2$s as %1$I', a.attname, format_type(a.atttypid, a.atttypmod))
                     else format('%I', a.attname) end as value
         from pg_attribute a
         left join pg_attribute d on d.attrelid = {}::regclass and d.attname = a.attname and d.attnum > 0 and not d.attisdropped
         where a.attrelid = {}::regclass and a.attnum > 0 and not a.attisdropped order by a.attnum",
        quote_literal(detached),
        quote_literal(&table_name(config))
    );
    let answer = connection.query(&sql).await?;
    named_rows(&answer)
        .map(|row| Ok(row.text("value")?.to_owned()))
        .collect()
}
