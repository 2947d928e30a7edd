//! Relays and commands that die while they park or retry. Afterwards each row is either published or parked, and none is both.

use std::collections::BTreeMap;

use rig::rig::{ARRIVAL_DEADLINE, READY_DEADLINE};
use rig::{Rig, relay_exit};
use stack::{Program, eventually};

use super::{
    LARGE_BYTES, ParkedRow, assert_command, assert_published_in_order, assert_retry_of_all, committed_records,
    insert_row, limit_record_bytes, read_parked, rig_that_parks, stop_relay, wait_until_parked,
};
use crate::relay::once::topic_settings::assert_ends;

/// What a relay's successor does about the cause of the poison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Stays,
    /// The cause is mended after the death, so that a row that was not parked by then is published.
    IsMended,
}

/// Runs a relay that dies at the failpoint `point`, then its successor until every row is published or parked. Returns whether each row is
/// exactly one of the two.
async fn each_row_is_published_or_parked_after_a_death(name: &str, point: &str, bug: &str, cause: Cause) -> bool {
    let rig = rig_that_parks(name).await;
    let relay = dying_at(&rig, point)
        .env(
            "KAFKA_PROPERTIES",
            "transaction.timeout.ms=2000\nmessage.timeout.ms=1500\nsocket.timeout.ms=2000",
        )
        .env("OUTBOX_RELAY_BUG", bug);
    insert_twelve_rows_with_a_poison_row(&rig).await;
    let logged = relay.log_text().len();
    relay.start().expect("a start");
    assert_ends(&relay, logged, relay_exit::FAILPOINT, &[]).await;
    if cause == Cause::IsMended {
        limit_record_bytes(&rig, 60_000).await;
    }
    relay.start().expect("a start");
    let rows = rig.rows().await.len();
    let (mut published, parked) = wait_until_published_or_parked(&rig, rows).await;
    relay.stop().await.expect("a clean end");
    let total = published.len() + parked.len();
    published.sort();
    published.dedup();
    let in_both = published.iter().any(|id| parked.contains_key(id));
    rig.finish().await.expect("a clean end");
    total == rows && published.len() + parked.len() == rows && !in_both
}

/// The rig's relay as a program with failpoints, which dies the first time that it comes to `point`.
fn dying_at(rig: &Rig, point: &str) -> Program {
    rig.relay
        .with_binary("outbox-relay-faults")
        .env("OUTBOX_RELAY_FAILPOINT", &format!("{point}=exit@1"))
        .env(
            "OUTBOX_RELAY_FAILPOINT_HITS",
            &rig.logs().join("hits").to_string_lossy(),
        )
}

/// Writes twelve rows of three keys in one transaction. The fourth row is poison.
async fn insert_twelve_rows_with_a_poison_row(rig: &Rig) {
    let topic = rig.topic();
    rig.sql(&format!(
        "insert into outbox (aggregatetype, aggregateid, type, payload)
         select '{topic}', 'k' || n % 3, 'Some', jsonb_build_object('n', n, 'pad', repeat('x', case when n = 4 then {LARGE_BYTES} else 10 end))
         from (select nextval('numbers') as n from generate_series(1, 12)) as numbered"
    ))
    .await;
}

/// Waits until so many rows are published or parked. Returns the ids of the published rows, and the parked rows.
async fn wait_until_published_or_parked(rig: &Rig, rows: usize) -> (Vec<String>, BTreeMap<String, ParkedRow>) {
    eventually(READY_DEADLINE, "every row is somewhere", || async {
        let published: Vec<String> = committed_records(rig)
            .await
            .iter()
            .filter_map(|record| record.header("id").map(str::to_owned))
            .collect();
        let parked = read_parked(rig).await;
        (published.len() + parked.len() >= rows).then_some((published, parked))
    })
    .await
}

#[tokio::test]
async fn a_relay_that_dies_while_it_parks_leaves_each_row_published_or_parked() {
    let points = ["park.before", "park.sent", "commit.before", "commit.after"];
    let runs = points.map(|point| async move {
        let name = format!("parking_{}", point.replace('.', "_"));
        assert!(
            each_row_is_published_or_parked_after_a_death(&name, point, "", Cause::Stays).await,
            "{point}"
        );
        let name = format!("{name}_mended");
        assert!(
            each_row_is_published_or_parked_after_a_death(&name, point, "", Cause::IsMended).await,
            "{point}, mended"
        );
    });
    futures_util::future::join_all(runs).await;
}

#[tokio::test]
async fn parking_outside_of_the_transaction_is_caught() {
    let (name, bug) = ("parking_bug_outside", "ParkOutsideTransaction");
    assert!(!each_row_is_published_or_parked_after_a_death(name, "park.sent", bug, Cause::IsMended).await);
}

#[tokio::test]
async fn forgetting_the_parked_keys_is_caught() {
    // A right relay parks the third row of the key as well. With the bug it publishes that row.
    restart_with_two_parked("parking_forget_3", "", 3, 1).await;
    restart_with_two_parked("parking_forget_2", "ForgetParkedKeys", 2, 2).await;
}

/// Restarts a relay that has parked two rows of `k1`, and writes one more row of `k1` and one of another key. Asserts how many rows are parked and
/// published then.
async fn restart_with_two_parked(name: &str, bug: &str, parked: usize, published: usize) {
    let rig = rig_that_parks(name).await;
    let relay = rig
        .relay
        .with_binary("outbox-relay-faults")
        .env("OUTBOX_RELAY_BUG", bug);
    insert_row(&rig, "k1", LARGE_BYTES).await;
    insert_row(&rig, "k1", 10).await;
    relay.start().expect("a start");
    wait_until_parked(&rig, 2).await;
    relay.stop().await.expect("a clean end");
    relay.start().expect("a start");
    insert_row(&rig, "k1", 10).await;
    insert_row(&rig, "k2", 10).await;
    eventually(ARRIVAL_DEADLINE, "the row of another key is published", || async {
        (committed_records(&rig).await.len() == published).then_some(())
    })
    .await;
    assert_eq!(wait_until_parked(&rig, parked).await.len(), parked);
    relay.stop().await.expect("a clean end");
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_retry_that_dies_leaves_each_row_published_or_parked() {
    for (point, left_for_the_next) in [
        ("commit.before", "2 rows are published"),
        ("commit.after", "0 rows are published"),
    ] {
        let rig = rig_that_parks(&format!("parking_retry_{}", point.replace('.', "_"))).await;
        insert_row(&rig, "k1", LARGE_BYTES).await;
        insert_row(&rig, "k1", 10).await;
        rig.start().await;
        wait_until_parked(&rig, 2).await;
        stop_relay(&rig).await;
        limit_record_bytes(&rig, 60_000).await;
        let dying = dying_at(&rig, point);
        assert_command(&dying, &["parked", "retry", "--all"], relay_exit::FAILPOINT, &[]).await;
        rig.wait_until_slot_is_free().await;
        assert_retry_of_all(&rig.relay, 0, &[left_for_the_next]).await;
        assert_published_in_order(&rig, 2).await;
        assert_eq!(read_parked(&rig).await.len(), 0);
        rig.finish().await.expect("a clean end");
    }
}
