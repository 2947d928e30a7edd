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

/// Beside a builder's session: dates always in one form, and a transaction may wait for the other side.
const SESSION: &str = "
    set datestyle = 'ISO, YMD';
    set intervalstyle = 'postgres';
    set bytea_output = 'hex';
    set extra_float_digits = 1;
    set idle_in_transaction_session_timeout = '10min'";

/// The columns that each query gives.
const COLUMNS: [(&str, &[Type]); 4] = [
    ("bucket", &[Type::TEXT, Type::VARCHAR]),
    ("key", &[Type::INT8]),
    ("version", &[Type::INT8]),
    ("content", &[Type::TEXT, Type::VARCHAR]),
];

/// Keys in one statement of a further look.
const KEYS: usize = 10_000;

/// Rows of one bucket, as one number that does not depend on their order.
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

/// A query that can be looked at in a snapshot.
pub struct Side {
    client: Client,
    /// The query as a table in `from`.
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
            .batch_execute(SESSION)
            .await
            .map_err(|err| side.failed(&err))?;
        let prepared = side.client.prepare(&query.sql).await;
        let statement = prepared.map_err(|err| side.refused(query, &err))?;
        if !statement.params().is_empty() {
            return Err(side
                .wrong(query, "the query takes parameters, and there are none")
                .into());
        }
        let columns = statement.columns();
        let fits = columns.len() == COLUMNS.len()
            && columns
                .iter()
                .zip(COLUMNS)
                .all(|(column, (_, types))| types.contains(column.type_()));
        if !fits {
            let given: Vec<_> = columns
                .iter()
                .map(|column| format!("{} {}", column.name(), column.type_()))
                .collect();
            let reason = format!(
                "the query gives ({}), expected (bucket text, key bigint, version bigint, content text)",
                given.join(", ")
            );
            return Err(side.wrong(query, &reason).into());
        }
        Ok(side)
    }

    /// Opens a transaction, whose first statement takes its snapshot.
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

    /// The buckets in the order of their names' bytes, no name first.
    pub(crate) async fn buckets(
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
                return Err(self.broken("a key or a version is null").into());
            }
            let bucket = Bucket {
                rows: row.get("rows"),
                hashes: row.get("hashes"),
            };
            Ok((row.get("bucket"), bucket))
        }))
    }

    /// The rows of these buckets in the order of their keys; none: of all buckets.
    pub(crate) async fn rows(
        &self,
        buckets: Option<&[Option<String>]>,
    ) -> Result<impl Stream<Item = Result<(i64, Row), Failure>> + '_, Failure> {
        let named: Vec<&str> = buckets
            .iter()
            .flat_map(|list| list.iter().flatten().map(String::as_str))
            .collect();
        let nameless = buckets.is_some_and(|list| list.contains(&None));
        let sql = format!(
            "select {ROW} from {} where $1 or bucket = any($2::text[]) or ($3 and bucket is null) order by key",
            self.table
        );
        let rows = self.stream(&sql, &[&buckets.is_none(), &named, &nameless]).await?;
        Ok(rows.map(|row| self.row(&row?)))
    }

    /// The rows of these keys, in a snapshot of their own.
    pub(crate) async fn rows_of(&self, keys: &[i64]) -> Result<BTreeMap<i64, Row>, Failure> {
        self.begin().await?;
        let sql = format!("select {ROW} from {} where key = any($1)", self.table);
        let mut found = BTreeMap::new();
        for part in keys.chunks(KEYS) {
            let mut rows = std::pin::pin!(self.stream(&sql, &[&part]).await?);
            while let Some(row) = rows.try_next().await? {
                let (key, row) = self.row(&row)?;
                if found.insert(key, row).is_some() {
                    return Err(self.repeated().into());
                }
            }
        }
        self.end().await?;
        Ok(found)
    }

    /// What to say where a key comes twice.
    pub(crate) fn repeated(&self) -> ViewError {
        self.broken("a key comes more than once")
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

    fn row(&self, row: &SqlRow) -> Result<(i64, Row), Failure> {
        let (Some(key), Some(version)) = (row.get("key"), row.get("version")) else {
            return Err(self.broken("a key or a version is null").into());
        };
        let bucket = row.get("bucket");
        let hash = row.get("hash");
        Ok((key, Row { bucket, version, hash }))
    }

    fn broken(&self, what: &str) -> ViewError {
        self.file
            .refused(None, &format!("in the rows of {}: {what}", self.name))
    }

    fn wrong(&self, query: &Query, reason: &str) -> ViewError {
        let mut characters = (1_u32..).zip(query.sql.chars());
        let first = characters.find(|(_, character)| !character.is_whitespace());
        // No query is blank, so there is a first character.
        let first = first.map_or(1, |(number, _)| number);
        self.file.refused(Some(query.characters_before + first), reason)
    }

    fn refused(&self, query: &Query, err: &Error) -> Failure {
        match err.as_db_error() {
            Some(db) if refusal::is_wrong_sql(err) => {
                let message = format!("{}: {}", self.name, db.message());
                match db.position() {
                    Some(ErrorPosition::Original(character)) => self
                        .file
                        .refused(Some(query.characters_before + character), &message)
                        .into(),
                    _ => self.wrong(query, &message).into(),
                }
            }
            _ => self.failed(err),
        }
    }

    fn failed(&self, err: &Error) -> Failure {
        failed(&self.name, err)
    }
}

/// Says what failed without a row's values.
pub(crate) fn failed(name: &str, err: &Error) -> Failure {
    let text = match refusal::kind(err) {
        refusal::Kind::Refused => refusal::without_values(err),
        _ => refusal::line(err),
    };
    anyhow::anyhow!("{name}: {text}").into()
}

/// The same on every little-endian server of version 15 to 18 whose encoding is UTF-8, whatever its locale.
const HASH: &str = "hashtextextended(coalesce(content, '') collate \"C\", hashint8extended(key, version))";
const ROW: &str = "key, bucket::text as bucket, version,
    coalesce(hashtextextended(coalesce(content, '') collate \"C\", hashint8extended(key, version)), 0) as hash";
