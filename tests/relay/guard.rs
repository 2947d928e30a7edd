//! A publication that hides rows stops the relay, even if it was set right again before anybody looked.

use std::time::Duration;

use rig::{Rig, Servers, relay_exit, servers};
use stack::{KafkaOptions, eventually};
use std::sync::Arc;

use super::tampering::{
    DEADLINE, assert_ends, kill_and_drop_slot, metric, published_and_stopped, wait_until_confirmed,
};

/// A statement that alters the publication, what is wrong then, and a statement that sets it right again if there is one.
const ALTERATIONS: [(&str, &str, &str); 8] = [
    ("pub_dropped", "drop publication outbox", "it does not exist"),
    (
        "pub_recreated",
        "drop publication outbox; create publication outbox for table outbox with (publish = 'insert', publish_via_partition_root = true)",
        "--accept-publication",
    ),
    (
        "pub_without",
        "create table other (id int); alter publication outbox set table other",
        "is not in it",
    ),
    (
        "pub_readded",
        "create table other (id int); alter publication outbox set table other; alter publication outbox set table outbox",
        "--accept-publication",
    ),
    (
        "pub_filtered",
        "alter publication outbox set table outbox where (aggregateid <> 'k1')",
        "row filter",
    ),
    (
        "pub_columns",
        "alter publication outbox set table outbox (id, aggregatetype, aggregateid, type)",
        "column list",
    ),
    (
        "pub_no_insert",
        "alter publication outbox set (publish = 'update')",
        "does not publish inserts",
    ),
    (
        "pub_and_back",
        "alter publication outbox set (publish = 'update'); alter publication outbox set (publish = 'insert')",
        "--accept-publication",
    ),
];

#[tokio::test]
async fn an_altered_publication_stops_the_relay_at_its_start() {
    for (name, alteration, says) in ALTERATIONS {
        let rig = published_and_stopped(name).await;
        alter(&rig, alteration).await;
        rig.insert_each(2).await;
        rig.assert_stops(relay_exit::PUBLICATION_WRONG, &[says]).await;
        kill_and_drop_slot(&rig).await;
    }
}

#[tokio::test]
async fn an_altered_publication_stops_the_relay_while_it_streams() {
    for (name, alteration, says) in ALTERATIONS {
        let rig = Rig::initialised(&format!("live_{name}")).await;
        rig.start().await;
        rig.insert_each(5).await;
        rig.assert_exactly_once().await;
        wait_until_confirmed(&rig).await;
        let before = rig.value("select pg_current_wal_flush_lsn()").await;
        alter(&rig, alteration).await;
        let after = rig.value("select pg_current_wal_insert_lsn()").await;
        rig.insert_each(2).await;
        assert_ends(&rig, relay_exit::PUBLICATION_WRONG, &[]).await;
        let confirmed = rig.confirmed_lsn().await;
        // The alteration was made between these two positions.
        let order = format!("select '{confirmed}'::pg_lsn < '{after}'::pg_lsn");
        assert_eq!(rig.value(&order).await, "t", "{name}: {before} {confirmed} {after}");
        // The next start stops, too, because of what the alteration has left.
        rig.assert_stops(relay_exit::PUBLICATION_WRONG, &[says]).await;
        kill_and_drop_slot(&rig).await;
    }
}

#[tokio::test]
async fn other_tables_may_come_into_the_publication_and_go() {
    let rig = Rig::initialised("pub_harmless").await;
    rig.start().await;
    rig.sql("create table other (id int)").await;
    rig.sql("alter publication outbox add table other").await;
    rig.sql("insert into other values (1)").await;
    rig.insert_each(3).await;
    rig.sql("alter publication outbox set table outbox").await;
    rig.sql("alter publication outbox set table outbox, other").await;
    rig.sql("alter publication outbox drop table other").await;
    rig.insert_each(3).await;
    rig.assert_exactly_once().await;
    wait_until_confirmed(&rig).await;
    rig.relay.stop().await.expect("a clean end");
    rig.start().await;
    rig.insert_each(3).await;
    rig.assert_exactly_once().await;
    rig.finish().await.expect("an end");
}

#[tokio::test]
async fn while_an_alteration_is_undecided_nothing_is_confirmed_and_a_rollback_lets_it_go_on() {
    let rig = Rig::initialised("pub_undecided").await;
    rig.start().await;
    rig.insert_each(3).await;
    rig.assert_exactly_once().await;
    wait_until_confirmed(&rig).await;
    let altering = rig.connect().await;
    altering
        .batch_execute("begin; savepoint s; alter publication outbox set (publish = 'update')")
        .await
        .expect("an alteration");
    let began = rig.value("select pg_current_wal_insert_lsn()").await;
    rig.insert_each(50).await;
    rig.assert_exactly_once().await;
    // The guard has looked three more times. The age of the confirmed position counts these looks.
    eventually(DEADLINE, "the confirmed position ages", || async {
        metric(&rig, "relay_confirmed_age_seconds")
            .await
            .filter(|age| *age >= 3.0)
    })
    .await;
    let confirmed = rig.confirmed_lsn().await;
    let order = format!("select '{confirmed}'::pg_lsn <= '{began}'::pg_lsn");
    assert_eq!(rig.value(&order).await, "t", "{confirmed} {began}");
    altering.batch_execute("rollback").await.expect("a rollback");
    wait_until_confirmed(&rig).await;
    rig.finish().await.expect("an end");
}

#[tokio::test]
async fn a_guard_that_loses_its_session_takes_another_and_the_relay_goes_on() {
    let rig = Rig::initialised("guard_session").await;
    rig.start().await;
    rig.insert_each(3).await;
    rig.assert_exactly_once().await;
    wait_until_confirmed(&rig).await;
    let name = rig.name();
    let ended = eventually(DEADLINE, "the guard's session is there", || async {
        let rows = rig
            .sql(&format!(
                "select pg_terminate_backend(pid) from pg_stat_activity
                 where datname = '{name}' and application_name = 'outbox-relay' and backend_type = 'client backend'"
            ))
            .await;
        (!rows.is_empty()).then_some(rows.len())
    })
    .await;
    assert_eq!(ended, 1, "the guard has one session");
    rig.insert_each(3).await;
    rig.assert_exactly_once().await;
    wait_until_confirmed(&rig).await;
    assert_eq!(
        metric(&rig, "relay_restarts_total").await.unwrap_or(0.0),
        0.0,
        "the stream was not touched"
    );
    rig.finish().await.expect("an end");
}

#[tokio::test]
async fn the_wal_that_the_slot_retains_is_measured_and_danger_shows_in_readiness() {
    let options = servers::postgres_options()
        .setting("max_slot_wal_keep_size", "256MB")
        .setting("max_wal_size", "2GB");
    let servers = Servers::start(options, KafkaOptions::default()).await.expect("servers");
    let rig = Rig::on(Arc::new(servers), "retention").await;
    rig.init(&[]).await;
    rig.start().await;
    rig.insert_each(3).await;
    rig.assert_exactly_once().await;
    let safe = eventually(DEADLINE, "the guard has looked", || async {
        metric(&rig, "relay_slot_safe_bytes").await
    })
    .await;
    assert!((1.0..=300e6).contains(&safe), "{safe}");
    assert!(
        metric(&rig, "relay_slot_retained_bytes")
            .await
            .is_some_and(|bytes| bytes < 64e6)
    );
    // An open transaction keeps the slot's restart position where it is.
    let open = rig.connect().await;
    open.batch_execute("begin; select pg_current_xact_id()")
        .await
        .expect("a transaction");
    rig.sql("create table filler (t text)").await;
    let reasons = eventually(DEADLINE, "readiness tells of the danger", || async {
        // Each step writes less than the margin, and the guard looks after each. So it sees the danger before the slot is lost.
        let before = metric(&rig, "relay_slot_safe_bytes").await;
        rig.sql("insert into filler select repeat('x', 1000) from generate_series(1, 25000)")
            .await;
        eventually(DEADLINE, "the guard has looked again", || async {
            (metric(&rig, "relay_slot_safe_bytes").await != before).then_some(())
        })
        .await;
        match rig.relay.readiness(&reqwest::Client::new()).await {
            Ok(stack::program::Readiness::NotReady(reasons)) if reasons.contains("\"wal\"") => Some(reasons),
            _ => None,
        }
    })
    .await;
    assert!(reasons.contains("max_slot_wal_keep_size"), "{reasons}");
    open.batch_execute("commit").await.expect("an end");
    rig.relay
        .wait_ready(Duration::from_secs(90))
        .await
        .expect("the danger is over");
    rig.finish().await.expect("an end");
}

/// Runs the statements one by one, each in a transaction of its own.
async fn alter(rig: &Rig, alteration: &str) {
    for statement in alteration.split("; ") {
        rig.sql(statement).await;
    }
}
