//! Sessions with the databases that stay open. All pages share them: tokio-postgres sends the statements of several requests one behind the other.
//!
//! Everything has a time limit, so that a page answers also when a database is away.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pg_replication::{SessionError, Target};
use tokio::sync::Mutex;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row, Statement};

use crate::settings::{Outbox, Pipeline};

/// How long a login may take. A page answers within a second.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(700);
/// For how long a login that has failed is not tried again.
const FAILURE_TIME: Duration = Duration::from_secs(1);
/// How long the answer to a statement may take.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(900);
/// The server gives up a statement after this time, also when nobody waits for it any more.
const SETTINGS: &str = "set time zone 'UTC'; set statement_timeout = '2s'; set default_transaction_read_only = on; set plan_cache_mode = force_generic_plan";

/// The sessions of all databases.
#[derive(Debug)]
pub struct Databases {
    outboxes: Vec<(String, Database)>,
    views: Database,
}

/// A database, and the session with it if there is one.
#[derive(Debug)]
pub struct Database {
    target: Target,
    kept: Mutex<Kept>,
}

/// What the last login has come to.
#[derive(Debug)]
enum Kept {
    None,
    Session(Arc<Client>),
    /// Whoever asks soon after that gets the same answer. Otherwise the statements of one page would wait one after the other.
    Failed(Instant, SqlError),
}

/// Why a database gave no answer. The text is for people, and has no values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SqlError {
    /// It is away, refuses the login, or does not answer in time.
    #[error("the database does not answer: {0}")]
    Away(String),
    /// It answers, and refuses the statement.
    #[error("the database refuses: {0}")]
    Refused(String),
}

impl Databases {
    #[must_use]
    pub fn new(pipeline: &Pipeline) -> Self {
        let outboxes = pipeline.outboxes.iter();
        Self {
            outboxes: outboxes
                .map(|outbox| (outbox.name.clone(), Database::new(outbox.database.target.clone())))
                .collect(),
            views: Database::new(pipeline.views.database.target.clone()),
        }
    }

    /// The database of this outbox. `None`: there is no such outbox in the settings.
    #[must_use]
    pub fn of_outbox(&self, outbox: &Outbox) -> Option<&Database> {
        let mut outboxes = self.outboxes.iter();
        outboxes
            .find(|(name, _)| *name == outbox.name)
            .map(|(_, database)| database)
    }

    /// The views' database.
    #[must_use]
    pub fn views(&self) -> &Database {
        &self.views
    }
}

impl Database {
    #[must_use]
    pub fn new(target: Target) -> Self {
        Self {
            target,
            kept: Mutex::new(Kept::None),
        }
    }

    /// The rows that `sql` selects.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn query(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, SqlError> {
        let client = self.client().await?;
        in_time(client.query(sql, parameters)).await
    }

    /// Prepares a statement, whose parameters get the types that the server finds.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn prepare(&self, sql: &str) -> Result<(Arc<Client>, Statement), SqlError> {
        let client = self.client().await?;
        let statement = in_time(client.prepare(sql)).await?;
        Ok((client, statement))
    }

    async fn client(&self) -> Result<Arc<Client>, SqlError> {
        let mut kept = self.kept.lock().await;
        match &*kept {
            Kept::Session(client) if !client.is_closed() => return Ok(Arc::clone(client)),
            Kept::Failed(at, why) if at.elapsed() < FAILURE_TIME => return Err(why.clone()),
            _ => {}
        }
        match self.connect().await {
            Ok(client) => {
                let client = Arc::new(client);
                *kept = Kept::Session(Arc::clone(&client));
                Ok(client)
            }
            Err(why) => {
                *kept = Kept::Failed(Instant::now(), why.clone());
                Err(why)
            }
        }
    }

    async fn connect(&self) -> Result<Client, SqlError> {
        let opened = self.target.open_tokio_postgres(|config| {
            config.tcp_user_timeout(Duration::from_secs(5));
            if config.get_application_name().is_none() {
                config.application_name("console");
            }
        });
        let opened = tokio::time::timeout(CONNECT_TIMEOUT, Box::pin(opened)).await;
        let (client, connection) = match opened {
            Ok(Ok(session)) => session,
            Ok(Err(err)) => {
                let words = SessionError::words_for(&err).unwrap_or_else(|| words_of(&err));
                return Err(SqlError::Away(words));
            }
            Err(_) => return Err(SqlError::Away("no login within 0.7 s".to_owned())),
        };
        tokio::spawn(async move {
            if let Err(err) = connection.await {
                tracing::debug!(error = %err, "a session with postgres ended");
            }
        });
        in_time(client.batch_execute(SETTINGS)).await?;
        Ok(client)
    }
}

/// Waits for an answer of Postgres, for [`ANSWER_TIMEOUT`] at most.
///
/// # Errors
/// See [`SqlError`].
pub async fn in_time<T>(answer: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, SqlError> {
    match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(err)) if err.code().is_some() => Err(SqlError::Refused(words_of(&err))),
        Ok(Err(err)) => Err(SqlError::Away(words_of(&err))),
        Err(_) => Err(SqlError::Away("no answer within 0.9 s".to_owned())),
    }
}

/// Postgres' message, without the detail, which may have values of a row.
fn words_of(err: &tokio_postgres::Error) -> String {
    match err.as_db_error() {
        Some(refusal) => format!("{} ({})", refusal.message(), refusal.code().code()),
        None => std::error::Error::source(err).map_or_else(|| err.to_string(), ToString::to_string),
    }
}

/// `SCHEMA.TABLE` or `TABLE` as SQL has it, whatever is in the names.
#[must_use]
pub fn quoted(name: &str) -> String {
    let parts = name.split('.').map(|part| format!("\"{}\"", part.replace('"', "\"\"")));
    parts.collect::<Vec<_>>().join(".")
}

/// A text as a parameter of the type that a statement wants there: numbers, UUIDs and texts. `None`: the text is no value of this type.
#[must_use]
pub fn text_as(text: &str, wanted: &Type) -> Option<Box<dyn ToSql + Sync + Send>> {
    // Postgres has no text with a zero byte.
    if text.contains('\0') {
        return None;
    }
    match *wanted {
        Type::UUID => Some(Box::new(text.parse::<uuid::Uuid>().ok()?)),
        Type::INT2 => Some(Box::new(text.parse::<i16>().ok()?)),
        Type::INT4 => Some(Box::new(text.parse::<i32>().ok()?)),
        Type::INT8 => Some(Box::new(text.parse::<i64>().ok()?)),
        Type::TEXT | Type::VARCHAR | Type::BPCHAR => Some(Box::new(text.to_owned())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use tokio_postgres::types::Type;

    use super::{quoted, text_as};

    #[test]
    fn names_are_quoted_part_by_part() {
        assert_eq!(quoted("public.outbox"), r#""public"."outbox""#);
        assert_eq!(quoted(r#"a"; drop table x"#), r#""a""; drop table x""#);
    }

    #[test]
    fn a_text_becomes_a_value_of_the_column_or_none() {
        assert!(text_as("7", &Type::INT8).is_some());
        assert!(text_as("x", &Type::INT8).is_none());
        assert!(text_as("8f1a2b3c-0000-4000-8000-000000000001", &Type::UUID).is_some());
        assert!(text_as("x", &Type::JSONB).is_none());
        assert!(text_as("a\0b", &Type::TEXT).is_none());
    }
}
