//! Poison rows that an operator has parked: by a policy or by hand, with what stands behind them, and what becomes of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use rig::rig::{ARRIVAL_DEADLINE, READY_DEADLINE};
use rig::{Isolation, Metrics, Record, Rig, topic};
use stack::{Program, eventually};

use crate::relay::load::waits_as_standby;
use crate::relay::tampering::{wait_until_confirmed, write_checkpoint};

use super::topic_settings::{RECORD_TOO_LARGE, ROW, assert_ends, assert_stops, set_topic};

const TOO_MANY_PARKED: i32 = 33;
/// More than the topic takes after [`limit`], and less than the parking topic does.
pub(super) const LARGE_BYTES: u32 = 30_000;
/// Exit code of a program that a failpoint ended, and of one that was killed.
const FAILPOINT_EXIT: i32 = 77;

/// Sets how large a record of the rig's topic may be.
pub(super) async fn limit(rig: &Rig, bytes: u32) {
    set_topic(rig, &[("max.message.bytes", &bytes.to_string())]).await;
}

/// A rig whose topic takes no large rows, and whose relay parks them.
pub(super) async fn parking_rig(name: &str) -> Rig {
    let mut rig = Rig::initialised(name).await;
    limit(&rig, 20_000).await;
    rig.relay = rig.relay.with_env("OUTBOX_POISON", "park");
    rig
}

/// A relay that runs, has published six rows, and has parked a poison row of `k1` and one behind it.
pub(super) async fn with_two_parked(name: &str) -> Rig {
    let rig = parking_rig(name).await;
    rig.start().await;
    insert(&rig, "k1", LARGE_BYTES).await;
    rig.insert_each(7).await;
    assert_published_in_order(&rig, 6).await;
    wait_until_parked(&rig, 2).await;
    rig
}

/// As [`with_two_parked`]; all is confirmed, and the relay was stopped.
pub(super) async fn stopped_with_two_parked(name: &str) -> Rig {
    let rig = with_two_parked(name).await;
    wait_until_confirmed(&rig).await;
    stop(&rig).await;
    rig
}

/// Writes a row of `key` with a payload of about this many bytes; its id.
pub(super) async fn insert(rig: &Rig, key: &str, bytes: u32) -> String {
    let topic = rig.topic();
    rig.value(&format!(
        "insert into outbox (aggregatetype, aggregateid, type, payload)
         values ('{topic}', '{key}', 'Some', jsonb_build_object('n', nextval('numbers'), 'pad', repeat('x', {bytes}))) returning id"
    ))
    .await
}

/// The parked rows, by their ids: why, and their positions.
pub(super) async fn parked(rig: &Rig) -> BTreeMap<String, (String, String)> {
    let (servers, name) = (rig.servers.kafka.bootstrap_servers(), rig.parking_topic());
    let records = tokio::task::spawn_blocking(move || topic::read(&servers, &name, Isolation::Committed)).await;
    let mut by_key = BTreeMap::new();
    for record in records.expect("a reader").unwrap_or_default() {
        let key = record.key_text().expect("a key").to_owned();
        match record.value {
            Some(value) => by_key.insert(key, value),
            None => by_key.remove(&key),
        };
    }
    let entries = by_key.into_values().map(|value| {
        let entry: serde_json::Value = serde_json::from_slice(&value).expect("JSON");
        let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        (text("id"), (text("parkedBecause"), text("position")))
    });
    entries.collect()
}

pub(super) async fn wait_until_parked(rig: &Rig, rows: usize) -> BTreeMap<String, (String, String)> {
    eventually(ARRIVAL_DEADLINE, "the rows are parked", || async {
        let parked = parked(rig).await;
        (parked.len() >= rows).then_some(parked)
    })
    .await
}

pub(super) async fn records(rig: &Rig) -> Vec<Record> {
    rig.records(Isolation::Committed).await.expect("the topic")
}

/// Waits until `rows` rows are published, each once, and those of a key in the order of their numbers; their ids.
pub(super) async fn assert_published_in_order(rig: &Rig, rows: usize) -> Vec<String> {
    let records = eventually(ARRIVAL_DEADLINE, "the rows are published", || async {
        let records = records(rig).await;
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

/// Runs a command with the relay's environment, which must end with this code and say `says`.
pub(super) async fn command(relay: &Program, arguments: &[&str], code: i32, says: &[&str]) -> String {
    let logged = relay.log_text().len();
    let status = relay.run_for_status(arguments).await.expect("a command");
    let log = relay.log_text()[logged..].to_owned();
    assert_eq!(status.code(), Some(code), "{arguments:?}: {log}");
    for words in says {
        assert!(log.contains(words), "{arguments:?} says `{words}`: {log}");
    }
    log
}

pub(super) async fn stop(rig: &Rig) {
    rig.relay.stop().await.expect("a clean end");
    rig.slot_is_free().await;
}

#[tokio::test]
async fn a_poison_row_is_parked_with_the_rows_of_its_key_behind_it_also_after_a_restart_and_a_retry_publishes_all_in_order()
 {
    let rig = parking_rig("parking_order").await;
    rig.insert_each(7).await;
    let large = insert(&rig, "k1", LARGE_BYTES).await;
    rig.start().await;
    rig.insert_each(14).await;
    assert_published_in_order(&rig, 19).await;
    let known = wait_until_parked(&rig, 3).await;
    assert_eq!(known[&large].0, "poison");
    assert_eq!(known.values().filter(|(because, _)| because == "behind").count(), 2);
    let metrics = Metrics::of(&rig.relay).await.expect("metrics");
    assert_eq!(
        metrics
            .series("relay_parked_rows")
            .map(|sample| sample.value)
            .sum::<f64>(),
        3.0
    );
    let position = known[&large].1.clone();
    let busy = ["stop the relay", "cannot be taken over"];
    command(&rig.relay, &["parked", "retry", "--all"], 1, &busy).await;
    stop(&rig).await;

    rig.start().await;
    rig.insert_each(7).await;
    assert_published_in_order(&rig, 25).await;
    wait_until_parked(&rig, 4).await;
    stop(&rig).await;
    let says = [position.as_str(), large.as_str(), "max.message.bytes", "behind: "];
    command(&rig.relay, &["parked", "list"], 0, &says).await;
    command(&rig.relay, &["status"], 0, &["parked rows", "4"]).await;
    let stays = ["0 rows are published, 4 stay parked"];
    command(&rig.relay, &["parked", "retry", "--all"], 1, &stays).await;

    limit(&rig, 60_000).await;
    let behind = known
        .values()
        .find(|(because, _)| because == "behind")
        .expect("a row behind")
        .1
        .clone();
    command(
        &rig.relay,
        &["parked", "retry", &behind],
        2,
        &[&position, "of the same key is parked before it"],
    )
    .await;
    command(
        &rig.relay,
        &["parked", "retry", &position],
        0,
        &["1 rows are published, 0 stay parked"],
    )
    .await;
    command(
        &rig.relay,
        &["parked", "retry", "--all"],
        0,
        &["3 rows are published, 0 stay parked"],
    )
    .await;
    assert_eq!(parked(&rig).await.len(), 0);
    rig.start().await;
    rig.insert_each(7).await;
    assert_published_in_order(&rig, 36).await;
    assert_eq!(parked(&rig).await.len(), 0, "its key flows again");
    let retried = records(&rig).await;
    let retried = retried.iter().filter(|record| record.header("parked") == Some("retry"));
    assert_eq!(retried.clone().count(), 4, "their records say so");
    let first = retried
        .clone()
        .find(|record| record.header("id") == Some(&large))
        .expect("its record");
    assert!(
        first
            .header("position")
            .is_some_and(|header| header.starts_with(&position)),
        "where it stood"
    );
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_row_too_large_for_the_parking_topic_is_taken_from_the_outbox_by_a_retry() {
    let mut rig = parking_rig("parking_omitted").await;
    set_topic(&rig, &[("max.message.bytes", "1100000")]).await;
    let large = insert(&rig, "k1", 1_010_000).await;
    let lost = insert(&rig, "k2", 1_010_000).await;
    rig.insert_each(1).await;
    rig.start().await;
    let known = wait_until_parked(&rig, 2).await;
    stop(&rig).await;
    command(&rig.relay, &["parked", "list"], 0, &["(not stored: payload)"]).await;
    rig.sql(&format!("delete from outbox where id = '{lost}'")).await;
    rig.relay = rig.relay.with_env("KAFKA_PROPERTIES", "message.max.bytes=1040000");
    let says = ["1 rows are published, 1 stay parked", "is in the outbox table no more"];
    command(&rig.relay, &["parked", "retry", "--all"], 1, &says).await;
    assert!(assert_published_in_order(&rig, 2).await.contains(&large));
    command(&rig.relay, &["parked", "discard", &known[&lost].1], 41, &["add --yes"]).await;
    command(
        &rig.relay,
        &["parked", "discard", &known[&lost].1, "--yes"],
        0,
        &["is discarded", &lost],
    )
    .await;
    assert_eq!(parked(&rig).await.len(), 0);
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_standby_that_takes_over_check_and_recover_know_what_is_parked() {
    let rig = with_two_parked("parking_known").await;
    let standby = rig.another_relay("standby");
    standby.start().expect("a start");
    waits_as_standby(&standby).await;
    rig.relay.kill_hard().await;
    rig.insert_each(7).await;
    assert_published_in_order(&rig, 12).await;
    assert_eq!(wait_until_parked(&rig, 3).await.len(), 3, "the standby knows the key");
    wait_until_confirmed(&rig).await;
    standby.stop().await.expect("a clean end");
    command(&rig.relay, &["check"], 0, &["3 rows are parked and not published"]).await;

    rig.slot_is_free().await;
    rig.drop_slot().await;
    insert(&rig, "another", 10).await;
    rig.assert_stops(10, &["outbox-relay recover"]).await;
    command(&rig.relay, &["recover", "--yes"], 0, &[]).await;
    assert_published_in_order(&rig, 13).await;
    assert_eq!(parked(&rig).await.len(), 3, "recover leaves them");
    limit(&rig, 60_000).await;
    command(
        &rig.relay,
        &["parked", "retry", "--all"],
        0,
        &["3 rows are published, 0 stay parked"],
    )
    .await;
    rig.start().await;
    rig.insert_each(7).await;
    assert_published_in_order(&rig, 23).await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_recover_after_a_lost_checkpoint_knows_what_is_parked() {
    let rig = stopped_with_two_parked("parking_lost").await;
    write_checkpoint(&rig, None).await;
    rig.assert_stops(14, &["outbox-relay recover"]).await;
    command(&rig.relay, &["recover", "--yes"], 0, &[]).await;
    rig.start().await;
    rig.insert_each(7).await;
    assert_published_in_order(&rig, 12).await;
    wait_until_parked(&rig, 3).await;
    stop(&rig).await;
    limit(&rig, 60_000).await;
    command(
        &rig.relay,
        &["parked", "retry", "--all"],
        0,
        &["3 rows are published, 0 stay parked"],
    )
    .await;
    assert_published_in_order(&rig, 15).await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn what_stands_behind_a_discarded_row_goes_by_a_retry_and_skip_lets_it_go_at_once() {
    let mut rig = parking_rig("parking_discard").await;
    let large = insert(&rig, "k1", LARGE_BYTES).await;
    insert(&rig, "k1", 10).await;
    rig.start().await;
    let known = wait_until_parked(&rig, 2).await;
    stop(&rig).await;
    let says = ["is discarded", "1 parked rows of its key stand behind it"];
    command(&rig.relay, &["parked", "discard", &known[&large].1, "--yes"], 0, &says).await;
    command(
        &rig.relay,
        &["parked", "discard", &known[&large].1, "--yes"],
        2,
        &["no row at"],
    )
    .await;
    command(&rig.relay, &["parked", "retry", "--all"], 0, &["1 rows are published"]).await;
    assert_published_in_order(&rig, 1).await;

    rig.relay = rig.relay.with_env("OUTBOX_POISON_ORDER", "skip");
    insert(&rig, "k1", LARGE_BYTES).await;
    insert(&rig, "k1", 10).await;
    rig.start().await;
    assert_published_in_order(&rig, 2).await;
    assert_eq!(wait_until_parked(&rig, 1).await.len(), 1);
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn more_poison_rows_than_the_limit_in_a_minute_stop_the_relay() {
    let mut rig = parking_rig("parking_limit").await;
    rig.relay = rig.relay.with_env("OUTBOX_POISON_LIMIT", "2");
    for key in ["a", "b", "a", "c"] {
        insert(&rig, key, LARGE_BYTES).await;
    }
    // The second row of `a` stands behind the first, and does not count.
    let says = ["more than 2 poison rows", "--poison-limit", "outbox-relay park "];
    assert_stops(&rig.relay, TOO_MANY_PARKED, &says).await;
    assert_stops(&rig.relay, TOO_MANY_PARKED, &says).await;
    assert_eq!(parked(&rig).await.len(), 3, "a restart does not begin to count anew");
    rig.relay.kill_hard().await;
    rig.slot_is_free().await;
    rig.relay = rig.relay.with_env("OUTBOX_POISON_LIMIT", "1000");
    rig.start().await;
    wait_until_parked(&rig, 4).await;
    rig.insert_each(3).await;
    assert_published_in_order(&rig, 3).await;
    stop(&rig).await;
    limit(&rig, 60_000).await;
    command(&rig.relay, &["parked", "retry", "--all"], 0, &[]).await;
    assert_published_in_order(&rig, 7).await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn parking_without_a_limit_is_caught() {
    let mut rig = parking_rig("parking_bug_limit").await;
    rig.relay = rig
        .relay
        .with_env("OUTBOX_POISON_LIMIT", "2")
        .with_binary("outbox-relay-faults")
        .env("OUTBOX_RELAY_BUG", "ParkWithoutLimit");
    for key in ["a", "b", "c"] {
        insert(&rig, key, LARGE_BYTES).await;
    }
    rig.start().await;
    assert_eq!(wait_until_parked(&rig, 3).await.len(), 3, "more than may be");
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_row_at_which_the_relay_stopped_is_parked_by_hand_and_no_other_is() {
    let rig = Rig::initialised("parking_by_hand").await;
    limit(&rig, 20_000).await;
    rig.sql("alter table outbox alter aggregatetype drop not null").await;
    rig.insert_each(3).await;
    insert(&rig, "k1", LARGE_BYTES).await;
    rig.sql("insert into outbox (aggregateid, type, payload) values ('k2', 'Poison', '{}')")
        .await;
    rig.insert_each(3).await;
    let mut positions = Vec::new();
    for (code, other) in [(RECORD_TOO_LARGE, "0/1:0"), (ROW, "FFFF/0:0")] {
        let said = assert_stops(&rig.relay, code, &["`outbox-relay park "]).await;
        let (_, rest) = said.rsplit_once("`outbox-relay park ").expect("what to do");
        let position = rest.split('`').next().expect("a position").to_owned();
        rig.slot_is_free().await;
        command(&rig.relay, &["park", other], 2, &["nothing was changed"]).await;
        command(&rig.relay, &["park", &position], 0, &["parks the row at", &position]).await;
        positions.push(position);
    }
    rig.start().await;
    assert_published_in_order(&rig, 6).await;
    let known = wait_until_parked(&rig, 2).await;
    let operators = known.values().filter(|(because, _)| because == "operator");
    assert_eq!(
        operators
            .map(|(_, position)| position.clone())
            .collect::<std::collections::BTreeSet<_>>(),
        positions.iter().cloned().collect()
    );
    stop(&rig).await;
    command(&rig.relay, &["park", &positions[0]], 2, &["lies before the checkpoint"]).await;
    rig.finish().await.expect("a clean end");
}

/// Runs a relay that dies at `point`, and again without an end, until everything is published or parked; false where a row is in both or in
/// neither. The cause is mended after the death where `mends`, so that what was not parked then is published.
async fn survives(name: &str, point: &str, bug: &str, mends: bool) -> bool {
    let rig = Arc::new(parking_rig(name).await);
    let relay = rig
        .relay
        .with_binary("outbox-relay-faults")
        .env(
            "KAFKA_PROPERTIES",
            "transaction.timeout.ms=2000\nmessage.timeout.ms=1500\nsocket.timeout.ms=2000",
        )
        .env("OUTBOX_RELAY_FAILPOINT", &format!("{point}=exit@1"))
        .env(
            "OUTBOX_RELAY_FAILPOINT_HITS",
            &rig.logs().join("hits").to_string_lossy(),
        )
        .env("OUTBOX_RELAY_BUG", bug);
    let topic = rig.topic();
    rig.sql(&format!(
        "insert into outbox (aggregatetype, aggregateid, type, payload)
         select '{topic}', 'k' || n % 3, 'Some', jsonb_build_object('n', n, 'pad', repeat('x', case when n = 4 then {LARGE_BYTES} else 10 end))
         from (select nextval('numbers') as n from generate_series(1, 12)) as numbered"
    ))
    .await;
    let logged = relay.log_text().len();
    relay.start().expect("a start");
    assert_ends(&relay, logged, FAILPOINT_EXIT, &[]).await;
    if mends {
        limit(&rig, 60_000).await;
    }
    relay.start().expect("a start");
    let rows = rig.rows().await.len();
    let outcome = eventually(READY_DEADLINE, "every row is somewhere", || async {
        let published: Vec<String> = records(&rig)
            .await
            .iter()
            .filter_map(|record| record.header("id").map(str::to_owned))
            .collect();
        let parked = parked(&rig).await;
        (published.len() + parked.len() >= rows).then_some((published, parked))
    });
    let (mut published, known) = outcome.await;
    relay.stop().await.expect("a clean end");
    let total = published.len() + known.len();
    published.sort();
    published.dedup();
    let in_both = published.iter().any(|id| known.contains_key(id));
    rig.finish().await.expect("a clean end");
    total == rows && published.len() + known.len() == rows && !in_both
}

#[tokio::test]
async fn a_relay_that_dies_while_it_parks_leaves_each_row_published_or_parked() {
    let points = ["park.before", "park.sent", "commit.before", "commit.after"];
    let runs = points.map(|point| async move {
        let name = format!("parking_{}", point.replace('.', "_"));
        assert!(survives(&name, point, "", false).await, "{point}");
        assert!(
            survives(&format!("{name}_mended"), point, "", true).await,
            "{point}, mended"
        );
    });
    futures_util::future::join_all(runs).await;
}

#[tokio::test]
async fn parking_outside_of_the_transaction_is_caught() {
    assert!(!survives("parking_bug_outside", "park.sent", "ParkOutsideTransaction", true).await);
}

#[tokio::test]
async fn forgetting_the_parked_keys_is_caught() {
    for (bug, parks) in [("", 3), ("ForgetParkedKeys", 2)] {
        let rig = parking_rig(&format!("parking_forget_{parks}")).await;
        let relay = rig
            .relay
            .with_binary("outbox-relay-faults")
            .env("OUTBOX_RELAY_BUG", bug);
        insert(&rig, "k1", LARGE_BYTES).await;
        insert(&rig, "k1", 10).await;
        relay.start().expect("a start");
        wait_until_parked(&rig, 2).await;
        relay.stop().await.expect("a clean end");
        relay.start().expect("a start");
        insert(&rig, "k1", 10).await;
        insert(&rig, "k2", 10).await;
        let published = if parks == 3 { 1 } else { 2 };
        eventually(ARRIVAL_DEADLINE, "the row of another key is published", || async {
            (records(&rig).await.len() == published).then_some(())
        })
        .await;
        assert_eq!(wait_until_parked(&rig, parks).await.len(), parks);
        relay.stop().await.expect("a clean end");
        rig.finish().await.expect("a clean end");
    }
}

#[tokio::test]
async fn a_retry_that_dies_leaves_each_row_published_or_parked() {
    for point in ["commit.before", "commit.after"] {
        let rig = parking_rig(&format!("parking_retry_{}", point.replace('.', "_"))).await;
        insert(&rig, "k1", LARGE_BYTES).await;
        insert(&rig, "k1", 10).await;
        rig.start().await;
        wait_until_parked(&rig, 2).await;
        stop(&rig).await;
        limit(&rig, 60_000).await;
        let dying = rig
            .relay
            .with_binary("outbox-relay-faults")
            .env("OUTBOX_RELAY_FAILPOINT", &format!("{point}=exit@1"))
            .env(
                "OUTBOX_RELAY_FAILPOINT_HITS",
                &rig.logs().join("hits").to_string_lossy(),
            );
        command(&dying, &["parked", "retry", "--all"], FAILPOINT_EXIT, &[]).await;
        rig.slot_is_free().await;
        let left = if point == "commit.before" {
            "2 rows are published"
        } else {
            "0 rows are published"
        };
        command(&rig.relay, &["parked", "retry", "--all"], 0, &[left]).await;
        assert_published_in_order(&rig, 2).await;
        assert_eq!(parked(&rig).await.len(), 0);
        rig.finish().await.expect("a clean end");
    }
}
