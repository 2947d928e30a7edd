//! How `verify` finds out that everything is applied: from the positions, and from what the topic has after them.

use std::time::Duration;

use anyhow::ensure;
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rig::view_rig::{DEADLINE, Event};
use rig::{ViewRig, view_builder_exit};
use stack::eventually_ok;
use tokio::task::JoinHandle;

use super::rebuild_positions::{apply_all, item};
use super::rig_itself::{TABLE, apply};

const ITEMS: i64 = 20;

/// A view with all items, and a source that has them as well. A slot of the source follows the end of the WAL.
struct Site {
    rig: ViewRig,
    topic: String,
    source: tokio_postgres::Client,
    relay: JoinHandle<()>,
}

impl Site {
    async fn new(name: &str) -> Self {
        let rig = ViewRig::new(name).await;
        let topic = rig.topic("item");
        rig.create_topic(&topic, 2, &[]).await.expect("a topic");
        rig.write_view("item", TABLE, &apply(&topic));
        let columns = "select (id % 8)::text, id, version, row(name)::text from";
        let verify = format!("-- source: {topic}\n{columns} item_source;\n\n-- view: item\n{columns} item;\n");
        std::fs::write(rig.views().join("item/verify.sql"), verify).expect("verify.sql");
        let postgres = &rig.servers.postgres;
        let server = postgres.connect("postgres", "postgres").await.expect("a connection");
        let made = format!("create database {name}_source");
        server.batch_execute(&made).await.expect("a database");
        let database = format!("{name}_source");
        let source = postgres.connect("postgres", &database).await.expect("a connection");
        source
            .batch_execute(
                "create table item_source (id bigint primary key, version bigint, name text); create table tick (at timestamptz)",
            )
            .await
            .expect("tables");
        let make = format!("select pg_create_logical_replication_slot('{name}', 'pgoutput')");
        source.batch_execute(&make).await.expect("a slot");
        let following = postgres.connect("postgres", &database).await.expect("a connection");
        let follow = format!(
            "insert into tick values (now());
             select pg_replication_slot_advance('{name}', pg_current_wal_flush_lsn())"
        );
        let relay = tokio::spawn(async move {
            loop {
                following.batch_execute(&follow).await.expect("the slot follows");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        let site = Self {
            rig,
            topic,
            source,
            relay,
        };
        for id in 1..=ITEMS {
            site.change(id, 1).await;
        }
        let events = (1..=ITEMS).map(|id| item(&site.topic, id, 1));
        site.rig.produce(&site.topic, events).await.expect("offsets");
        apply_all(&site.rig, &site.topic).await;
        site
    }

    async fn change(&self, id: i64, version: i64) {
        let sql = format!(
            "insert into item_source values ({id}, {version}, 'n{id}-{version}')
             on conflict (id) do update set version = excluded.version, name = excluded.name"
        );
        self.source.batch_execute(&sql).await.expect("a change");
    }

    async fn verify(&self, bug: &str) -> (Option<i32>, String) {
        let source = self
            .rig
            .servers
            .postgres
            .url("postgres", &format!("{}_source", self.rig.name()));
        let arguments = ["verify", "--source", &format!("{}={source}", self.topic), "--wait", "3"];
        let command = self
            .rig
            .faulty_builder("verify")
            .env("VIEW_BUILDER_BUG", bug)
            .command_of(&format!("verify-{bug}"), &arguments);
        command.start().expect("a start");
        let status = command.exited(DEADLINE).await.expect("an end");
        (status.code(), command.log_text())
    }

    /// Ends the sessions that read the slot, and drops the slot.
    async fn end(self) {
        self.relay.abort();
        let _ = self.relay.await;
        let drop = format!("select pg_drop_replication_slot('{}')", self.rig.name());
        eventually_ok(DEADLINE, "the slot is dropped", || async {
            Ok(self.source.batch_execute(&drop).await?)
        })
        .await
        .unwrap_or_else(|err| panic!("{err:#}"));
    }
}

/// A builder leaves this if it dies at a certain moment: it has given a batch up and will read it again, and has already written its statistics.
const AHEAD: &str = "update view_positions set group_offset = next_offset + 1 where partition = 1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_waits_below_the_groups_offset_is_lag_and_no_difference() {
    let site = Site::new("verify_group_offset").await;
    site.change(7, 2).await;
    let events = [item(&site.topic, 7, 2)];
    site.rig.produce(&site.topic, events).await.expect("an offset");
    site.rig.query(AHEAD).await.expect("an update");
    let (code, said) = site.verify("").await;
    assert_eq!(code, Some(view_builder_exit::LAGGING), "{said}");
    let (code, said) = site.verify("TrustGroupOffset").await;
    assert_eq!(
        code,
        Some(view_builder_exit::DIFFERENT),
        "the bug goes unnoticed: {said}"
    );
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_marker_at_the_end_is_no_event_that_waits() {
    let site = Site::new("verify_marker").await;
    site.change(7, 2).await;
    let (servers, event) = (site.rig.servers.kafka.bootstrap_servers(), item(&site.topic, 7, 2));
    let topic = site.topic.clone();
    let sent = tokio::task::spawn_blocking(move || produce_in_transaction(&servers, &topic, &event));
    sent.await.expect("no panic").unwrap_or_else(|err| panic!("{err:#}"));
    let builder = site.rig.builder("builder");
    builder.start().expect("a start");
    eventually_ok(DEADLINE, "the event is applied", || async {
        let version = site.rig.value("select version from item where id = 7").await?;
        ensure!(version == "2", "version {version}");
        Ok(())
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}"));
    builder.kill_hard().await;
    // `verify` reports a row that its events do not explain only if it knows that everything is applied.
    site.rig
        .query("update item set name = 'edited' where id = 7")
        .await
        .expect("an edit");
    let (code, said) = site.verify("").await;
    assert_eq!(code, Some(view_builder_exit::DIFFERENT), "{said}");
    site.rig
        .query("update item set name = 'n7-2' where id = 7")
        .await
        .expect("an edit");
    let (code, said) = site.verify("").await;
    assert_eq!(code, Some(view_builder_exit::SUCCESS), "{said}");
    site.end().await;
}

fn produce_in_transaction(servers: &str, topic: &str, event: &Event) -> anyhow::Result<()> {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", servers)
        .set("transactional.id", topic)
        .create()?;
    producer.init_transactions(DEADLINE)?;
    producer.begin_transaction()?;
    let record = BaseRecord::<str, str>::to(topic).partition(event.partition);
    let record = record
        .key(event.key.as_deref().unwrap_or_default())
        .payload(event.value.as_deref().unwrap_or_default());
    producer.send(record).map_err(|(err, _)| err)?;
    producer.commit_transaction(DEADLINE)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_that_is_ordered_on_a_topic_whose_beginning_is_gone_is_lag() {
    let site = Site::new("verify_truncated").await;
    for partition in 0..2 {
        let gone = site.rig.delete_records_before(&site.topic, partition, 5).await;
        gone.expect("they are gone");
    }
    let replay = "update view_positions set next_offset = null; update item set name = 'edited' where id = 7";
    site.rig.query(replay).await.expect("an update");
    let (code, said) = site.verify("").await;
    assert_eq!(code, Some(view_builder_exit::LAGGING), "{said}");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_a_topic_that_was_made_anew_and_that_no_builder_has_read_are_lag_and_no_difference() {
    let site = Site::new("verify_made_anew").await;
    site.rig.delete_topic(&site.topic).await.expect("a topic that is gone");
    site.rig.create_topic(&site.topic, 2, &[]).await.expect("another topic");
    site.change(7, 2).await;
    // There are as many events as before, so that no position is before an end.
    let events = (1..=ITEMS).map(|id| item(&site.topic, id, if id == 7 { 2 } else { 1 }));
    site.rig.produce(&site.topic, events).await.expect("offsets");
    let (code, said) = site.verify("").await;
    assert_eq!(code, Some(view_builder_exit::LAGGING), "{said}");
    let (code, said) = site.verify("KnowTopicsByName").await;
    assert_eq!(
        code,
        Some(view_builder_exit::DIFFERENT),
        "the bug goes unnoticed: {said}"
    );
    site.end().await;
}
