//! Asks the database every second whether it can do the program's work. `/readyz` shows the answer, and each change of it is logged.

use std::time::{Duration, Instant};

use service::{Readiness, Shutdown};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, Executor, PgConnection};
use tokio::time::timeout;

/// The part of the readiness that this module reports.
pub const PART: &str = "postgres";
/// Time between two checks.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long one check may take.
const CHECK_MAX: Duration = Duration::from_secs(3);
/// Time after which the log repeats why the database is still not ready.
const REPEAT_AFTER: Duration = Duration::from_secs(30);

/// Something that must be there, such as a table.
#[derive(Clone, Copy, Debug)]
pub struct Requirement {
    /// A statement that fails if the thing is missing. It changes nothing.
    pub statement: &'static str,
    /// What the operator should do when a table or a column is missing.
    pub remedy: &'static str,
}

/// Checks the database every second over a connection of its own, until `shutdown`. The requirements are checked once on each new connection.
pub async fn watch(
    options: PgConnectOptions,
    requirements: &'static [Requirement],
    readiness: Readiness,
    mut shutdown: Shutdown,
) {
    let mut connection = None;
    let mut last_logged: Option<(String, Instant)> = None;
    let mut was_ready = false;
    loop {
        let check = check_database(&options, requirements, connection.take());
        let answer = tokio::select! {
            answer = timeout(CHECK_MAX, check) => answer,
            () = shutdown.triggered() => return,
        };
        match answer.unwrap_or_else(|_| Err("postgres does not answer".to_owned())) {
            Ok(same_connection) => {
                connection = Some(same_connection);
                if !was_ready {
                    tracing::info!("postgres is ready");
                }
                was_ready = true;
                last_logged = None;
                readiness.ready(PART);
            }
            Err(reason) => {
                was_ready = false;
                let is_news = last_logged
                    .as_ref()
                    .is_none_or(|(logged, at)| *logged != reason || at.elapsed() > REPEAT_AFTER);
                if is_news {
                    tracing::warn!(reason, "waiting for postgres");
                    last_logged = Some((reason.clone(), Instant::now()));
                }
                readiness.not_ready(PART, reason);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = shutdown.triggered() => return,
        }
    }
}

/// Checks the database over `connection`, or over a new one. Returns the connection for the next check, or why the database cannot do the work.
async fn check_database(
    options: &PgConnectOptions,
    requirements: &[Requirement],
    connection: Option<PgConnection>,
) -> Result<PgConnection, String> {
    let mut connection = match connection {
        Some(connection) => connection,
        None => {
            let mut connection = PgConnection::connect_with(options)
                .await
                .map_err(|err| err.to_string())?;
            for requirement in requirements {
                connection
                    .execute(requirement.statement)
                    .await
                    .map_err(|err| explain(&err, requirement.remedy))?;
            }
            connection
        }
    };
    let is_standby: bool = sqlx::query_scalar("select pg_is_in_recovery()")
        .fetch_one(&mut connection)
        .await
        .map_err(|err| err.to_string())?;
    if is_standby {
        return Err("postgres is a standby and takes no changes".to_owned());
    }
    Ok(connection)
}

fn explain(err: &sqlx::Error, remedy: &str) -> String {
    match err.as_database_error().and_then(|err| err.code()).as_deref() {
        // undefined_table, undefined_column
        Some("42P01" | "42703") => format!("{err}: {remedy}"),
        _ => err.to_string(),
    }
}
