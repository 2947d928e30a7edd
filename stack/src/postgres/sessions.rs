//! Sessions that wait for the next question. A new session costs PostgreSQL a process, and tests ask thousands of short questions.
//!
//! A session does not see at once what is changed for new ones, so none is kept where that is changed. `discard all` leaves temporary slots and
//! an origin of replication; whoever makes one takes a connection of their own.

use std::sync::{Mutex, PoisonError};

use tokio::runtime::{Handle, Id};
use tokio_postgres::Client;

/// What changes settings that a new session has from its beginning.
const CHANGES_NEW_SESSIONS: [&str; 4] = ["pg_reload_conf", "alter system", "alter role", "alter database"];

/// Superuser's sessions that nobody uses at the moment.
#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<Vec<Waiting>>);

#[derive(Debug)]
struct Waiting {
    /// A session is served by the runtime that opened it, and ends with it. Each test has its own.
    runtime: Id,
    database: String,
    client: Client,
}

impl Sessions {
    /// A session of this database that was kept and still answers.
    pub(super) async fn take(&self, database: &str) -> Option<Client> {
        let runtime = Handle::current().id();
        loop {
            let client = self.remove(runtime, database)?;
            // The server may have ended it meanwhile.
            if client.check_connection().await.is_ok() {
                return Some(client);
            }
        }
    }

    /// Keeps the session that has run `sql` for the next question. What it has set, locked or listened to is given up.
    pub(super) async fn keep(&self, database: &str, client: Client, sql: &str) {
        if CHANGES_NEW_SESSIONS.iter().any(|words| sql.contains(words)) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
            return;
        }
        // It fails in a transaction that was left open, which ends with its session.
        if client.batch_execute("discard all").await.is_err() {
            return;
        }
        let waiting = Waiting {
            runtime: Handle::current().id(),
            database: database.to_owned(),
            client,
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(waiting);
    }

    fn remove(&self, runtime: Id, database: &str) -> Option<Client> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|waiting| !waiting.client.is_closed());
        let found = all
            .iter()
            .position(|waiting| waiting.runtime == runtime && waiting.database == database)?;
        Some(all.swap_remove(found).client)
    }
}
