//! Runs statements in the database, over a limited number of connections.
//!
//! This module cannot begin a transaction. A change and its event are one statement, so they need one round trip and nothing can come between them.
//! sqlx's own pool is not used, since it costs a second round trip for each statement: it tests a connection whenever one is given back.

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
/// How often the server checks whether the client of a running statement is still there (`client_connection_check_interval`).
const GONE_CLIENT_CHECK: Duration = Duration::from_secs(1);
/// How long a request waits for an answer. It is longer than [`STATEMENT_LIMIT`], so it only matters if the server hangs.
const ANSWER_WAIT: Duration = Duration::from_secs(7);
/// How long it may take to find out whether a change was made whose answer was lost.
const SETTLE_WAIT: Duration = Duration::from_secs(10);
/// Pause before the next try to find that out.
const SETTLE_PAUSE: Duration = Duration::from_millis(200);
const TAKE_LOCK: &str = "select pg_advisory_lock($1)";
/// Ends the session that holds an advisory lock. `pg_locks` shows the key of such a lock as two halves.
const END_LOCK_HOLDER: &str = "select pg_terminate_backend(pid) from pg_locks
    where locktype = 'advisory' and objsubid = 1 and granted and database = (select oid from pg_database where datname = current_database())
      and classid::bigint = ($1 >> 32) & 4294967295 and objid::bigint = $1 & 4294967295";
/// A connection that rested longer than this is tested before it is used: the server may have been restarted.
const TRUSTED_REST: Duration = Duration::from_secs(1);

/// The database, seen by any number of requests at once. Clones share the connections.
#[derive(Clone)]
pub struct Database(Arc<Connections>);

struct Connections {
    options: PgConnectOptions,
    connections_max: usize,
    permits: Semaphore,
    /// The connections that nobody uses now, each with the time since when. The one that was used last is used next, so a calm program uses few.
    resting: Mutex<Vec<(Session, Instant)>>,
}

/// A connection, and the key of an advisory lock. The server's process at the other end holds this lock for as long as it lives. Whoever gets the
/// lock knows that this process is gone, whatever happened to the connection. This also holds on another server that has taken over.
struct Session {
    connection: PgConnection,
    lock: i64,
}

/// Why a statement gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The statement was not sent.
    #[error("no connection to the database")]
    Away(#[source] sqlx::Error),
    /// The connection broke, or the server went away. It is not known whether the statement took effect.
    #[error("the database did not answer")]
    Unanswered(#[source] sqlx::Error),
    /// The connection broke, or the server went away. The statement had no effect and will not have one.
    #[error("the database did not answer, and did nothing")]
    Undone(#[source] sqlx::Error),
    /// The server refused the statement, so it had no effect.
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
            // Ends a statement whose client has gone.
            (
                "client_connection_check_interval",
                GONE_CLIENT_CHECK.as_millis().to_string(),
            ),
            // An update that waits for another one sees the row as that one left it. So versions count without gaps.
            ("default_transaction_isolation", "read committed".to_owned()),
        ])
        .disable_statement_logging())
}

impl Database {
    /// A database with `connections` connections at most. Each is opened when it is first needed.
    #[must_use]
    pub fn new(options: PgConnectOptions, connections: usize) -> Self {
        Self(Arc::new(Connections {
            options,
            connections_max: connections,
            permits: Semaphore::new(connections),
            resting: Mutex::default(),
        }))
    }

    /// So many connections are used at once, at most.
    #[must_use]
    pub fn connections_max(&self) -> usize {
        self.0.connections_max
    }

    /// Runs one statement that only reads, and returns its first row. Takes `CONNECTION_WAIT` and `ANSWER_WAIT` at most.
    ///
    /// # Errors
    /// See [`Failure`]; what it means for the client is [`Failure::problem`].
    pub async fn row(&self, query: Query<'_, Postgres, PgArguments>) -> Result<Option<PgRow>, Failure> {
        match self.run_statement(query).await {
            (Err(Failure::Unanswered(err)), _) => Err(Failure::Undone(err)),
            (row, _) => row,
        }
    }

    /// Runs one statement that changes something, in a transaction of its own. Returns its first row after the commit. If the returned future is
    /// dropped, the statement may still take effect.
    ///
    /// If the answer is lost, this finds out whether the change was made. It waits until the server's process that ran the statement is gone, and
    /// then runs the query that `read_made_change` makes. That query must return the row that the change would have returned, or no row if the
    /// change was not made. All this takes `SETTLE_WAIT` at most.
    ///
    /// # Errors
    /// [`Failure::Undone`]: the change was not made. [`Failure::Unanswered`]: it is not known whether it was made. Otherwise those of
    /// [`Database::row`].
    pub async fn change(
        &self,
        change: Query<'_, Postgres, PgArguments>,
        read_made_change: impl Fn() -> Query<'static, Postgres, PgArguments>,
    ) -> Result<Option<PgRow>, Failure> {
        match self.run_statement(change).await {
            (Err(Failure::Unanswered(err)), Some(lock)) => {
                tracing::warn!(error = %err, "the answer to a change was lost; finding out whether it was made");
                match timeout(SETTLE_WAIT, self.0.find_out_whether_made(lock, read_made_change)).await {
                    Ok(Some(row)) => Ok(Some(row)),
                    Ok(None) => Err(Failure::Undone(err)),
                    Err(_) => Err(Failure::Unanswered(err)),
                }
            }
            (answer, _) => answer,
        }
    }

    /// Runs one statement. Also returns the lock of the session that ran it, if one did.
    async fn run_statement(
        &self,
        query: Query<'_, Postgres, PgArguments>,
    ) -> (Result<Option<PgRow>, Failure>, Option<i64>) {
        let connected = timeout(CONNECTION_WAIT, async {
            let permit = self.0.permits.acquire().await;
            let permit = permit.map_err(|_| sqlx::Error::PoolClosed)?;
            let session = self.0.take_session().await?;
            Ok((permit, session))
        })
        .await
        .unwrap_or(Err(sqlx::Error::PoolTimedOut));
        let (_permit, mut session) = match connected {
            Ok(connected) => connected,
            Err(err) => return (Err(Failure::Away(err)), None),
        };
        let lock = session.lock;
        let answer = timeout(ANSWER_WAIT, query.fetch_optional(&mut session.connection))
            .await
            .unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())));
        let answer = match answer {
            Ok(row) => {
                self.0.give_back(session);
                Ok(row)
            }
            Err(err) if is_refusal(&err) => {
                self.0.give_back(session);
                Err(Failure::Refused(err))
            }
            Err(err) => {
                // The other connections most likely lead to the same dead server.
                self.0.close_resting();
                Err(Failure::Unanswered(err))
            }
        };
        (answer, Some(lock))
    }
}

impl Connections {
    /// Takes a session that rests and still works, or opens a new one.
    async fn take_session(&self) -> Result<Session, sqlx::Error> {
        loop {
            let resting = self.lock().pop();
            let Some((mut session, since)) = resting else {
                return Session::open(&self.options).await;
            };
            if since.elapsed() < TRUSTED_REST || session.connection.ping().await.is_ok() {
                return Ok(session);
            }
        }
    }

    /// Waits until the process that held the lock is gone. From then on its statement is either done or never will be. Then asks by
    /// `read_made_change` which of the two. Tries until there is an answer.
    async fn find_out_whether_made(
        &self,
        lock: i64,
        read_made_change: impl Fn() -> Query<'static, Postgres, PgArguments>,
    ) -> Option<PgRow> {
        loop {
            let settled = async {
                let mut connection = PgConnection::connect_with(&self.options).await?;
                // The process would end by itself when it notices that its client is gone. This ends it sooner. A role that was taken by `set role`
                // may not be allowed to do it.
                let end = sqlx::query(END_LOCK_HOLDER)
                    .bind(lock)
                    .fetch_optional(&mut connection)
                    .await;
                if let Err(err) = end {
                    tracing::debug!(error = %err, "cannot end the session of a lost answer");
                }
                sqlx::query(TAKE_LOCK).bind(lock).execute(&mut connection).await?;
                read_made_change().fetch_optional(&mut connection).await
            };
            match settled.await {
                Ok(row) => return row,
                Err(err) => {
                    tracing::debug!(error = %err, "cannot find out yet whether a change was made");
                    tokio::time::sleep(SETTLE_PAUSE).await;
                }
            }
        }
    }

    fn give_back(&self, session: Session) {
        self.lock().push((session, Instant::now()));
    }

    fn close_resting(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(Session, Instant)>> {
        self.resting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    async fn open(options: &PgConnectOptions) -> Result<Self, sqlx::Error> {
        let mut connection = PgConnection::connect_with(options).await?;
        let (lock, _) = uuid::Uuid::new_v4().as_u64_pair();
        let lock = lock.cast_signed();
        sqlx::query(TAKE_LOCK).bind(lock).execute(&mut connection).await?;
        Ok(Self { connection, lock })
    }
}

/// Whether the server refused the statement and goes on. Otherwise it went away, or the connection broke.
fn is_refusal(err: &sqlx::Error) -> bool {
    match err {
        // Class 57P: shutdown, crash, start-up; the session ends with it. Class 08: a pooler says that it has lost the server, which may have done it.
        sqlx::Error::Database(err) => !err
            .code()
            .is_some_and(|code| code.starts_with("57P") || code.starts_with("08")),
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
    /// The answer that the client gets for this failure. A fault of the program is logged here. An absence of the database is not, since
    /// [`crate::probe`] logs it once for all requests.
    #[must_use]
    pub fn problem(&self, constraints: &[Constraint]) -> Problem {
        let err = match self {
            Self::Away(err) => {
                tracing::debug!(error = %err, "no connection for a request");
                return Problem::unavailable("the database is away; nothing was changed");
            }
            Self::Unanswered(err) => {
                tracing::debug!(error = %err, "a request's connection broke");
                return Problem::unanswered();
            }
            Self::Undone(err) => {
                tracing::debug!(error = %err, "a change was not made");
                return Problem::unavailable("the database went away; nothing was changed");
            }
            Self::Refused(err) => err,
        };
        let database = err.as_database_error();
        let constraint = database
            .and_then(|err| err.constraint())
            .and_then(|name| constraints.iter().find(|known| known.name == name));
        // An error that is not the server's has no SQLSTATE, and is a fault of the program.
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
