//! Changes that somebody makes behind the relay's back: to its slot, its checkpoint topic, its publication. And steps that such tests share.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rig::{Isolation, Record, Rig, Servers, servers, topic};
use serde_json::Value;
use stack::{KafkaOptions, eventually};

pub(super) const DEADLINE: Duration = Duration::from_secs(60);

/// A relay that has published and confirmed a few rows, and was stopped.
pub(super) async fn published_and_stopped(name: &str) -> Rig {
    let rig = Rig::initialised(name).await;
    publish_and_stop(&rig).await;
    rig
}

/// As [`published_and_stopped`], on servers of its own, where Postgres invalidates a slot that retains more than 16 MB.
pub(super) async fn published_and_stopped_with_little_wal(name: &str) -> Rig {
    let options = servers::postgres_options()
        .setting("max_slot_wal_keep_size", "16MB")
        .setting("max_wal_size", "64MB")
        .setting("min_wal_size", "32MB");
    let servers = Servers::start(options, KafkaOptions::default()).await.expect("servers");
    let rig = Rig::on(Arc::new(servers), name).await;
    rig.init(&[]).await;
    publish_and_stop(&rig).await;
    rig
}

/// Lets the relay publish and confirm a few rows, and stops it.
pub(crate) async fn publish_and_stop(rig: &Rig) {
    rig.start().await;
    rig.insert_each(5).await;
    rig.assert_exactly_once().await;
    wait_until_confirmed(rig).await;
    rig.relay.stop().await.expect("a clean end");
    rig.wait_until_slot_is_free().await;
}

/// Waits until everything that was written so far is confirmed.
pub(super) async fn wait_until_confirmed(rig: &Rig) {
    let end = rig.value("select pg_current_wal_flush_lsn()").await;
    let name = rig.name();
    let sql = format!("select confirmed_flush_lsn >= '{end}' from pg_replication_slots where slot_name = '{name}'");
    eventually(DEADLINE, "the relay confirms what it has published", || async {
        (rig.value(&sql).await == "t").then_some(())
    })
    .await;
}

/// Waits until the running relay ends by itself. Asserts that it ends with this exit code and has said all of `says`.
pub(super) async fn assert_ends(rig: &Rig, exit_code: i32, says: &[&str]) {
    let status = rig.relay.exited(DEADLINE).await.unwrap_or_else(|err| panic!("{err:#}"));
    let log = rig.relay.log_text();
    assert_eq!(status.code(), Some(exit_code), "{log}");
    for words in says {
        assert!(log.contains(words), "it says `{words}`: {log}");
    }
}

/// Kills the rig's relay if it still runs, and drops the slot.
pub(super) async fn kill_and_drop_slot(rig: &Rig) {
    rig.relay.kill_hard().await;
    rig.finish().await.expect("an end");
}

/// Runs `outbox-relay init` with these flags. Asserts that it is refused with this exit code and says `says`.
pub(super) async fn assert_refused(rig: &Rig, flags: &[&str], exit_code: i32, says: &str) {
    let logged = rig.relay.log_text().len();
    let arguments: Vec<&str> = ["init"].iter().chain(flags).copied().collect();
    let status = rig.relay.run_for_status(&arguments).await.expect("an init");
    let log = rig.relay.log_text()[logged..].to_owned();
    assert_eq!(status.code(), Some(exit_code), "{flags:?}: {log}");
    assert!(log.contains(says), "{flags:?} says `{says}`: {log}");
}

/// Runs `outbox-relay init` with these `--accept-…` flags. Asserts that it succeeds and logs one line, which names the flags.
pub(super) async fn accept(rig: &Rig, flags: &[&str]) {
    let logged = rig.relay.log_text().len();
    let arguments: Vec<&str> = ["init"].iter().chain(flags).copied().collect();
    rig.relay.run(&arguments).await.unwrap_or_else(|err| panic!("{err:#}"));
    let log = rig.relay.log_text()[logged..].to_owned();
    let lines = log.lines().filter(|line| line.contains("an operator accepts")).count();
    assert_eq!(lines, 1, "{log}");
    for flag in flags.iter().filter(|flag| flag.starts_with("--accept")) {
        assert!(log.contains(flag), "it names {flag}: {log}");
    }
}

/// Ids of the rows of the outbox, in the order of their numbers.
pub(super) async fn ids(rig: &Rig) -> Vec<String> {
    let mut rows = rig.rows().await;
    rows.sort_by_key(|row| row.n);
    rows.into_iter().map(|row| row.id).collect()
}

/// Waits until each of `awaited` is in the topic. Returns how often each of `ids` is there.
pub(super) async fn times_published(rig: &Rig, ids: &[String], awaited: &[String]) -> Vec<usize> {
    let records = eventually(DEADLINE, "what must be published is", || async {
        let records = rig.records(Isolation::Committed).await.ok()?;
        awaited.iter().all(|id| times(&records, id) > 0).then_some(records)
    })
    .await;
    ids.iter().map(|id| times(&records, id)).collect()
}

fn times(records: &[Record], id: &str) -> usize {
    records.iter().filter(|record| record.header("id") == Some(id)).count()
}

/// The checkpoints in the topic.
pub(super) async fn checkpoints(rig: &Rig) -> Vec<Record> {
    let (servers, name) = (rig.servers.kafka.bootstrap_servers(), rig.checkpoint_topic());
    let records = tokio::task::spawn_blocking(move || topic::read(&servers, &name, Isolation::Committed)).await;
    records.expect("a reader").expect("the checkpoint topic")
}

/// The last checkpoint in the topic.
pub(super) async fn last_checkpoint(rig: &Rig) -> Value {
    let last = checkpoints(rig).await.pop().and_then(|record| record.value);
    serde_json::from_slice(&last.expect("a checkpoint")).expect("JSON")
}

/// Writes a checkpoint under the relay's key, as a strange producer could. `None` writes a tombstone.
pub(super) async fn write_checkpoint(rig: &Rig, value: Option<Vec<u8>>) {
    let (servers, name) = (rig.servers.kafka.bootstrap_servers(), rig.checkpoint_topic());
    let key = format!("{0}/{0}", rig.name());
    let written = tokio::task::spawn_blocking(move || {
        let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", &servers).create()?;
        let mut record = BaseRecord::<str, [u8]>::to(&name).partition(0).key(&key);
        record.payload = value.as_deref();
        producer.send(record).map_err(|(err, _)| err)?;
        producer.flush(DEADLINE)
    });
    written.await.expect("a producer").expect("a record");
}

/// Drops the slot and makes it again, as somebody could by mistake.
pub(super) async fn recreate_slot(rig: &Rig) {
    rig.drop_slot().await;
    let name = rig.name();
    rig.sql(&format!(
        "select pg_create_logical_replication_slot('{name}', 'pgoutput')"
    ))
    .await;
}

/// A metric of the running relay. None: it does not answer, or has no such metric.
pub(super) async fn metric(rig: &Rig, name: &str) -> Option<f64> {
    let answer = reqwest::get(rig.relay.url("/metrics")).await.ok()?.text().await.ok()?;
    let line = answer.lines().find(|line| line.split(' ').next() == Some(name))?;
    line.split(' ').nth(1)?.parse().ok()
}
