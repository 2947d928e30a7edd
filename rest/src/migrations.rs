//! Applies a program's migrations as soon as its database can be reached.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::Context;
use sqlx::migrate::{Migrate, Migrator};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};

/// How long to wait for a database that cannot be reached.
const WAIT: Duration = Duration::from_secs(60);
/// Time between two attempts.
const INTERVAL: Duration = Duration::from_millis(500);

/// Applies the migrations that are not applied yet. Returns their names, such as `0001 users`. If two processes do this at once, one waits for the
/// other.
///
/// # Errors
/// The database could not be reached within a minute; an applied migration was edited since; a statement failed.
pub(crate) async fn apply(options: &PgConnectOptions, migrator: &Migrator) -> anyhow::Result<Vec<String>> {
    // A migration may take long, so it has no time limit. Notices about things that exist already are not shown.
    let options = options
        .clone()
        .options([("statement_timeout", "0"), ("client_min_messages", "warning")]);
    let mut connection = connect(&options).await?;
    let table = &*migrator.table_name;
    connection
        .ensure_migrations_table(table)
        .await
        .context("cannot make the table of applied migrations")?;
    let before: HashSet<i64> = connection
        .list_applied_migrations(table)
        .await
        .context("cannot read the table of applied migrations")?
        .into_iter()
        .map(|applied| applied.version)
        .collect();
    migrator
        .run(&mut connection)
        .await
        .context("cannot apply the migrations (sql/cluster.sql makes the roles that they name)")?;
    Ok(migrator
        .iter()
        .filter(|migration| !before.contains(&migration.version))
        .map(|migration| format!("{:04} {}", migration.version, migration.description))
        .collect())
}

async fn connect(options: &PgConnectOptions) -> anyhow::Result<PgConnection> {
    let deadline = Instant::now() + WAIT;
    let mut is_first = true;
    loop {
        let attempt = tokio::time::timeout(Duration::from_secs(5), PgConnection::connect_with(options));
        let err = match attempt.await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(err)) => err,
            Err(_) => sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()),
        };
        if !may_pass_by_itself(&err) || Instant::now() > deadline {
            return Err(err).context("cannot connect to the database (DATABASE_URL)");
        }
        if is_first {
            tracing::info!(reason = %err, "waiting for postgres");
            is_first = false;
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Whether the next attempt may succeed: the server is starting (57P), has no resources now (53), or does not have the database yet (3D000).
fn may_pass_by_itself(err: &sqlx::Error) -> bool {
    match err {
        sqlx::Error::Io(_) => true,
        sqlx::Error::Database(err) => err
            .code()
            .is_some_and(|code| code == "3D000" || code.starts_with("57P") || code.starts_with("53")),
        _ => false,
    }
}
