//! A database of a test's own.

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use url::Url;

/// An empty database for one test. It is dropped when this value is.
pub struct Database {
    superuser: Url,
    name: String,
}

impl Database {
    pub async fn create() -> Self {
        let superuser = std::env::var("TEST_DATABASE_URL")
            .expect("TEST_DATABASE_URL is not set: ./test starts a PostgreSQL and sets it");
        let superuser: Url = superuser.parse().expect("TEST_DATABASE_URL is no URL");
        let mut admin = connect(&superuser).await;
        // If two tests made a role at the same moment, one of them would fail.
        let mut transaction = admin.begin().await.unwrap();
        transaction.execute("select pg_advisory_xact_lock(7423)").await.unwrap();
        for role in [
            "user_api",
            "post_api",
            "view_builder",
            "outbox_relay",
            "outbox_maintainer",
            "view_verifier",
            "console",
        ] {
            let statement =
                format!("do $$ begin create role {role} login; exception when duplicate_object then null; end $$");
            transaction.execute(AssertSqlSafe(statement)).await.unwrap();
        }
        transaction.commit().await.unwrap();
        let random: i64 = sqlx::query_scalar("select (random() * 1e15)::bigint")
            .fetch_one(&mut admin)
            .await
            .unwrap();
        let name = format!("test_{}_{random}", std::process::id());
        admin
            .execute(AssertSqlSafe(format!("create database {name}")))
            .await
            .unwrap();
        Self { superuser, name }
    }

    /// URL of the database for the superuser.
    pub fn url(&self) -> Url {
        let mut url = self.superuser.clone();
        url.set_path(&self.name);
        url
    }

    /// URL of the database with the rights of `role` and no others.
    pub fn url_as(&self, role: &str) -> Url {
        let mut url = self.url();
        url.query_pairs_mut().append_pair("options[role]", role);
        url
    }

    /// A superuser's connection.
    pub async fn sql(&self) -> PgConnection {
        connect(&self.url()).await
    }

    /// Asserts that ANALYZE samples only a tenth of the usual rows of `table`, and no rows of the outbox and its daily partitions. It comes to a busy
    /// table each minute, and takes processor time from those who write to it.
    pub async fn assert_samples_are_small(&self, table: &str) {
        let targets: Vec<(String, String, i64)> = sqlx::query_as(
            "select c.relname::text, string_agg(distinct coalesce(a.attstattarget, -1)::text, ' '), count(distinct a.attname)
             from pg_attribute as a join pg_class as c on c.oid = a.attrelid
             where c.relkind in ('r', 'p') and (c.relname = $1 or starts_with(c.relname, 'outbox')) and a.attnum > 0 and not a.attisdropped
             group by c.relname order by c.relname desc",
        )
        .bind(table)
        .fetch_all(&mut self.sql().await)
        .await
        .unwrap();
        let (sampled, outboxes) = targets.split_first().unwrap();
        assert_eq!((sampled.0.as_str(), sampled.1.as_str()), (table, "10"));
        assert!(
            outboxes.len() > 8,
            "the table, its default partition and its days: {outboxes:?}"
        );
        for (name, targets, columns) in outboxes {
            assert_eq!((targets.as_str(), *columns), ("0", 6), "{name}");
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (superuser, name) = (self.superuser.clone(), self.name.clone());
        let dropping = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(async {
                    let statement = format!("drop database {name} with (force)");
                    connect(&superuser)
                        .await
                        .execute(AssertSqlSafe(statement))
                        .await
                        .unwrap();
                });
        });
        let dropped = dropping.join();
        assert!(dropped.is_ok() || std::thread::panicking(), "cannot drop {}", self.name);
    }
}

async fn connect(url: &Url) -> PgConnection {
    let options: PgConnectOptions = url.as_str().parse().unwrap();
    PgConnection::connect_with(&options)
        .await
        .expect("cannot connect to TEST_DATABASE_URL")
}
