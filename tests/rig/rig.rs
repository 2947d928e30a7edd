//! One relay with a database, outbox, slot and topic of its own.

mod published;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use stack::scratch::Scratch;
use stack::{Program, checkout, port};
use tokio_postgres::Client;

use crate::servers::Servers;

/// How many partitions a rig's topic has.
pub const PARTITIONS: i32 = 4;
/// The outbox table, with the column names that Debezium's router expects by default.
pub const OUTBOX: &str = "create table outbox (
    id uuid primary key default gen_random_uuid(), aggregatetype text not null, aggregateid text not null,
    type text not null, payload jsonb, created_at timestamptz not null default clock_timestamp())";
/// A relay must be ready so soon after its start.
pub const READY_DEADLINE: Duration = Duration::from_secs(60);
/// Rows must be in the topic so soon after they were written.
pub const ARRIVAL_DEADLINE: Duration = Duration::from_secs(60);

/// An outbox, and the relay that publishes it. The rig's name is also the name of its database and its slot: a-z, 0-9 and _.
#[derive(Debug)]
pub struct Rig {
    pub servers: Arc<Servers>,
    pub relay: Program,
    name: String,
    logs: Scratch,
}

impl Rig {
    /// A database with an empty outbox on the shared servers, and a relay that is not yet initialised.
    ///
    /// # Panics
    /// The servers do not start or refuse.
    pub async fn new(name: &str) -> Self {
        Self::on(Servers::shared().await, name).await
    }

    /// As [`Rig::new`], on servers that the test has for itself.
    ///
    /// # Panics
    /// The servers refuse.
    pub async fn on(servers: Arc<Servers>, name: &str) -> Self {
        let postgres = &servers.postgres;
        postgres
            .query("postgres", &format!("create database {name}"))
            .await
            .unwrap_or_else(|err| panic!("no database {name}: {err:#}"));
        postgres
            .query(name, &format!("{OUTBOX}; create sequence numbers"))
            .await
            .unwrap_or_else(|err| panic!("no outbox in {name}: {err:#}"));
        let logs = Scratch::temporary("outbox-rig-").expect("a directory for logs");
        let port = port::free().expect("a free port");
        let binary = checkout::programs_directory()
            .expect("the programs")
            .join("outbox-relay");
        let relay = Program::new("relay", &binary, logs.path().join("relay.log"), port)
            .argument("run")
            .env("DATABASE_URL", &postgres.url("postgres", name))
            .env("KAFKA_BOOTSTRAP_SERVERS", &servers.kafka.bootstrap_servers())
            .env("OUTBOX_SLOT", name)
            .env("CHECKPOINT_TOPIC", &format!("{name}-checkpoints"))
            .env("PARKING_TOPIC", &format!("{name}-parked"))
            .env("ROUTER_OPTIONS", "route.topic.replacement=${routedByValue}")
            .env("TOPIC_PARTITIONS", &PARTITIONS.to_string())
            .env("ADMIN_LISTEN", &format!("127.0.0.1:{port}"))
            .env("LOG_FORMAT", "text");
        let name = name.to_owned();
        Self {
            servers,
            relay,
            name,
            logs,
        }
    }

    /// As [`Rig::new`], with slot, topic and first checkpoint.
    ///
    /// # Panics
    /// `init` fails.
    pub async fn initialised(name: &str) -> Self {
        let rig = Self::new(name).await;
        rig.init(&[]).await;
        rig
    }

    /// Runs `outbox-relay init` with the relay's environment and further arguments.
    ///
    /// # Panics
    /// It fails.
    pub async fn init(&self, arguments: &[&str]) {
        let topic = format!("{}:{PARTITIONS}", self.topic());
        let all: Vec<&str> = ["init", "--topic", &topic].iter().chain(arguments).copied().collect();
        self.relay.run(&all).await.unwrap_or_else(|err| panic!("{err:#}"));
    }

    /// Name of the database and the slot.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The topic for the rows of the outbox.
    #[must_use]
    pub fn topic(&self) -> String {
        format!("{}-events", self.name)
    }

    #[must_use]
    pub fn checkpoint_topic(&self) -> String {
        format!("{}-checkpoints", self.name)
    }

    #[must_use]
    pub fn parking_topic(&self) -> String {
        format!("{}-parked", self.name)
    }

    /// A second relay for the same slot, with a port and a log of its own.
    ///
    /// # Panics
    /// There is no free port.
    #[must_use]
    pub fn another_relay(&self, name: &str) -> Program {
        let port = port::free().expect("a free port");
        self.relay
            .another(name, port)
            .env("ADMIN_LISTEN", &format!("127.0.0.1:{port}"))
    }

    /// The directory of the relays' logs.
    #[must_use]
    pub fn logs(&self) -> &std::path::Path {
        self.logs.path()
    }

    /// Runs `sql` in the rig's database as the superuser. Returns the rows as text.
    ///
    /// # Panics
    /// It fails.
    pub async fn sql(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        let rows = self.servers.postgres.query(&self.name, sql).await;
        rows.unwrap_or_else(|err| panic!("{sql}: {err:#}"))
    }

    /// Runs `sql`, which must give one value. Returns it as text.
    ///
    /// # Panics
    /// It fails, or gives no value.
    pub async fn value(&self, sql: &str) -> String {
        let rows = self.sql(sql).await;
        let value = rows.first().and_then(|row| row.first().cloned().flatten());
        value.unwrap_or_else(|| panic!("{sql}: no value"))
    }

    /// A new connection to the rig's database.
    ///
    /// # Panics
    /// The server refuses.
    pub async fn connect(&self) -> Client {
        let client = self.servers.postgres.connect("postgres", &self.name).await;
        client.unwrap_or_else(|err| panic!("{err:#}"))
    }

    /// The statement that writes `count` rows over `keys` keys. Each row's `n` is the next number of a sequence, so `n` ascends in the rows of one
    /// writer.
    #[must_use]
    pub fn insert_statement(&self, count: u32, keys: u32) -> String {
        let topic = self.topic();
        format!(
            "insert into outbox (aggregatetype, aggregateid, type, payload)
             select '{topic}', 'k' || n % {keys}, 'Changed', jsonb_build_object('n', n)
             from (select nextval('numbers') as n from generate_series(1, {count})) as numbered"
        )
    }

    /// Writes `count` rows, each in a transaction of its own.
    ///
    /// # Panics
    /// The server refuses.
    pub async fn insert_each(&self, count: u32) {
        let insert = self.insert_statement(1, 7);
        self.sql(&format!(
            "do $$ begin for i in 1..{count} loop {insert}; commit; end loop; end $$"
        ))
        .await;
    }

    /// Writes `count` rows in one transaction.
    ///
    /// # Panics
    /// The server refuses.
    pub async fn insert_together(&self, count: u32) {
        self.sql(&self.insert_statement(count, 7)).await;
    }

    /// Starts the relay and waits until it is ready.
    ///
    /// # Panics
    /// It does not get ready.
    pub async fn start(&self) {
        self.relay.start().expect("a start");
        self.relay
            .wait_ready(READY_DEADLINE)
            .await
            .unwrap_or_else(|err| panic!("{err:#}"));
    }

    /// The slot's `confirmed_flush_lsn`.
    ///
    /// # Panics
    /// There is no such slot.
    pub async fn confirmed_lsn(&self) -> String {
        let name = &self.name;
        self.value(&format!(
            "select confirmed_flush_lsn from pg_replication_slots where slot_name = '{name}'"
        ))
        .await
    }

    /// Waits until no session reads the slot. A walsender ends a moment after its client.
    ///
    /// # Panics
    /// It stays in use.
    pub async fn wait_until_slot_is_free(&self) {
        let name = &self.name;
        let sql = format!("select 1 from pg_replication_slots where slot_name = '{name}' and active");
        let free = stack::eventually_ok(READY_DEADLINE, "the slot is free", || async {
            ensure!(self.sql(&sql).await.is_empty(), "it is active");
            Ok(())
        });
        free.await.unwrap_or_else(|err| panic!("{err:#}"));
    }

    /// Waits until no session reads the slot, and drops it.
    ///
    /// # Panics
    /// The server refuses.
    pub async fn drop_slot(&self) {
        self.wait_until_slot_is_free().await;
        self.sql(&format!("select pg_drop_replication_slot('{}')", self.name))
            .await;
    }

    /// Starts the relay. Asserts that it ends by itself with this exit code, says all of `says`, and confirms nothing.
    ///
    /// # Panics
    /// It goes on, or ends otherwise.
    pub async fn assert_stops(&self, exit_code: i32, says: &[&str]) {
        let sql = format!(
            "select confirmed_flush_lsn from pg_replication_slots where slot_name = '{}'",
            self.name
        );
        let confirmed = self.sql(&sql).await;
        let logged = self.relay.log_text().len();
        self.relay.start().expect("a start");
        let status = self.relay.exited(READY_DEADLINE).await;
        let status = status.unwrap_or_else(|err| panic!("{err:#}"));
        let log = self.relay.log_text()[logged..].to_owned();
        assert_eq!(status.code(), Some(exit_code), "{log}");
        for words in says {
            assert!(log.contains(words), "it says `{words}`: {log}");
        }
        assert_eq!(self.sql(&sql).await, confirmed, "a relay that stops confirms nothing");
    }

    /// Stops the relay, and drops the slot so that it retains nothing.
    ///
    /// # Errors
    /// The relay does not end in order, or the slot is still in use.
    pub async fn finish(&self) -> anyhow::Result<()> {
        self.relay.stop().await?;
        let name = &self.name;
        let sql = format!(
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = '{name}' and not active"
        );
        stack::eventually_ok(Duration::from_secs(10), "the slot is dropped", || async {
            self.servers.postgres.query("postgres", &sql).await?;
            let left = format!("select 1 from pg_replication_slots where slot_name = '{name}'");
            let left = self.servers.postgres.query("postgres", &left).await?;
            ensure!(left.is_empty(), "slot {name} is in use");
            Ok(())
        })
        .await
        .context("the rig's end")
    }
}
