//! Reads the rows of the outbox table in one snapshot.

use anyhow::Context;

use super::snapshot_tables::{Table, own_rows_sql, values_of_detached};
use crate::continuity::comparison::RowsOfAKey;
use crate::outbox::rows::first_row;
use crate::outbox::table::table_name;
use crate::process::stop::RelayError;
use crate::settings::Config;
use outbox_router::Column;
use pg_replication::{Answer, Connection, Mode, quote_identifier, quote_literal};

/// How many rows are fetched at once at most.
pub(crate) const FETCH_ROWS: usize = 1_000;
/// About how many bytes are fetched at once. How many rows that are is estimated from the rows that were fetched before.
const FETCH_BYTES: usize = 4 << 20;
/// How many rows the first fetch gets, when we don't know the size of any row yet.
const FIRST_FETCH_ROWS: usize = 100;

/// The cursor of [`OutboxSnapshot::begin_reading`] and [`OutboxSnapshot::fetch`].
const EXISTING_ROWS_CURSOR: &str = "existing";

/// Which transactions a snapshot sees. Their ids have 64 bits, with the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TransactionsSeen {
    /// Every transaction with a lower id had ended when the snapshot was taken.
    pub(crate) ended_below: u64,
    /// No transaction with this id or a higher one had begun by then.
    pub(crate) none_began_from: u64,
}

/// In which order rows are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowOrder {
    OldestFirst,
    Any,
}

/// A read-only transaction that sees the outbox as it was at one moment.
pub(crate) struct OutboxSnapshot {
    connection: Connection,
    /// The outbox table, and what retention has detached from it and not dropped yet.
    tables: Vec<Table>,
    columns: Vec<Column>,
    /// SQL condition: only rows that fulfil it are read.
    condition: String,
    is_reading: bool,
    /// Bytes of the largest row that was fetched lately; 0 before the first fetch.
    row_bytes_max: usize,
}

impl OutboxSnapshot {
    /// Opens a snapshot that another session has exported, or a new one. `detached` are tables that hold further rows of the outbox.
    ///
    /// # Errors
    /// The table cannot be read, or the connection broke.
    pub(crate) async fn open(
        config: &Config,
        exported_snapshot: Option<&str>,
        detached: Vec<String>,
    ) -> Result<Self, RelayError> {
        let mut connection = Connection::open(&config.source.target, Mode::Sql).await?;
        connection
            .rows("begin transaction isolation level repeatable read, read only")
            .await?;
        if let Some(snapshot) = exported_snapshot {
            connection
                .rows(&format!("set transaction snapshot {}", quote_literal(snapshot)))
                .await?;
        }
        // If a row-level security policy hides rows, Postgres then gives an error. Without this, the hidden rows would never be published.
        connection.rows("set local row_security = off").await?;
        let own_rows = own_rows_sql(&mut connection, config).await?;
        let answer = connection
            .query(&format!("select * from {own_rows} limit 0"))
            .await
            .context("cannot read the outbox table")?;
        let columns = columns_of(&answer);
        let values = columns.iter().map(|column| quote_identifier(&column.name));
        let mut tables = vec![Table {
            values: values.collect(),
            name: own_rows,
        }];
        for name in detached {
            tables.push(Table {
                values: values_of_detached(&mut connection, config, &name).await?,
                name,
            });
        }
        Ok(Self {
            connection,
            tables,
            columns,
            condition: "true".to_owned(),
            is_reading: false,
            row_bytes_max: 0,
        })
    }

    /// Whether the table has the column `created_at`. Its rows are sorted by this column.
    #[must_use]
    pub(crate) fn has_created_at(&self) -> bool {
        self.columns.iter().any(|column| column.name == "created_at")
    }

    /// What the default of `created_at` says about the order of commits. An application that sets the column itself must set a time as its default would.
    ///
    /// # Errors
    /// The connection broke.
    pub(crate) async fn rows_of_a_key(&mut self, config: &Config) -> Result<RowsOfAKey, RelayError> {
        read_rows_of_a_key(&mut self.connection, config).await
    }

    /// From now on, only rows whose `created_at` is at or after `since_ms` (milliseconds since 1970) are read. `None` reads all rows. A row without a
    /// `created_at` is always read.
    pub(crate) fn only_since(&mut self, since_ms: Option<i64>) {
        self.condition = since_ms.map_or("true".to_owned(), |since_ms| {
            format!("(created_at is null or extract(epoch from created_at) * 1000 >= {since_ms})")
        });
    }

    /// Computes one value over all rows: `expression` is an SQL aggregate.
    ///
    /// # Errors
    /// The connection broke.
    pub(crate) async fn aggregate(&mut self, expression: &str) -> Result<Option<String>, RelayError> {
        let sql = format!("select {expression} as value from {}", self.all_rows_sql());
        let answer = self.connection.query(&sql).await?;
        let value = first_row(&answer).map(|row| row.nullable("value")).transpose()?;
        Ok(value.flatten().map(str::to_owned))
    }

    /// Begins to read all rows. [`OutboxSnapshot::fetch`] then returns them. A `*` in `expressions` stands for the table's columns.
    ///
    /// # Errors
    /// The connection broke.
    pub(crate) async fn begin_reading(&mut self, expressions: &str, order: RowOrder) -> Result<(), RelayError> {
        if self.is_reading {
            self.close_cursor(EXISTING_ROWS_CURSOR).await?;
        }
        self.open_cursor(EXISTING_ROWS_CURSOR, expressions, "true", order)
            .await?;
        self.is_reading = true;
        Ok(())
    }

    /// Opens the cursor `name` on the rows for which `condition` holds. `expressions` are as for [`OutboxSnapshot::begin_reading`]. Two cursors with the same
    /// condition give the same rows, and with [`RowOrder::OldestFirst`] also in the same order.
    ///
    /// # Errors
    /// The connection broke.
    pub(crate) async fn open_cursor(
        &mut self,
        name: &str,
        expressions: &str,
        condition: &str,
        order: RowOrder,
    ) -> Result<(), RelayError> {
        let columns = self
            .columns
            .iter()
            .map(|column| quote_identifier(&column.name))
            .collect::<Vec<_>>()
            .join(", ");
        let expressions = expressions.replacen('*', &columns, 1);
        let order = match (order, self.has_created_at()) {
            (RowOrder::Any, _) => "",
            (RowOrder::OldestFirst, true) => "order by created_at, relay_table, relay_place",
            (RowOrder::OldestFirst, false) => "order by relay_table, relay_place",
        };
        let sql = format!(
            "declare {name} no scroll cursor for select {expressions} from {} where {condition} {order}",
            self.all_rows_sql()
        );
        self.connection.rows(&sql).await?;
        Ok(())
    }

    /// Closes the cursor `name`.
    ///
    /// # Errors
    /// The connection broke.
    pub(crate) async fn close_cursor(&mut self, name: &str) -> Result<(), RelayError> {
        self.connection.rows(&format!("close {name}")).await?;
        Ok(())
    }

    /// Fetches the next rows of the cursor `name`, at most `rows_max`. At the end there are none.
    ///
    /// # Errors
    /// The connection broke.
    pub(crate) async fn fetch_from(&mut self, name: &str, rows_max: usize) -> Result<Answer, RelayError> {
        let rows = match self.row_bytes_max {
            0 => FIRST_FETCH_ROWS,
            bytes => (FETCH_BYTES / bytes).clamp(1, FETCH_ROWS),
        };
        let answer = self
            .connection
            .query(&format!("fetch {} from {name}", rows.min(rows_max)))
            .await?;
        let bytes = |row: &pg_replication::Row| row.iter().flatten().map(String::len).sum::<usize>();
        // At the end there are no rows, and their size does not matter any more.
        let largest = answer.rows.iter().map(bytes).max().unwrap_or(0);
        // After a few large rows the estimate halves with each fetch, so the fetches grow again step by step.
        self.row_bytes_max = largest.max(self.row_bytes_max / 2).max(1);
        Ok(answer)
    }

    /// Which transactions the snapshot sees.
    ///
    /// # Errors
    /// The connection broke.
    pub(crate) async fn transactions_seen(&mut self) -> Result<TransactionsSeen, RelayError> {
        let sql = "select pg_snapshot_xmin(pg_current_snapshot()) as ended_below, pg_snapshot_xmax(pg_current_snapshot()) as none_began_from";
        let answer = self.connection.query(sql).await?;
        let row = first_row(&answer).context("the snapshot has no bounds")?;
        Ok(TransactionsSeen {
            ended_below: row.parse("ended_below")?,
            none_began_from: row.parse("none_began_from")?,
        })
    }

    /// Fetches the next rows. At the end there are none.
    ///
    /// # Errors
    /// The connection broke.
    pub(crate) async fn fetch(&mut self) -> Result<Answer, RelayError> {
        self.fetch_from(EXISTING_ROWS_CURSOR, FETCH_ROWS).await
    }

    /// Computes `expressions` over the rows for which `condition` holds. `grouping` is the SQL behind that: `group by`, `order by`, `limit`.
    ///
    /// # Errors
    /// A value in the condition does not fit the type of its column; the connection broke.
    pub(crate) async fn summary(
        &mut self,
        expressions: &str,
        condition: &str,
        grouping: &str,
    ) -> Result<Answer, RelayError> {
        let sql = format!(
            "select {expressions} from {} where {condition} {grouping}",
            self.all_rows_sql()
        );
        Ok(self.connection.query(&sql).await?)
    }

    /// The table's columns.
    #[must_use]
    pub(crate) fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// Ends the transaction.
    ///
    /// # Errors
    /// The connection broke.
    pub(crate) async fn close(mut self) -> Result<(), RelayError> {
        self.connection.rows("commit").await?;
        Ok(())
    }

    fn all_rows_sql(&self) -> String {
        let selects: Vec<String> = self
            .tables
            .iter()
            .map(|Table { name, values }| {
                format!(
                    "select {}, tableoid as relay_table, ctid as relay_place, xmin as relay_xmin from {name} where {}",
                    values.join(", "),
                    self.condition
                )
            })
            .collect();
        format!("({}) as existing_rows", selects.join(" union all "))
    }
}

/// The columns of an answer, in the router's form.
pub(crate) fn columns_of(answer: &Answer) -> Vec<Column> {
    answer
        .columns
        .iter()
        .map(|(name, type_oid)| Column {
            name: name.clone(),
            type_oid: *type_oid,
        })
        .collect()
}

/// As [`OutboxSnapshot::rows_of_a_key`], without a snapshot. It needs no right to read the table.
///
/// # Errors
/// There is no such table; the connection broke.
pub(crate) async fn read_rows_of_a_key(connection: &mut Connection, config: &Config) -> Result<RowsOfAKey, RelayError> {
    let sql = format!(
        "select pg_get_expr(d.adbin, d.adrelid) as value
         from pg_attrdef d join pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum
         where d.adrelid = {}::regclass and a.attname = 'created_at'",
        quote_literal(&table_name(config))
    );
    let answer = connection.query(&sql).await?;
    let default = first_row(&answer).map(|row| row.nullable("value")).transpose()?;
    Ok(order_of_commits(default.flatten().unwrap_or_default()))
}

/// `default` is the expression that Postgres prints for the default of `created_at`; empty if there is none.
fn order_of_commits(default: &str) -> RowsOfAKey {
    const STARTS_OF_THE_TRANSACTION: [&str; 3] = ["now()", "CURRENT_TIMESTAMP", "transaction_timestamp()"];
    if default.contains("clock_timestamp()") {
        RowsOfAKey::CommitAsCreated
    } else if STARTS_OF_THE_TRANSACTION.contains(&default) {
        RowsOfAKey::CommitAfterCreation
    } else {
        RowsOfAKey::CommitAtAnyTime
    }
}

#[cfg(test)]
mod tests {
    use super::{RowsOfAKey, order_of_commits};

    #[test]
    fn the_default_of_created_at_tells_the_order_of_commits() {
        for (default, expected) in [
            ("clock_timestamp()", RowsOfAKey::CommitAsCreated),
            ("now()", RowsOfAKey::CommitAfterCreation),
            ("CURRENT_TIMESTAMP", RowsOfAKey::CommitAfterCreation),
            ("(now() + '01:00:00'::interval)", RowsOfAKey::CommitAtAnyTime),
            ("", RowsOfAKey::CommitAtAnyTime),
        ] {
            assert_eq!(order_of_commits(default), expected, "{default}");
        }
    }
}
