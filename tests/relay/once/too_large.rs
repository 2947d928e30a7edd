//! A row that cannot be a record stops the relay, which names the row. Everything before it is published, and nothing from it on is confirmed.

use rig::{Isolation, Rig, relay_exit};

use super::topic_settings::limit_record_bytes;

/// So many good rows come before the row that is too large.
const ROWS_BEFORE: u32 = 30;

/// Writes a row with a payload of about this many bytes. Returns its id.
async fn insert_large(rig: &Rig, bytes: u32) -> String {
    let topic = rig.topic();
    rig.value(&format!(
        "insert into outbox (aggregatetype, aggregateid, type, payload)
         values ('{topic}', 'k1', 'Large', jsonb_build_object('n', nextval('numbers'), 'pad', repeat('x', {bytes}))) returning id"
    ))
    .await
}

/// Starts the relay. Asserts that it stops at a row, that the rows before it are published, and that nothing from the row on is confirmed.
/// `before` is a position between those rows and the row.
async fn assert_stops_at_row(rig: &Rig, before: &str, exit_code: i32, says: &[&str]) {
    rig.relay.start().expect("a start");
    let status = rig.relay.exited(rig::rig::READY_DEADLINE).await.expect("an end");
    let log = rig.relay.log_tail(5);
    assert_eq!(status.code(), Some(exit_code), "{log}");
    for words in says {
        assert!(log.contains(words), "it says `{words}`: {log}");
    }
    let records = rig.records(Isolation::Committed).await.expect("the topic");
    assert_eq!(
        records.len(),
        ROWS_BEFORE as usize,
        "what stands before the row is published, and nothing else"
    );
    let name = rig.name();
    let sql = format!(
        "select confirmed_flush_lsn <= '{before}'::pg_lsn from pg_replication_slots where slot_name = '{name}'"
    );
    assert_eq!(rig.value(&sql).await, "t", "nothing from the row on is confirmed");
}

#[tokio::test]
async fn a_row_larger_than_the_topics_own_limit_is_named_and_goes_once_the_limit_is_raised() {
    let rig = Rig::initialised("too_large_topic").await;
    limit_record_bytes(&rig, 20_000).await;
    rig.insert_each(ROWS_BEFORE).await;
    let before = rig.value("select pg_current_wal_insert_lsn()").await;
    let id = insert_large(&rig, 19_990).await;
    rig.insert_each(10).await;
    let says = [id.as_str(), &rig.topic(), "20000 (max.message.bytes of the topic"];
    assert_stops_at_row(&rig, &before, relay_exit::RECORD_TOO_LARGE, &says).await;
    assert_stops_at_row(&rig, &before, relay_exit::RECORD_TOO_LARGE, &says).await;

    limit_record_bytes(&rig, 40_000).await;
    rig.start().await;
    rig.assert_exactly_once().await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_row_larger_than_the_clients_limit_is_named_and_goes_once_the_limit_is_raised() {
    let mut rig = Rig::initialised("too_large_client").await;
    rig.insert_each(ROWS_BEFORE).await;
    let before = rig.value("select pg_current_wal_insert_lsn()").await;
    let id = insert_large(&rig, 1_010_000).await;
    rig.insert_each(10).await;
    assert_stops_at_row(
        &rig,
        &before,
        relay_exit::RECORD_TOO_LARGE,
        &[&id, &rig.topic(), "1000000 (message.max.bytes"],
    )
    .await;

    rig.relay = rig.relay.with_env("KAFKA_PROPERTIES", "message.max.bytes=1040000");
    rig.start().await;
    rig.assert_exactly_once().await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_limit_that_is_lowered_while_the_relay_runs_is_noticed_and_named() {
    let rig = Rig::initialised("too_large_lowered").await;
    rig.insert_each(ROWS_BEFORE).await;
    rig.start().await;
    rig.assert_exactly_once().await;
    limit_record_bytes(&rig, 20_000).await;
    let id = insert_large(&rig, 30_000).await;
    let status = rig.relay.exited(rig::rig::READY_DEADLINE).await.expect("an end");
    let log = rig.relay.log_tail(5);
    assert_eq!(status.code(), Some(relay_exit::RECORD_TOO_LARGE), "{log}");
    assert!(log.contains(&id) && log.contains("20000"), "{log}");
    limit_record_bytes(&rig, 40_000).await;
    rig.start().await;
    rig.assert_exactly_once().await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn small_rows_go_to_a_topic_with_a_small_limit_however_many_there_are() {
    let rig = Rig::initialised("small_limit").await;
    limit_record_bytes(&rig, 5_000).await;
    rig.start().await;
    rig.insert_together(20_000).await;
    rig.assert_exactly_once().await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_row_without_a_destination_stops_every_start_and_what_stands_before_it_is_published() {
    let rig = Rig::initialised("poison").await;
    rig.sql("alter table outbox alter aggregatetype drop not null").await;
    rig.insert_each(ROWS_BEFORE).await;
    let before = rig.value("select pg_current_wal_insert_lsn()").await;
    rig.sql("insert into outbox (aggregateid, type, payload) values ('k1', 'Poison', '{}')")
        .await;
    rig.insert_each(10).await;
    let says = ["cannot be published", "aggregatetype"];
    for _start in ["first", "second"] {
        assert_stops_at_row(&rig, &before, relay_exit::ROW_REFUSED, &says).await;
    }
    // The relay has ended by itself, and not with 0.
    rig.relay.kill_hard().await;
    rig.finish().await.expect("a clean end");
}
