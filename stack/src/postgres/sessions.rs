//! Sessions that wait for the next question. A new session costs PostgreSQL a process, and tests ask thousands of short questions.

use std::sync::{Mutex, PoisonError};

use tokio::runtime::{Handle, Id};
use tokio_postgres::Client;

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

    /// Keeps a session for the next question. What the last one has set, locked or listened to is given up.
    pub(super) async fn keep(&self, database: &str, client: Client) {
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
