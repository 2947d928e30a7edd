//! A database of its own for each test.

use std::sync::atomic::{AtomicU32, Ordering};

use console::settings::Database;
use tokio_postgres::{Client, NoTls};

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// An empty database. It goes with its cluster.
pub(crate) struct TestDatabase {
    pub(crate) sql: Client,
    url: url::Url,
}

impl TestDatabase {
    pub(crate) async fn create() -> Self {
        let server = std::env::var("TEST_DATABASE_URL")
            .expect("TEST_DATABASE_URL must be a superuser's URL of a PostgreSQL for tests: ./test sets it");
        let mut url: url::Url = server.parse().expect("TEST_DATABASE_URL is a URL");
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("console_{}_{number}", std::process::id());
        let admin = connect(url.as_str()).await;
        admin.batch_execute(&format!("create database {name}")).await.unwrap();
        url.set_path(&name);
        let sql = connect(url.as_str()).await;
        Self { sql, url }
    }

    /// The database as the console's settings have it, for the superuser.
    pub(crate) fn setting(&self) -> Database {
        Database::parse(self.url.as_str()).unwrap()
    }

    /// As [`Self::setting`], for another role.
    pub(crate) fn setting_as(&self, role: &str) -> Database {
        let mut url = self.url.clone();
        url.set_username(role).unwrap();
        Database::parse(url.as_str()).unwrap()
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        self.url.path().trim_start_matches('/')
    }
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}
