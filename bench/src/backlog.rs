//! A backlog: rows in the outbox that nobody has read yet, and slots that begin before them.

use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::TryStreamExt;
use stack::pipeline::USERS_DATABASE;
use stack::{Pipeline, eventually_ok, postgres};
use tokio_postgres::Client;
use uuid::Uuid;

/// The slot that keeps the WAL of the backlog. Every run reads a copy of this slot.
const BASE_SLOT: &str = "bench_base";
/// So many connections write the one-row transactions.
const WRITERS: u64 = 4;
/// The values of one outbox row. It has a payload of about 440 bytes and a random key.
const ROW: &str = "'user', (random() * 1e9)::bigint::text, 'USER_CREATED',
    jsonb_build_object('eventType', 'USER_CREATED', 'userId', (random() * 1e9)::bigint, 'version', 1,
        'note', repeat(md5(random()::text), 11))";
/// A walsender takes a moment to notice that its client has gone.
const SLOT_RELEASE_DEADLINE: Duration = Duration::from_secs(20);

/// How the rows are spread over transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Each row has a transaction of its own.
    Singles,
    /// All rows are in one transaction.
    Bulk,
}

impl Shape {
    pub(crate) fn describe(self, rows: u64) -> String {
        let rows = crate::statistics::thousands(rows as f64);
        match self {
            Self::Singles => format!("{rows} one-row transactions"),
            Self::Bulk => format!("one transaction of {rows} rows"),
        }
    }
}

/// The backlog and the connection that manages its slots.
pub(crate) struct Backlog {
    client: Client,
    pub rows: u64,
    pub shape: Shape,
    /// The mean length of a payload as text.
    pub payload_bytes: f64,
    /// The end of the backlog: every row is at or before this LSN.
    pub end_lsn: String,
}

impl Backlog {
    /// Empties the outbox and writes `rows` rows that the base slot has not read.
    ///
    /// # Errors
    /// PostgreSQL refuses.
    pub(crate) async fn write(pipeline: &Pipeline, shape: Shape, rows: u64) -> anyhow::Result<Self> {
        let url = pipeline.database_url(USERS_DATABASE)?;
        let client = postgres::connect(&url).await?;
        client.batch_execute("truncate outbox").await?;
        client
            .execute(
                "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = $1",
                &[&BASE_SLOT],
            )
            .await?;
        client
            .execute(
                "select pg_create_logical_replication_slot($1, 'pgoutput')",
                &[&BASE_SLOT],
            )
            .await?;
        match shape {
            Shape::Singles => {
                let writers = (0..WRITERS).map(|writer| write_singles(&url, share(rows, writer)));
                futures_util::future::try_join_all(writers).await?;
            }
            Shape::Bulk => {
                client
                    .batch_execute(&format!(
                        "insert into outbox (aggregatetype, aggregateid, type, payload)
                         select {ROW} from generate_series(1, {rows})"
                    ))
                    .await?;
            }
        }
        client.batch_execute("vacuum analyze outbox").await?;
        client.batch_execute("checkpoint").await?;
        let row = client
            .query_one(
                "select count(*), avg(octet_length(payload::text))::float8, pg_current_wal_flush_lsn()::text from outbox",
                &[],
            )
            .await?;
        let counted = u64::try_from(row.get::<_, i64>(0))?;
        ensure!(counted == rows, "the outbox has {counted} rows instead of {rows}");
        Ok(Self {
            client,
            rows,
            shape,
            payload_bytes: row.get(1),
            end_lsn: row.get(2),
        })
    }

    /// Makes a new slot `name` that begins where the base slot begins.
    ///
    /// # Errors
    /// PostgreSQL refuses.
    pub(crate) async fn copy_slot(&self, name: &str) -> anyhow::Result<()> {
        self.client
            .execute("select pg_copy_logical_replication_slot($1, $2)", &[&BASE_SLOT, &name])
            .await
            .context("cannot copy the replication slot")
            .map(drop)
    }

    /// Waits until nobody reads the slot.
    ///
    /// # Errors
    /// It stays in use.
    pub(crate) async fn wait_until_free(&self, name: &str) -> anyhow::Result<()> {
        eventually_ok(SLOT_RELEASE_DEADLINE, "the slot is free", || async {
            let sql = "select active from pg_replication_slots where slot_name = $1";
            let is_active: bool = self.client.query_one(sql, &[&name]).await?.get(0);
            ensure!(!is_active, "the replication slot is in use");
            Ok(())
        })
        .await
    }

    /// Waits until nobody reads the slot, and drops it.
    ///
    /// # Errors
    /// It stays in use.
    pub(crate) async fn drop_slot(&self, name: &str) -> anyhow::Result<()> {
        eventually_ok(SLOT_RELEASE_DEADLINE, "the slot is free", || async {
            self.client
                .execute("select pg_drop_replication_slot($1)", &[&name])
                .await
                .context("cannot drop the replication slot")
                .map(drop)
        })
        .await
    }

    /// # Errors
    /// `published` does not have every outbox id exactly once, or has something else.
    pub(crate) async fn check_exactly_once(&self, published: Vec<Uuid>) -> anyhow::Result<()> {
        check_exactly_once(&self.client, published).await
    }
}

/// # Errors
/// `published` does not have every id of the outbox exactly once, or has something else.
pub(crate) async fn check_exactly_once(client: &Client, mut published: Vec<Uuid>) -> anyhow::Result<()> {
    // This is a COPY, which sends one row after the other, because there may be many millions of rows.
    let mut rows = pin!(client.copy_out("copy (select id from outbox) to stdout").await?);
    let mut wanted = Vec::with_capacity(published.len());
    while let Some(row) = rows.try_next().await? {
        wanted.push(Uuid::try_parse_ascii(row.trim_ascii_end())?);
    }
    wanted.sort_unstable();
    published.sort_unstable();
    let (rows, records) = (wanted.len(), published.len());
    let is_exact = wanted == published;
    published.dedup();
    ensure!(
        is_exact,
        "the topic does not have every outbox id exactly once: {rows} rows in the outbox, {records} records, {} different ids",
        published.len()
    );
    Ok(())
}

/// Finds a program that comes with PostgreSQL. It prefers Debian's directory of the newest version, because the commands in the PATH are slower
/// wrappers there.
///
/// # Errors
/// There is no such program. The message names the package.
pub(crate) fn client_program(name: &str, package: &str) -> anyhow::Result<PathBuf> {
    let version = |directory: &PathBuf| directory.file_name()?.to_str()?.parse::<u32>().ok();
    let mut directories: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .collect();
    directories.sort_by_key(|directory| std::cmp::Reverse(version(directory)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    directories
        .into_iter()
        .map(|directory| directory.join("bin"))
        .chain(std::env::split_paths(&path))
        .map(|directory| directory.join(name))
        .find(|program| program.is_file())
        .with_context(|| format!("there is no {name}: on Debian and Ubuntu install the package {package}"))
}

async fn write_singles(url: &str, rows: u64) -> anyhow::Result<()> {
    let client = postgres::connect(url).await?;
    // Commits are asynchronous, because the making of the backlog is not measured.
    client
        .batch_execute("set synchronous_commit = off; set timezone = 'UTC'")
        .await?;
    let script = format!(
        "do $$ begin
            for i in 1..{rows} loop
                insert into outbox (aggregatetype, aggregateid, type, payload) values ({ROW});
                commit;
            end loop;
        end $$"
    );
    client.batch_execute(&script).await?;
    Ok(())
}

/// How many of `rows` this writer writes.
fn share(rows: u64, writer: u64) -> u64 {
    rows / WRITERS + u64::from(writer < rows % WRITERS)
}

#[cfg(test)]
mod tests {
    use super::{Shape, WRITERS, share};

    #[test]
    fn the_writers_write_all_rows_between_them() {
        for rows in [0, 1, 5, 200_000, 200_003] {
            assert_eq!((0..WRITERS).map(|writer| share(rows, writer)).sum::<u64>(), rows);
        }
    }

    #[test]
    fn a_backlog_is_described() {
        assert_eq!(Shape::Singles.describe(200_000), "200,000 one-row transactions");
        assert_eq!(Shape::Bulk.describe(500_000), "one transaction of 500,000 rows");
    }
}
