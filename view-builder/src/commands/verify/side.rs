//! One side of a comparison: a query of `verify.sql` on its own connection.

use std::collections::BTreeMap;

use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use tokio_postgres::error::ErrorPosition;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error, Row as SqlRow};

use crate::commands::verify::file::Query;
use crate::postgres::refusal;
use crate::process::failure::Failure;
use crate::views::view::{SqlFile, ViewError};

/// Settings that a builder's session does not have. Values are always written in the same form, and a transaction may be idle while it waits for
/// the other side.
const SESSION_SETTINGS: &str = "
    set datestyle = 'ISO, YMD';
    set intervalstyle = 'postgres';
    set bytea_output = 'hex';
    set extra_float_digits = 1;
    set idle_in_transaction_session_timeout = '10min'";

/// The columns that each query must give, with the types that each may have.
const COLUMNS: [(&str, &[Type]); 4] = [
    ("bucket", &[Type::TEXT, Type::VARCHAR]),
    ("key", &[Type::INT8]),
    ("version", &[Type::INT8]),
    ("content", &[Type::TEXT, Type::VARCHAR]),
];

/// What stands before a query in parentheses.
const BEFORE_TABLE: &str = "select from ";

/// A further look asks for so many keys in one statement.
const KEYS_PER_STATEMENT: usize = 10_000;

/// The rows of one bucket, counted and hashed. The hash does not depend on their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    pub rows: i64,
    /// The sum of the rows' 64-bit hashes of key, version and content, in decimal.
    pub hashes: String,
}

/// One row without its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub bucket: Option<String>,
    pub version: i64,
    /// Hash of key, version and content.
    pub hash: i64,
}

/// One query of a comparison, and the connection that runs it in a snapshot.
pub struct Side {
    client: Client,
    /// The query in parentheses, to be used as a table in `from`.
    table: String,
    file: SqlFile,
    /// For messages, such as `the source of user-events`.
    name: String,
}

impl Side {
    /// Checks the query on a connection of its own, made by [`crate::postgres::connection::connect`]. `name` is for messages.
    ///
    /// # Errors
    /// [`Failure::View`]: Postgres refuses the query, or its columns are not bucket, key, version and content.
    pub async fn new(client: Client, query: &Query, file: &SqlFile, name: &str) -> Result<Self, Failure> {
        let side = Self {
            // The line break ends a comment in the query's last line.
            table: format!("({}\n) as verified (bucket, key, version, content)", query.sql),
            client,
            file: file.clone(),
            name: name.to_owned(),
        };
        side.client
            .batch_execute(SESSION_SETTINGS)
            .await
            .map_err(|err| side.failed(&err))?;
        let prepared = side.client.prepare(&query.sql).await;
        let statement = prepared.map_err(|err| side.refused_query(query, 0, &err))?;
        if !statement.params().is_empty() {
            return Err(side
                .wrong_query(query, "the query takes parameters, and there are none")
                .into());
        }
        let columns = statement.columns();
        let has_the_right_columns = columns.len() == COLUMNS.len()
            && columns
                .iter()
                .zip(COLUMNS)
                .all(|(column, (_, types))| types.contains(column.type_()));
        if !has_the_right_columns {
            let columns: Vec<_> = columns
                .iter()
                .map(|column| format!("{} {}", column.name(), column.type_()))
                .collect();
            let reason = format!(
                "the query gives ({}), expected (bucket text, key bigint, version bigint, content text)",
                columns.join(", ")
            );
            return Err(side.wrong_query(query, &reason).into());
        }
        // Not every statement can stand in parentheses: one with a semicolon before a comment cannot, and one that changes something neither.
        let as_table = format!("{BEFORE_TABLE}{}", side.table);
        let characters_before_query = (BEFORE_TABLE.len() + "(".len()) as u32;
        let prepared = side.client.prepare(&as_table).await;
        prepared.map_err(|err| side.refused_query(query, characters_before_query, &err))?;
        Ok(side)
    }

    /// Opens a transaction. Its first statement takes the snapshot.
    pub(crate) async fn begin(&self) -> Result<(), Failure> {
        self.execute("begin isolation level repeatable read read only").await
    }

    /// Opens a transaction whose snapshot [`Side::begin_at`] can share.
    pub(crate) async fn begin_shared(&self) -> Result<String, Failure> {
        self.begin().await?;
        let row = self.client.query_one("select pg_export_snapshot()", &[]).await;
        Ok(row.map_err(|err| self.failed(&err))?.get(0))
    }

    /// Opens a transaction in the snapshot of another session of the same database.
    pub(crate) async fn begin_at(&self, snapshot: &str) -> Result<(), Failure> {
        self.begin().await?;
        // The identifier comes from Postgres, and SET takes no parameter.
        self.execute(&format!("set transaction snapshot '{snapshot}'")).await
    }

    pub(crate) async fn end(&self) -> Result<(), Failure> {
        self.execute("commit").await
    }

    /// All buckets. The one without a name comes first, and the others are sorted by the bytes of their names.
    pub(crate) async fn stream_buckets(
        &self,
    ) -> Result<impl Stream<Item = Result<(Option<String>, Bucket), Failure>> + '_, Failure> {
        let sql = format!(
            "select bucket::text as bucket, count(*) as rows, coalesce(sum({HASH}::numeric), 0)::text as hashes,
                 count(*) filter (where key is null or version is null) as broken
             from {} group by bucket order by bucket collate \"C\" nulls first",
            self.table
        );
        let rows = self.stream(&sql, &[]).await?;
        Ok(rows.map(|row| {
            let row = row?;
            if row.get::<_, i64>("broken") > 0 {
                return Err(self.wrong_rows("a key or a version is null").into());
            }
            let bucket = Bucket {
                rows: row.get("rows"),
                hashes: row.get("hashes"),
            };
            Ok((row.get("bucket"), bucket))
        }))
    }

    /// The rows of these buckets, sorted by key. `None`: the rows of all buckets.
    pub(crate) async fn stream_rows(
        &self,
        buckets: Option<&[Option<String>]>,
    ) -> Result<impl Stream<Item = Result<(i64, Row), Failure>> + '_, Failure> {
        let names: Vec<&str> = buckets
            .iter()
            .flat_map(|list| list.iter().flatten().map(String::as_str))
            .collect();
        let with_nameless_bucket = buckets.is_some_and(|list| list.contains(&None));
        let sql = format!(
            "select {ROW} from {} where $1 or bucket = any($2::text[]) or ($3 and bucket is null) order by key",
            self.table
        );
        let rows = self
            .stream(&sql, &[&buckets.is_none(), &names, &with_nameless_bucket])
            .await?;
        Ok(rows.map(|row| self.read_row(&row?)))
    }

    /// The rows of these keys, read in a new snapshot.
    pub(crate) async fn load_rows(&self, keys: &[i64]) -> Result<BTreeMap<i64, Row>, Failure> {
        self.begin().await?;
        let sql = format!("select {ROW} from {} where key = any($1)", self.table);
        let mut rows_by_key = BTreeMap::new();
        for keys in keys.chunks(KEYS_PER_STATEMENT) {
            let mut rows = std::pin::pin!(self.stream(&sql, &[&keys]).await?);
            while let Some(row) = rows.try_next().await? {
                let (key, row) = self.read_row(&row)?;
                if rows_by_key.insert(key, row).is_some() {
                    return Err(self.repeated_key().into());
                }
            }
        }
        self.end().await?;
        Ok(rows_by_key)
    }

    /// The error that a key comes twice.
    pub(crate) fn repeated_key(&self) -> ViewError {
        self.wrong_rows("a key comes more than once")
    }

    async fn execute(&self, sql: &str) -> Result<(), Failure> {
        self.client.batch_execute(sql).await.map_err(|err| self.failed(&err))
    }

    async fn stream<'a>(
        &'a self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<impl Stream<Item = Result<SqlRow, Failure>> + use<'a>, Failure> {
        let rows = self.client.query_raw(sql, parameters.iter().copied()).await;
        Ok(rows.map_err(|err| self.failed(&err))?.map_err(|err| self.failed(&err)))
    }

    fn read_row(&self, row: &SqlRow) -> Result<(i64, Row), Failure> {
        let (Some(key), Some(version)) = (row.get("key"), row.get("version")) else {
            return Err(self.wrong_rows("a key or a version is null").into());
        };
        let bucket = row.get("bucket");
        let hash = row.get("hash");
        Ok((key, Row { bucket, version, hash }))
    }

    /// The error that the query's rows are not as they must be.
    fn wrong_rows(&self, what: &str) -> ViewError {
        self.file
            .refused(None, &format!("in the rows of {}: {what}", self.name))
    }

    /// An error about the whole query. It names the line where the query begins.
    fn wrong_query(&self, query: &Query, reason: &str) -> ViewError {
        let mut characters = (1_u32..).zip(query.sql.chars());
        let first = characters.find(|(_, character)| !character.is_whitespace());
        // No query is blank, so there is a first character.
        let first = first.map_or(1, |(number, _)| number);
        self.file.refused(Some(query.characters_before + first), reason)
    }

    /// The error that Postgres gave when it read the query, behind so many characters of ours. If the SQL is to blame, it names the line that Postgres
    /// complains about.
    fn refused_query(&self, query: &Query, characters_before_query: u32, err: &Error) -> Failure {
        match err.as_db_error() {
            Some(db) if refusal::is_wrong_sql(err) => {
                let message = format!("{}: {}", self.name, db.message());
                match db.position() {
                    Some(ErrorPosition::Original(character)) => {
                        let of_query = character.saturating_sub(characters_before_query);
                        self.file
                            .refused(Some(query.characters_before + of_query), &message)
                            .into()
                    }
                    _ => self.wrong_query(query, &message).into(),
                }
            }
            _ => self.failed(err),
        }
    }

    fn failed(&self, err: &Error) -> Failure {
        failed(&self.name, err)
    }
}

/// An error of Postgres as a failure, without a row's values. `name`: what failed.
pub(crate) fn failed(name: &str, err: &Error) -> Failure {
    let text = match refusal::kind(err) {
        refusal::Kind::Refused => refusal::without_values(err),
        _ => refusal::line(err),
    };
    anyhow::anyhow!("{name}: {text}").into()
}

/// The hash of a row. It gives the same value on every little-endian server of version 15 to 18 whose encoding is UTF-8, whatever its locale.
const HASH: &str = "hashtextextended(coalesce(content, '') collate \"C\", hashint8extended(key, version))";
const ROW: &str = "key, bucket::text as bucket, version,
    coalesce(hashtextextended(coalesce(content, '') collate \"C\", hashint8extended(key, version)), 0) as hash";
