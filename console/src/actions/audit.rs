//! The audit: a table in the views' database, with a row for each change.

use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;
use time::OffsetDateTime;
use tokio_postgres::{Client, Row};

use crate::postgres::{self, SqlError};
use crate::settings::Database;

/// Looked for first: Postgres refuses `create table if not exists` to a role that may not make tables, also where the table is there.
const TABLE: &str = "
    do $$
    begin
        if to_regclass('public.console_audit') is null then
            create table public.console_audit (
                id        bigint      generated always as identity primary key,
                at        timestamptz not null default clock_timestamp(),
                -- The name of the token.
                who       text        not null,
                action    text        not null,
                command   text        not null,
                reason    text        not null,
                before    jsonb       not null,
                -- The rest is null while the command runs. If the console was killed meanwhile, the next one gives the row an end.
                ended_at  timestamptz,
                after     jsonb,
                exit_code integer,
                output    text
            );
        end if;
    end
    $$";
/// Most bytes of a command's output that a row keeps.
const OUTPUT_BYTES_MAX: usize = 64 * 1024;
const TIME_MAX: Duration = Duration::from_secs(2);

/// What a row has before the command begins.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    pub person: &'a str,
    pub title: &'a str,
    pub command: &'a str,
    pub reason: &'a str,
    pub before: &'a Value,
}

/// A row, as the page shows it.
#[derive(Clone, Debug)]
pub struct Written {
    pub id: i64,
    pub at: OffsetDateTime,
    pub who: String,
    pub action: String,
    pub command: String,
    pub reason: String,
    pub before: Value,
    pub ended_at: Option<OffsetDateTime>,
    pub after: Option<Value>,
    pub exit_code: Option<i32>,
    pub output: Option<String>,
}

/// What a row says whose command the console has not seen to its end.
const LEFT: &str = "The console ended meanwhile, so it is not known how the command has ended.";

/// Makes the table if it is missing, and lets the reading role read it.
///
/// # Errors
/// The database does not answer, or refuses.
pub async fn prepare(database: &Database, reader: &Database) -> anyhow::Result<()> {
    in_time(async {
        let client = connect(database).await?;
        client.batch_execute(TABLE).await.context("the table cannot be made")?;
        if reader.target.user != database.target.user {
            let user = reader.target.user.replace('"', "\"\"");
            let sql = format!("grant select on public.console_audit to \"{user}\"");
            client
                .batch_execute(&sql)
                .await
                .context("the reading role cannot be let in")?;
        }
        Ok(())
    })
    .await
}

/// Adds the row of a change that is about to begin. Returns its number.
///
/// # Errors
/// The database does not answer in time, or refuses: then the change must not begin.
pub async fn begin(database: &Database, entry: &Entry<'_>) -> anyhow::Result<i64> {
    in_time(async {
        let client = connect(database).await?;
        client.batch_execute(TABLE).await?;
        let row = client
            .query_one(
                "insert into public.console_audit (who, action, command, reason, before) values ($1, $2, $3, $4, $5) returning id",
                &[&entry.person, &entry.title, &entry.command, &entry.reason, &entry.before],
            )
            .await?;
        Ok(row.get("id"))
    })
    .await
}

/// Adds the end of a change to its row.
///
/// # Errors
/// The database does not answer in time, or refuses.
pub async fn end(
    database: &Database,
    id: i64,
    after: &Value,
    exit_code: Option<i32>,
    output: &str,
) -> anyhow::Result<()> {
    // Postgres has no text with U+0000.
    let output = end_of(output, OUTPUT_BYTES_MAX).replace('\0', "\u{fffd}");
    in_time(async {
        let client = connect(database).await?;
        client
            .execute(
                "update public.console_audit set ended_at = clock_timestamp(), after = $2, exit_code = $3, output = $4
                 where id = $1 and ended_at is null",
                &[&id, &after, &exit_code, &output],
            )
            .await?;
        Ok(())
    })
    .await
}

/// Gives an end to the rows that an earlier console has left without one: those older than `age`, which is how long this console has been there.
///
/// # Errors
/// The database does not answer in time, or refuses.
pub async fn end_left(database: &Database, age: Duration) -> anyhow::Result<u64> {
    in_time(async {
        let client = connect(database).await?;
        let ended = client
            .execute(
                "update public.console_audit set ended_at = clock_timestamp(), output = $2
                 where ended_at is null and at < clock_timestamp() - make_interval(secs => $1)",
                &[&age.as_secs_f64(), &LEFT],
            )
            .await?;
        Ok(ended)
    })
    .await
}

/// The newest rows before `before_id`, the newest first.
///
/// # Errors
/// The database does not answer, or refuses.
pub async fn read(database: &postgres::Database, before_id: Option<i64>, limit: i64) -> Result<Vec<Written>, SqlError> {
    let is_there = database
        .query(
            "select to_regclass('public.console_audit') is not null as is_there",
            &[],
        )
        .await?;
    if !is_there.first().is_some_and(|row| row.get::<_, bool>("is_there")) {
        return Ok(Vec::new());
    }
    let rows = database
        .query(
            "select id, at, who, action, command, reason, before, ended_at, after, exit_code, output from public.console_audit
             where $1::bigint is null or id < $1 order by id desc limit $2",
            &[&before_id, &limit],
        )
        .await?;
    Ok(rows.iter().map(Written::of).collect())
}

impl Written {
    fn of(row: &Row) -> Self {
        Self {
            id: row.get("id"),
            at: row.get("at"),
            who: row.get("who"),
            action: row.get("action"),
            command: row.get("command"),
            reason: row.get("reason"),
            before: row.get("before"),
            ended_at: row.get("ended_at"),
            after: row.get("after"),
            exit_code: row.get("exit_code"),
            output: row.get("output"),
        }
    }
}

async fn in_time<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::time::timeout(TIME_MAX, Box::pin(work))
        .await
        .context("the views' database does not answer in time")?
}

/// A session that may write. Changes are rare, so none is kept open.
async fn connect(database: &Database) -> anyhow::Result<Client> {
    let opened = database.target.open_tokio_postgres(|config| {
        config.application_name("console");
    });
    let (client, connection) = Box::pin(opened).await.map_err(|err| {
        anyhow::anyhow!(
            "{}",
            pg_replication::SessionError::words_for(&err).unwrap_or_else(|| err.to_string())
        )
    })?;
    tokio::spawn(connection);
    Ok(client)
}

/// The end of a text, at most so many bytes of it.
fn end_of(text: &str, bytes_max: usize) -> &str {
    let from = text.len().saturating_sub(bytes_max);
    let from = (from..=text.len())
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(text.len());
    &text[from..]
}

#[cfg(test)]
mod tests {
    use super::end_of;

    #[test]
    fn a_long_output_is_cut_at_its_beginning_and_never_inside_a_character() {
        assert_eq!(end_of("abc", 5), "abc");
        assert_eq!(end_of("abcüd", 2), "d");
        assert_eq!(end_of("abcüd", 3), "üd");
    }
}
