//! Rows that stand behind a poison row, and how `parked retry` and `parked discard` let them go.

use std::collections::BTreeMap;

use rig::{Metrics, Rig, relay_exit};

use super::{
    LARGE_BYTES, ParkedRow, assert_command, assert_published_in_order, assert_retry_of_all, committed_records,
    insert_row, limit_record_bytes, read_parked, rig_that_parks, stop_relay, wait_until_parked,
};

/// The whole life of a parked row. Each phase needs what the one before has left.
#[tokio::test]
async fn a_poison_row_is_parked_with_the_rows_of_its_key_behind_it_also_after_a_restart_and_a_retry_publishes_all_in_order()
 {
    let rig = rig_that_parks("parking_order").await;
    let (poison, parked) = later_rows_of_its_key_are_parked_behind_a_poison_row(&rig).await;
    a_retry_beside_a_running_relay_is_refused(&rig).await;
    after_a_restart_rows_of_that_key_are_still_parked(&rig).await;
    commands_tell_what_is_parked(&rig, &poison, &parked[&poison]).await;
    a_retry_changes_nothing_while_the_cause_is_there(&rig).await;
    once_the_cause_is_mended_rows_are_retried_in_their_order(&rig, &parked[&poison], &parked).await;
    afterwards_the_key_is_published_again(&rig).await;
    records_of_retried_rows_say_so(&rig, &poison, &parked[&poison]).await;
    rig.finish().await.expect("a clean end");
}

/// Returns the id of the poison row, and all parked rows.
async fn later_rows_of_its_key_are_parked_behind_a_poison_row(rig: &Rig) -> (String, BTreeMap<String, ParkedRow>) {
    rig.insert_each(7).await;
    let poison = insert_row(rig, "k1", LARGE_BYTES).await;
    rig.start().await;
    rig.insert_each(14).await;
    assert_published_in_order(rig, 19).await;
    let parked = wait_until_parked(rig, 3).await;
    assert_eq!(parked[&poison].because, "poison");
    assert_eq!(parked.values().filter(|row| row.because == "behind").count(), 2);
    let metrics = Metrics::of(&rig.relay).await.expect("metrics");
    let parked_rows = metrics.series("relay_parked_rows").map(|sample| sample.value);
    assert_eq!(parked_rows.sum::<f64>(), 3.0);
    (poison, parked)
}

async fn a_retry_beside_a_running_relay_is_refused(rig: &Rig) {
    assert_retry_of_all(&rig.relay, 1, &["stop the relay", "cannot be taken over"]).await;
}

/// Leaves the relay stopped.
async fn after_a_restart_rows_of_that_key_are_still_parked(rig: &Rig) {
    stop_relay(rig).await;
    rig.start().await;
    rig.insert_each(7).await;
    assert_published_in_order(rig, 25).await;
    wait_until_parked(rig, 4).await;
    stop_relay(rig).await;
}

async fn commands_tell_what_is_parked(rig: &Rig, id: &str, poison: &ParkedRow) {
    let says = [poison.position.as_str(), id, "max.message.bytes", "behind: "];
    assert_command(&rig.relay, &["parked", "list"], 0, &says).await;
    let says = ["parked rows", "4 rows are parked"];
    assert_command(&rig.relay, &["status"], relay_exit::NO_RELAY, &says).await;
}

async fn a_retry_changes_nothing_while_the_cause_is_there(rig: &Rig) {
    assert_retry_of_all(&rig.relay, 1, &["0 rows are published, 4 stay parked"]).await;
}

async fn once_the_cause_is_mended_rows_are_retried_in_their_order(
    rig: &Rig,
    poison: &ParkedRow,
    parked: &BTreeMap<String, ParkedRow>,
) {
    limit_record_bytes(rig, 60_000).await;
    let behind = parked.values().find(|row| row.because == "behind");
    let retry_behind = ["parked", "retry", &behind.expect("a row behind").position];
    let refused = [poison.position.as_str(), "of the same key is parked before it"];
    assert_command(&rig.relay, &retry_behind, relay_exit::WRONG_SETTING, &refused).await;
    let published = ["1 rows are published, 0 stay parked"];
    assert_command(&rig.relay, &["parked", "retry", &poison.position], 0, &published).await;
    assert_retry_of_all(&rig.relay, 0, &["3 rows are published, 0 stay parked"]).await;
    assert_eq!(read_parked(rig).await.len(), 0);
}

async fn afterwards_the_key_is_published_again(rig: &Rig) {
    rig.start().await;
    rig.insert_each(7).await;
    assert_published_in_order(rig, 36).await;
    assert_eq!(read_parked(rig).await.len(), 0, "its key flows again");
}

async fn records_of_retried_rows_say_so(rig: &Rig, id: &str, poison: &ParkedRow) {
    let records = committed_records(rig).await;
    let retried: Vec<_> = records
        .iter()
        .filter(|record| record.header("parked") == Some("retry"))
        .collect();
    assert_eq!(retried.len(), 4, "their records say so");
    let record = retried.iter().find(|record| record.header("id") == Some(id));
    let position = record.expect("the poison row's record").header("position");
    assert!(
        position.is_some_and(|position| position.starts_with(&poison.position)),
        "where it stood"
    );
}

#[tokio::test]
async fn a_row_too_large_for_the_parking_topic_is_taken_from_the_outbox_by_a_retry() {
    let mut rig = rig_that_parks("parking_omitted").await;
    limit_record_bytes(&rig, 1_100_000).await;
    let large = insert_row(&rig, "k1", 1_010_000).await;
    let deleted = insert_row(&rig, "k2", 1_010_000).await;
    rig.insert_each(1).await;
    rig.start().await;
    let parked = wait_until_parked(&rig, 2).await;
    stop_relay(&rig).await;
    assert_command(&rig.relay, &["parked", "list"], 0, &["(not stored: payload)"]).await;
    rig.sql(&format!("delete from outbox where id = '{deleted}'")).await;
    rig.relay = rig.relay.with_env("KAFKA_PROPERTIES", "message.max.bytes=1040000");
    let says = ["1 rows are published, 1 stay parked", "is in the outbox table no more"];
    assert_retry_of_all(&rig.relay, 1, &says).await;
    assert!(assert_published_in_order(&rig, 2).await.contains(&large));
    let discard = ["parked", "discard", &parked[&deleted].position];
    assert_command(&rig.relay, &discard, relay_exit::NOT_CONFIRMED, &["add --yes"]).await;
    let discard = [&discard[..], &["--yes"]].concat();
    assert_command(&rig.relay, &discard, 0, &["is discarded", &deleted]).await;
    assert_eq!(read_parked(&rig).await.len(), 0);
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_row_behind_a_discarded_row_stays_parked_until_a_retry_publishes_it() {
    let rig = rig_that_parks("parking_discard").await;
    let large = insert_row(&rig, "k1", LARGE_BYTES).await;
    insert_row(&rig, "k1", 10).await;
    rig.start().await;
    let parked = wait_until_parked(&rig, 2).await;
    stop_relay(&rig).await;
    let discard = ["parked", "discard", &parked[&large].position, "--yes"];
    let says = ["is discarded", "1 parked rows of its key stand behind it"];
    assert_command(&rig.relay, &discard, 0, &says).await;
    assert_command(&rig.relay, &discard, relay_exit::WRONG_SETTING, &["no row at"]).await;
    assert_retry_of_all(&rig.relay, 0, &["1 rows are published"]).await;
    assert_published_in_order(&rig, 1).await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn with_the_order_skip_a_row_behind_a_parked_row_is_published_at_once() {
    let mut rig = rig_that_parks("parking_skip").await;
    rig.relay = rig.relay.with_env("OUTBOX_POISON_ORDER", "skip");
    insert_row(&rig, "k1", LARGE_BYTES).await;
    insert_row(&rig, "k1", 10).await;
    rig.start().await;
    assert_published_in_order(&rig, 1).await;
    assert_eq!(wait_until_parked(&rig, 1).await.len(), 1);
    rig.finish().await.expect("a clean end");
}
