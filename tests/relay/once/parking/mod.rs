//! Poison rows that the relay parks: by a policy or by hand, with the rows behind them, and what an operator can do with them afterwards.

mod by_hand;
mod crashes;
mod poison_limit;
mod retry;
mod start;
mod successors;

use std::collections::BTreeMap;

use rig::rig::ARRIVAL_DEADLINE;
use rig::{Isolation, Record, Rig, topic};
use stack::{Program, eventually};

use crate::relay::tampering::wait_until_confirmed;

use super::topic_settings::limit_record_bytes;

/// More bytes than the topic takes of [`rig_that_parks`], and fewer than the parking topic takes.
pub(super) const LARGE_BYTES: u32 = 30_000;
/// The topic of [`rig_that_parks`] takes records of so many bytes.
pub(super) const RECORD_BYTES_MAX: u32 = 20_000;

/// A parked row, as its entry in the parking topic describes it.
#[derive(Clone, Debug)]
pub(super) struct ParkedRow {
    /// `poison`, `behind` or `operator`.
    pub(super) because: String,
    pub(super) position: String,
}

/// A rig whose topic takes no row of [`LARGE_BYTES`], and whose relay parks such rows.
pub(super) async fn rig_that_parks(name: &str) -> Rig {
    let mut rig = Rig::initialised(name).await;
    limit_record_bytes(&rig, RECORD_BYTES_MAX).await;
    rig.relay = rig.relay.with_env("OUTBOX_POISON", "park");
    rig
}

/// A rig whose relay runs, has published six rows, and has parked a poison row of `k1` and one row behind it.
pub(super) async fn running_with_two_parked(name: &str) -> Rig {
    let rig = rig_that_parks(name).await;
    rig.start().await;
    insert_row(&rig, "k1", LARGE_BYTES).await;
    rig.insert_each(7).await;
    assert_published_in_order(&rig, 6).await;
    wait_until_parked(&rig, 2).await;
    rig
}

/// As [`running_with_two_parked`], but everything is confirmed and the relay was stopped.
pub(super) async fn stopped_with_two_parked(name: &str) -> Rig {
    let rig = running_with_two_parked(name).await;
    wait_until_confirmed(&rig).await;
    stop_relay(&rig).await;
    rig
}

/// Writes a row of `key` with a payload of about this many bytes. Returns the row's id.
pub(super) async fn insert_row(rig: &Rig, key: &str, bytes: u32) -> String {
    let topic = rig.topic();
    rig.value(&format!(
        "insert into outbox (aggregatetype, aggregateid, type, payload)
         values ('{topic}', '{key}', 'Some', jsonb_build_object('n', nextval('numbers'), 'pad', repeat('x', {bytes}))) returning id"
    ))
    .await
}

/// The rows that are parked now, by their ids.
pub(super) async fn read_parked(rig: &Rig) -> BTreeMap<String, ParkedRow> {
    let (servers, name) = (rig.servers.kafka.bootstrap_servers(), rig.parking_topic());
    let records = tokio::task::spawn_blocking(move || topic::read(&servers, &name, Isolation::Committed)).await;
    let mut entries = BTreeMap::new();
    for record in records.expect("a reader").unwrap_or_default() {
        let key = record.key_text().expect("a key").to_owned();
        match record.value {
            Some(value) => entries.insert(key, value),
            // A tombstone: the row is parked no more.
            None => entries.remove(&key),
        };
    }
    let rows = entries.into_values().map(|value| {
        let entry: serde_json::Value = serde_json::from_slice(&value).expect("JSON");
        let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        let row = ParkedRow {
            because: text("parkedBecause"),
            position: text("position"),
        };
        (text("id"), row)
    });
    rows.collect()
}

/// Waits until at least so many rows are parked. Returns all that are parked then.
pub(super) async fn wait_until_parked(rig: &Rig, rows: usize) -> BTreeMap<String, ParkedRow> {
    eventually(ARRIVAL_DEADLINE, "the rows are parked", || async {
        let parked = read_parked(rig).await;
        (parked.len() >= rows).then_some(parked)
    })
    .await
}

/// The records that the topic has now.
pub(super) async fn committed_records(rig: &Rig) -> Vec<Record> {
    rig.records(Isolation::Committed).await.expect("the topic")
}

/// Waits until `rows` rows are published. Asserts that each is there once, and the rows of each key in the order of their numbers. Returns their
/// ids.
pub(super) async fn assert_published_in_order(rig: &Rig, rows: usize) -> Vec<String> {
    let records = eventually(ARRIVAL_DEADLINE, "the rows are published", || async {
        let records = committed_records(rig).await;
        (records.len() >= rows).then_some(records)
    })
    .await;
    let mut last_of_key: BTreeMap<String, i64> = BTreeMap::new();
    for record in &records {
        let payload: serde_json::Value =
            serde_json::from_slice(record.value.as_deref().expect("a value")).expect("JSON");
        let n = payload["n"].as_i64().expect("a number");
        let last = last_of_key.insert(record.key_text().unwrap_or_default().to_owned(), n);
        assert!(last.is_none_or(|last| last < n), "out of order: {record:?}");
    }
    let mut ids: Vec<String> = records
        .iter()
        .map(|record| record.header("id").expect("an id").to_owned())
        .collect();
    ids.sort();
    let published = ids.len();
    ids.dedup();
    assert_eq!(
        (ids.len(), published),
        (rows, rows),
        "each once\n{}",
        rig.relay.log_tail(20)
    );
    ids
}

/// Runs a command with the relay's environment. Asserts that it ends with this exit code and says all of `says`. Returns what it said.
pub(super) async fn assert_command(relay: &Program, arguments: &[&str], exit_code: i32, says: &[&str]) -> String {
    let logged = relay.log_text().len();
    let status = relay.run_for_status(arguments).await.expect("a command");
    let log = relay.log_text()[logged..].to_owned();
    assert_eq!(status.code(), Some(exit_code), "{arguments:?}: {log}");
    for words in says {
        assert!(log.contains(words), "{arguments:?} says `{words}`: {log}");
    }
    log
}

/// Runs `outbox-relay parked retry --all`, as [`assert_command`] does.
pub(super) async fn assert_retry_of_all(relay: &Program, exit_code: i32, says: &[&str]) {
    assert_command(relay, &["parked", "retry", "--all"], exit_code, says).await;
}

/// Stops the relay, and waits until its slot is free.
pub(super) async fn stop_relay(rig: &Rig) {
    rig.relay.stop().await.expect("a clean end");
    rig.wait_until_slot_is_free().await;
}
