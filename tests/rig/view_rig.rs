//! A rig for view-builder: a database of views, topics whose events the test itself produces, and builders that apply them.
//!
//! The producer uses no transactions, so no offset is a transaction's marker. A position that has reached a topic's end equals the end.

mod commands;
mod event;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Offset, TopicPartitionList};
use stack::scratch::Scratch;
use stack::{Program, checkout, eventually_ok, port};
use tokio_postgres::Client;

use crate::servers::Servers;
use crate::topic;

pub use event::Event;

/// Events must be applied, and commands must have ended, so soon.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// The role that keeps the views, as in `sql/cluster.sql`.
const ROLE: &str = "
    do $$ begin
        if not exists (select from pg_roles where rolname = 'view_builder') then create role view_builder login; end if;
    exception
        -- Another rig has made it at the same time.
        when duplicate_object or unique_violation then null;
    end $$";

/// A database of views, and everything that fills it. The rig's name is also the name of its database and its consumer group: a-z, 0-9 and _.
pub struct ViewRig {
    pub servers: Arc<Servers>,
    name: String,
    admin: AdminClient<DefaultClientContext>,
    producer: FutureProducer,
    logs: Scratch,
    views: Scratch,
}

impl ViewRig {
    /// A database without views on the shared servers.
    ///
    /// # Panics
    /// The servers do not start or refuse.
    pub async fn new(name: &str) -> Self {
        Self::on(Servers::shared().await, name).await
    }

    /// As [`ViewRig::new`], on servers that the test has for itself.
    ///
    /// # Panics
    /// The servers refuse.
    pub async fn on(servers: Arc<Servers>, name: &str) -> Self {
        let postgres = &servers.postgres;
        let make = async {
            let client = postgres.connect("postgres", "postgres").await?;
            client.batch_execute(ROLE).await?;
            let sql = format!("create database {name} owner view_builder");
            client.batch_execute(&sql).await?;
            let mut config = ClientConfig::new();
            config.set("bootstrap.servers", servers.kafka.bootstrap_servers());
            let admin = config.create()?;
            config.set("enable.idempotence", "true").set("linger.ms", "1");
            anyhow::Ok((admin, config.create()?))
        };
        let (admin, producer) = make.await.unwrap_or_else(|err| panic!("no database {name}: {err:#}"));
        Self {
            name: name.to_owned(),
            admin,
            producer,
            logs: Scratch::temporary("outbox-view-rig-").expect("a directory for logs"),
            views: Scratch::temporary("outbox-views-").expect("a directory of views"),
            servers,
        }
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A name for a topic that no other rig uses: `some_rig` and `order` give `some-rig-order-events`. The topic is not created.
    #[must_use]
    pub fn topic(&self, aggregate: &str) -> String {
        format!("{}-{aggregate}-events", self.name.replace('_', "-"))
    }

    /// Creates a topic, and waits until the broker has it.
    ///
    /// # Errors
    /// The broker refuses.
    pub async fn create_topic(&self, topic: &str, partitions: i32, settings: &[(&str, &str)]) -> anyhow::Result<()> {
        // -1: as many replicas as the broker makes by default.
        self.create_topic_with_replicas(topic, partitions, -1, settings).await
    }

    /// As [`ViewRig::create_topic`], with so many replicas of each partition.
    ///
    /// # Errors
    /// The broker refuses.
    pub async fn create_topic_with_replicas(
        &self,
        topic: &str,
        partitions: i32,
        replicas: i32,
        settings: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        let plain = NewTopic::new(topic, partitions, TopicReplication::Fixed(replicas));
        let wanted = settings
            .iter()
            .fold(plain, |topic, (name, value)| topic.set(name, value));
        for made in self.admin.create_topics([&wanted], &AdminOptions::new()).await? {
            made.map_err(|(topic, code)| anyhow::anyhow!("{topic}: {code}"))?;
        }
        eventually_ok(DEADLINE, "the topic is there", || async {
            let count = self.ends(topic).await?.len();
            ensure!(i32::try_from(count)? == partitions, "{count} partitions");
            Ok(())
        })
        .await
    }

    /// Deletes a topic, and waits until the broker has forgotten it.
    ///
    /// # Errors
    /// The broker refuses.
    pub async fn delete_topic(&self, topic: &str) -> anyhow::Result<()> {
        for gone in self.admin.delete_topics(&[topic], &AdminOptions::new()).await? {
            gone.map_err(|(topic, code)| anyhow::anyhow!("{topic}: {code}"))?;
        }
        eventually_ok(DEADLINE, "the topic is gone", || async {
            let there = self.ends(topic).await;
            ensure!(
                there.is_err() || there.is_ok_and(|ends| ends.is_empty()),
                "it is still there"
            );
            Ok(())
        })
        .await
    }

    /// Removes the records before `offset` from a partition, as retention does.
    ///
    /// # Errors
    /// The broker refuses.
    pub async fn delete_records_before(&self, topic: &str, partition: i32, offset: i64) -> anyhow::Result<()> {
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(topic, partition, Offset::Offset(offset))?;
        let gone = self.admin.delete_records(&offsets, &AdminOptions::new()).await?;
        for element in gone.elements() {
            element.error()?;
        }
        Ok(())
    }

    /// The answer of the builder's `/readyz`: status and text.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn readiness(&self, builder: &Program) -> anyhow::Result<(u16, String)> {
        let answer = reqwest::get(builder.url("/readyz")).await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    /// The ends of the topic's partitions now.
    ///
    /// # Errors
    /// The broker does not answer, or has no such topic.
    pub async fn ends(&self, topic: &str) -> anyhow::Result<Vec<topic::Ends>> {
        let (servers, topic) = (self.servers.kafka.bootstrap_servers(), topic.to_owned());
        tokio::task::spawn_blocking(move || topic::ends(&servers, &topic)).await?
    }

    /// Produces these records in their order. Returns their offsets.
    ///
    /// # Errors
    /// The broker refuses one.
    pub async fn produce(&self, topic: &str, events: impl IntoIterator<Item = Event>) -> anyhow::Result<Vec<i64>> {
        let events: Vec<Event> = events.into_iter().collect();
        let mut sent = Vec::with_capacity(events.len());
        for event in &events {
            let record = FutureRecord::<str, str> {
                topic,
                partition: Some(event.partition),
                payload: event.value.as_deref(),
                key: event.key.as_deref(),
                timestamp: None,
                headers: None,
            };
            let queued = self.producer.send_result(record).map_err(|(err, _)| err)?;
            sent.push(queued);
        }
        let mut offsets = Vec::with_capacity(sent.len());
        for delivered in sent {
            let delivered = delivered.await.context("the producer is gone")?;
            offsets.push(delivered.map_err(|(err, _)| err)?.offset);
        }
        Ok(offsets)
    }

    /// Writes the files of a view into the directory that the rig's builders read.
    ///
    /// # Panics
    /// The directory is not writable.
    pub fn write_view(&self, view: &str, table_sql: &str, apply_sql: &str) {
        let folder = self.views.path().join(view);
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join("table.sql"), table_sql).expect("table.sql");
        std::fs::write(folder.join("apply.sql"), apply_sql).expect("apply.sql");
    }

    /// The directory of views that the rig's builders read.
    #[must_use]
    pub fn views(&self) -> &Path {
        self.views.path()
    }

    /// A directory for logs. It is removed with the rig.
    #[must_use]
    pub fn logs(&self) -> &Path {
        self.logs.path()
    }

    /// A builder, not yet started. It is a static member under its name, so after a restart it takes its partitions over at once.
    ///
    /// # Panics
    /// The programs are not built.
    #[must_use]
    pub fn builder(&self, name: &str) -> Program {
        self.program("view-builder", name)
    }

    /// As [`ViewRig::builder`], but the program with failpoints and planted bugs.
    ///
    /// # Panics
    /// The programs are not built.
    #[must_use]
    pub fn faulty_builder(&self, name: &str) -> Program {
        self.program("view-builder-faults", name)
    }

    fn program(&self, binary: &str, name: &str) -> Program {
        let port = port::free().expect("a free port");
        let binary = checkout::programs_directory().expect("the programs").join(binary);
        Program::new(name, &binary, self.logs.path().join(format!("{name}.log")), port)
            .argument("run")
            .env("DATABASE_URL", &self.servers.postgres.url("view_builder", &self.name))
            .env("KAFKA_BOOTSTRAP_SERVERS", &self.servers.kafka.bootstrap_servers())
            .env("GROUP_ID", &self.name)
            .env("GROUP_INSTANCE_ID", name)
            .env("VIEWS", &self.views.path().to_string_lossy())
            .env("ADMIN_LISTEN", &format!("127.0.0.1:{port}"))
            .env("LOG_FORMAT", "text")
    }

    /// A connection to the views' database as a superuser.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn client(&self) -> anyhow::Result<Client> {
        self.servers.postgres.connect("postgres", &self.name).await
    }

    /// The rows that `sql` gives in the views' database, as a superuser.
    ///
    /// # Errors
    /// The server does not answer, or refuses.
    pub async fn query(&self, sql: &str) -> anyhow::Result<Vec<Vec<Option<String>>>> {
        self.servers.postgres.query(&self.name, sql).await
    }

    /// Runs `sql`, which must give one value. Returns it as text.
    ///
    /// # Errors
    /// As [`ViewRig::query`], or there is none.
    pub async fn value(&self, sql: &str) -> anyhow::Result<String> {
        let value = self.query(sql).await?.into_iter().flatten().flatten().next();
        value.with_context(|| format!("{sql}: no value"))
    }

    /// Waits until everything that the topic has now is applied.
    ///
    /// # Errors
    /// It is not, in time.
    pub async fn wait_until_applied(&self, topic: &str) -> anyhow::Result<()> {
        let ends = self.ends(topic).await?;
        eventually_ok(DEADLINE, "everything is applied", || async {
            for end in &ends {
                let sql = format!(
                    "select coalesce(max(next_offset), 0) from view_positions where topic = '{topic}' and partition = {}",
                    end.partition
                );
                let position: i64 = self.value(&sql).await?.parse()?;
                ensure!(position >= end.all, "{topic}/{}: {position} of {}", end.partition, end.all);
            }
            Ok(())
        })
        .await
    }
}
