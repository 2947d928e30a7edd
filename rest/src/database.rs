//! The way to the database: a fixed number of connections, one statement at a time.
//!
//! There is no way to begin a transaction here. A change and its event are one statement, so that they are one round trip and
//! nothing can come between them. sqlx's own pool is not used because it costs a second round trip for each statement (it
//! tests a connection whenever one is given back).

use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use service::Secret;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgRow};
use sqlx::query::Query;
use sqlx::{ConnectOptions, Connection, PgConnection, Postgres};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::Problem;

/// How long a request waits for a connection, also a new one, before it is answered 503.
const CONNECTION_WAIT: Duration = Duration::from_secs(2);
/// How long a statement may take by the server's clock (`statement_timeout`).
const STATEMENT_LIMIT: Duration = Duration::from_secs(5);
/// How long an answer is waited for. Longer than [`STATEMENT_LIMIT`], so that it is reached only where the server hangs.
const ANSWER_WAIT: Duration = Duration::from_secs(7);
/// A connection that rested longer than this is tested before it is used: the server may have been restarted.
const TRUSTED_REST: Duration = Duration::from_secs(1);

/// The database, seen by any number of requests at once. Clones share the connections.
#[derive(Clone)]
pub struct Database(Arc<Connections>);

struct Connections {
    options: PgConnectOptions,
    permits: Semaphore,
    /// The connection that was used last is used next, so that a calm program rests on few.
    resting: Mutex<Vec<(PgConnection, Instant)>>,
}

/// Why a statement gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The statement was not sent.
    #[error("no connection to the database")]
    Away(#[source] sqlx::Error),
    /// The connection broke, or the server went away: the statement may have taken effect or not.
    #[error("the database did not answer")]
    Unanswered(#[source] sqlx::Error),
    /// The server refused the statement, which has had no effect.
    #[error("the database refused a statement")]
    Refused(#[source] sqlx::Error),
}

/// Parses `url` and sets what the programs rely on in each session.
///
/// # Errors
/// `url` is no PostgreSQL URL. The message does not repeat it, since it may carry a password.
pub fn options(url: &Secret, program: &str) -> anyhow::Result<PgConnectOptions> {
    let url = service::password_file::resolve(url).context("DATABASE_URL")?;
    let options = PgConnectOptions::from_str(url.reveal())
        .context("DATABASE_URL must be like postgres://user@host:5432/database")?;
    Ok(options
        .application_name(program)
        .options([
            // 201 promises that the row survives a crash, whatever the server's default is.
            ("synchronous_commit", "on".to_owned()),
            ("statement_timeout", STATEMENT_LIMIT.as_millis().to_string()),
            // A waiting update takes the row as the one before it left it: that is how versions count without gaps.
            ("default_transaction_isolation", "read committed".to_owned()),
        ])
        .disable_statement_logging())
}

impl Database {
    /// A database that is connected to when it is first needed, over at most `connections` connections.
    #[must_use]
    pub fn new(options: PgConnectOptions, connections: usize) -> Self {
        Self(Arc::new(Connections {
            options,
            permits: Semaphore::new(connections),
            resting: Mutex::default(),
        }))
    }

    /// Runs one statement, in a transaction of its own, and gives its first row. Returns only after the commit, within
    /// [`CONNECTION_WAIT`] and [`ANSWER_WAIT`]. When the returned future is dropped, the statement may still take effect.
    ///
    /// # Errors
    /// See [`Failure`]; what it means for the client is [`Failure::problem`].
    pub async fn row(&self, query: Query<'_, Postgres, PgArguments>) -> Result<Option<PgRow>, Failure> {
        let (_permit, mut connection) = timeout(CONNECTION_WAIT, async {
            let permit = self.0.permits.acquire().await;
            let permit = permit.map_err(|_| sqlx::Error::PoolClosed)?;
            let connection = self.0.connection().await?;
            Ok((permit, connection))
        })
        .await
        .unwrap_or(Err(sqlx::Error::PoolTimedOut))
        .map_err(Failure::Away)?;

        let answer = timeout(ANSWER_WAIT, query.fetch_optional(&mut connection))
            .await
            .unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())));
        match answer {
            Ok(row) => {
                self.0.rest(connection);
                Ok(row)
            }
            Err(err) if is_refusal(&err) => {
                self.0.rest(connection);
                Err(Failure::Refused(err))
            }
            Err(err) => {
                // The other connections most likely lead to the same dead server.
                self.0.forget();
                Err(Failure::Unanswered(err))
            }
        }
    }
}

impl Connections {
    async fn connection(&self) -> Result<PgConnection, sqlx::Error> {
        loop {
            let resting = self.lock().pop();
            let Some((mut connection, since)) = resting else {
                return PgConnection::connect_with(&self.options).await;
            };
            if since.elapsed() < TRUSTED_REST || connection.ping().await.is_ok() {
                return Ok(connection);
            }
        }
    }

    fn rest(&self, connection: PgConnection) {
        self.lock().push((connection, Instant::now()));
    }

    fn forget(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(PgConnection, Instant)>> {
        self.resting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the server said no and goes on, as against going away.
fn is_refusal(err: &sqlx::Error) -> bool {
    match err {
        // Class 57P: shutdown, crash, start-up; the session ends with it.
        sqlx::Error::Database(err) => !err.code().is_some_and(|code| code.starts_with("57P")),
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) => false,
        _ => true,
    }
}

/// A named constraint, and what breaking it means for the client.
#[derive(Clone, Copy, Debug)]
pub struct Constraint {
    pub name: &'static str,
    /// Field of the body that the constraint is about.
    pub field: &'static str,
    /// Completes the sentence that starts with the field.
    pub message: &'static str,
}

impl Failure {
    /// The answer that this failure becomes. A fault of the program is logged here; an absence of the database is not, since
    /// [`crate::probe`] says it once for all requests.
    #[must_use]
    pub fn problem(&self, constraints: &[Constraint]) -> Problem {
        let err = match self {
            Self::Away(err) => {
                tracing::debug!(error = %err, "no connection for a request");
                return Problem::unavailable("the database is away; nothing was changed");
            }
            Self::Unanswered(err) => {
                tracing::debug!(error = %err, "a request's connection broke");
                return Problem::unavailable(
                    "the database went away; a change that was under way may have been made or not",
                );
            }
            Self::Refused(err) => err,
        };
        let database = err.as_database_error();
        let constraint = database
            .and_then(|err| err.constraint())
            .and_then(|name| constraints.iter().find(|known| known.name == name));
        let code = database.and_then(|err| err.code()).unwrap_or_default();
        match (&*code, constraint) {
            ("23505", Some(broken)) => Problem::conflict(broken.field, broken.message),
            ("23514", Some(broken)) => Problem::invalid(vec![crate::FieldError {
                field: broken.field.into(),
                message: broken.message.into(),
            }]),
            // query_canceled: the statement's time was up.
            ("57014", _) => {
                tracing::warn!(error = %err, "a statement took too long");
                Problem::unavailable("the database took too long; nothing was changed")
            }
            // A table, a column, a right is missing.
            ("42P01" | "42703" | "42501", _) => {
                tracing::debug!(error = %err, "the schema is not complete");
                Problem::unavailable("the database's schema is not complete; /readyz says what is missing")
            }
            // Insufficient resources (53), a standby or read-only server (25006): others may mend it.
            (code, _) if code.starts_with("53") || code == "25006" => {
                tracing::warn!(error = %err, "the database cannot take the statement now");
                Problem::unavailable("the database cannot do that now; nothing was changed")
            }
            _ => {
                tracing::error!(error = %err, "the database refused a statement");
                Problem::internal()
            }
        }
    }
}
