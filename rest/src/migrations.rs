//! Applying a program's migrations, once the database is there.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::Context;
use sqlx::migrate::{Migrate, Migrator};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};

/// How long a missing database is waited for.
const WAIT: Duration = Duration::from_secs(60);
/// Time between two attempts.
const INTERVAL: Duration = Duration::from_millis(500);

/// Applies what is not applied yet, and tells which ones those were, as `0001 users`. Two at once take turns.
///
/// # Errors
/// The database does not come within a minute; an applied migration was edited since; a statement failed.
pub(crate) async fn apply(options: &PgConnectOptions, migrator: &Migrator) -> anyhow::Result<Vec<String>> {
    // A migration may take its time, and what it finds in place is no news.
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
        if !comes_by_itself(&err) || Instant::now() > deadline {
            return Err(err).context("cannot connect to the database (DATABASE_URL)");
        }
        if is_first {
            tracing::info!(reason = %err, "waiting for postgres");
            is_first = false;
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Whether the server may be starting, or its databases be in the making (3D000: there is none of that name yet).
fn comes_by_itself(err: &sqlx::Error) -> bool {
    match err {
        sqlx::Error::Io(_) => true,
        sqlx::Error::Database(err) => err
            .code()
            .is_some_and(|code| code == "3D000" || code.starts_with("57P") || code.starts_with("53")),
        _ => false,
    }
}
