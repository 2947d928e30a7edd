//! The guard's session is with another server than the stream. What it sees there says nothing about the publication of the stream.

use std::time::Duration;

use rig::{MovingAddress, Rig, relay_exit};
use stack::{Postgres, eventually, eventually_ok};

use super::moving_address::{insert_each_on, with_address};
use crate::relay::tampering::{DEADLINE, wait_until_confirmed};

const GUARDS_SESSIONS: &str = "select pg_terminate_backend(pid) from pg_stat_activity
     where datname = current_database() and application_name = 'outbox-relay' and backend_type = 'client backend'";

/// A rig whose relay streams, and a copy of its server, whose WAL is further.
async fn beside_a_copy(name: &str, bugs: Option<&str>) -> (Rig, MovingAddress, Postgres) {
    let (mut rig, address) = with_address(name).await;
    rig.relay = rig.relay.with_env("LOG", "outbox_relay=debug");
    if let Some(bugs) = bugs {
        rig.relay = rig
            .relay
            .with_binary("outbox-relay-faults")
            .with_env("OUTBOX_RELAY_BUG", bugs);
    }
    rig.init(&[]).await;
    rig.servers.postgres.stop_fast().await.expect("an end");
    let copy = rig.servers.postgres.copy().await.expect("a copy");
    rig.servers.postgres.start_again().await.expect("a start");
    insert_each_on(&copy, &rig, 400).await;
    rig.start().await;
    rig.insert_each(5).await;
    rig.assert_exactly_once().await;
    wait_until_confirmed(&rig).await;
    (rig, address, copy)
}

/// Makes the guard open its next session on the copy, and hides five rows of the original. Returns the position after these rows.
async fn hide_rows_behind_the_guards_back(rig: &Rig, address: &MovingAddress, copy: &Postgres) -> String {
    address.move_to(copy.port());
    eventually(DEADLINE, "the guard's session is there", || async {
        (!rig.sql(GUARDS_SESSIONS).await.is_empty()).then_some(())
    })
    .await;
    let publication = rig.value("select pubname from pg_publication").await;
    rig.sql(&format!("alter publication {publication} drop table outbox"))
        .await;
    rig.insert_each(5).await;
    rig.value("select pg_current_wal_insert_lsn()").await
}

async fn is_confirmed(rig: &Rig, lsn: &str) -> bool {
    // This is sent to the relay, so that there is something to confirm.
    rig.sql("select pg_logical_emit_message(true, 'test', 'beyond')").await;
    rig.value(&format!(
        "select confirmed_flush_lsn >= '{lsn}' from pg_replication_slots where slot_name = '{}'",
        rig.name()
    ))
    .await
        == "t"
}

/// Asserts that nothing is confirmed that comes after the alteration, and that the relay says these words.
async fn assert_not_confirmed(rig: &Rig, hidden: &str, words: &str) {
    eventually(DEADLINE, words, || {
        std::future::ready(rig.relay.log_text().contains(words).then_some(()))
    })
    .await;
    for _ in 0..30 {
        assert!(!is_confirmed(rig, hidden).await, "{}", rig.relay.log_tail(20));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_guard_that_reaches_another_server_ends_the_stream_and_the_alteration_is_found() {
    let (rig, address, copy) = beside_a_copy("guard_moved", None).await;
    let hidden = hide_rows_behind_the_guards_back(&rig, &address, &copy).await;
    assert_not_confirmed(&rig, &hidden, "leads to another server").await;
    rig.relay.kill_hard().await;
    address.move_to(rig.servers.postgres.port());
    rig.assert_stops(relay_exit::PUBLICATION_WRONG, &["is not in it"]).await;
}

#[tokio::test]
async fn a_slot_that_does_not_stream_to_this_relay_verifies_nothing() {
    let (rig, address, copy) = beside_a_copy("guard_moved_asked", Some("TrustAnyServer")).await;
    let hidden = hide_rows_behind_the_guards_back(&rig, &address, &copy).await;
    assert_not_confirmed(&rig, &hidden, "does not stream to this relay").await;
    eventually_ok(DEADLINE, "/readyz says it", || async {
        let answer = reqwest::get(rig.relay.url("/readyz")).await?;
        let (status, body) = (answer.status().as_u16(), answer.text().await?);
        anyhow::ensure!(
            status == 503 && body.contains("does not stream to this relay"),
            "{status} {body}"
        );
        Ok(())
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}"));
    rig.relay.kill_hard().await;
}

#[tokio::test]
async fn without_both_questions_rows_are_confirmed_that_no_stream_has() {
    let (rig, address, copy) = beside_a_copy("guard_moved_planted", Some("TrustAnyServer,GuardTrustsAnySlot")).await;
    let hidden = hide_rows_behind_the_guards_back(&rig, &address, &copy).await;
    eventually(DEADLINE, "hidden rows are confirmed", || async {
        is_confirmed(&rig, &hidden).await.then_some(())
    })
    .await;
    rig.relay.kill_hard().await;
}
