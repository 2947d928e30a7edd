//! The address leads to another server than before. What the relay checks on one server says nothing about the stream of another.

use std::sync::Arc;

use rig::servers::postgres_options;
use rig::{Isolation, Ledger, MovingAddress, Rig, Servers, relay_exit};
use stack::{KafkaOptions, Postgres, eventually, eventually_ok};

use crate::relay::load::metric;
use crate::relay::tampering::{DEADLINE, assert_ends, ids, kill_and_drop_slot, publish_and_stop, wait_until_confirmed};
use crate::relay::ways_out::run_recover;

/// A rig whose relay reaches its server by an address that can move.
pub(super) async fn with_address(name: &str) -> (Rig, MovingAddress) {
    let servers = Servers::start(postgres_options(), KafkaOptions::default()).await;
    let servers = Arc::new(servers.unwrap_or_else(|err| panic!("the servers do not start: {err:#}")));
    let mut rig = Rig::on(servers, name).await;
    let address = MovingAddress::to(rig.servers.postgres.port())
        .await
        .expect("an address");
    let url = format!("postgres://postgres@127.0.0.1:{}/{name}", address.port());
    rig.relay = rig.relay.with_env("DATABASE_URL", &url);
    (rig, address)
}

pub(super) async fn insert_each_on(postgres: &Postgres, rig: &Rig, count: u32) {
    let insert = rig.insert_statement(1, 7);
    let sql = format!("do $$ begin for i in 1..{count} loop {insert}; commit; end loop; end $$");
    postgres.query(rig.name(), &sql).await.expect("rows");
}

/// Starts the relay. The sessions of its start lead to the servers on `ports`, one after the other, and all later ones to the original. Asserts that
/// the relay publishes the rows of the original once, and nothing of the copy.
async fn starts_with_the_original(rig: &Rig, address: &MovingAddress, ports: &[u16]) {
    let original = rig.servers.postgres.port();
    address.move_after(ports, original);
    let logged = rig.relay.log_text().len();
    rig.relay.start().expect("a start");
    eventually(DEADLINE, "the relay begins again", || async {
        (metric(&rig.relay, "relay_restarts_total").await? >= 1.0).then_some(())
    })
    .await;
    let log = rig.relay.log_text()[logged..].to_owned();
    assert!(log.contains("leads to another server"), "{ports:?}: {log}");
    rig.insert_each(20).await;
    rig.assert_exactly_once().await;
    wait_until_confirmed(rig).await;
    rig.relay.stop().await.expect("a clean end");
    rig.wait_until_slot_is_free().await;
}

#[tokio::test]
async fn a_start_whose_sessions_reach_two_servers_streams_from_neither() {
    let (rig, address) = with_address("moving_start").await;
    rig.init(&[]).await;
    publish_and_stop(&rig).await;
    rig.servers.postgres.stop_fast().await.expect("an end");
    let copy = rig.servers.postgres.copy().await.expect("a copy");
    rig.servers.postgres.start_again().await.expect("a start");
    let (original, copied) = (rig.servers.postgres.port(), copy.port());
    insert_each_on(&copy, &rig, 40).await;
    rig.insert_each(20).await;
    // The stream would come from the copy, and all questions would go to the original.
    starts_with_the_original(&rig, &address, &[copied]).await;
    // The stream comes from the original, and the state of the slot would be read on the copy.
    starts_with_the_original(&rig, &address, &[original, copied]).await;
    // The other sessions, such as the guard's, would be with the copy.
    starts_with_the_original(&rig, &address, &[original, original, copied, copied, copied]).await;
    the_copys_relay_stops(&rig, &copy).await;
    rig.relay.stop().await.expect("a clean end");
    rig.wait_until_slot_is_free().await;
    a_slot_that_lost_rows_is_not_covered_up_by_the_copys(&rig, &address, &copy).await;
    without_the_question_the_copys_rows_are_published(&rig, &address, &copy).await;
    rig.wait_until_slot_is_free().await;
    the_copy_is_accepted(&rig, &copy).await;
    without_the_look_at_who_wrote_the_checkpoint_rows_are_skipped(&rig, &copy).await;
    kill_and_drop_slot(&rig).await;
}

/// With the planted bug, all questions go to the original, and the copy's rows are published.
async fn without_the_question_the_copys_rows_are_published(rig: &Rig, address: &MovingAddress, copy: &Postgres) {
    insert_each_on(copy, rig, 40).await;
    let relay = rig
        .relay
        .with_binary("outbox-relay-faults")
        .env("OUTBOX_RELAY_BUG", "TrustAnyServer,TrustAnyReader");
    address.move_after(&[copy.port()], rig.servers.postgres.port());
    relay.start().expect("a start");
    eventually(
        DEADLINE,
        "rows that the original does not have are published",
        || async {
            let records = rig.records(Isolation::Committed).await.ok()?;
            let ledger = Ledger::compare(&rig.rows().await, &records);
            (!ledger.invented.is_empty()).then_some(())
        },
    )
    .await;
    relay.kill_hard().await;
}

/// The original's slot was made anew, and rows were written before that. Only the first session of a start is with the original. The slot's state is
/// read on the copy, where the slot is whole and the WAL is further.
async fn a_slot_that_lost_rows_is_not_covered_up_by_the_copys(rig: &Rig, address: &MovingAddress, copy: &Postgres) {
    let original = rig.servers.postgres.port();
    rig.insert_each(10).await;
    let name = rig.name();
    rig.sql(&format!("select pg_drop_replication_slot('{name}')")).await;
    rig.sql(&format!(
        "select pg_create_logical_replication_slot('{name}', 'pgoutput')"
    ))
    .await;
    address.move_after(&[original, copy.port()], original);
    let logged = rig.relay.log_text().len();
    rig.relay.start().expect("a start");
    assert_ends(rig, relay_exit::SLOT_AHEAD, &[]).await;
    let log = rig.relay.log_text()[logged..].to_owned();
    assert!(log.contains("leads to another server"), "{log}");

    rig.wait_until_slot_is_free().await;
    let faulty = rig
        .relay
        .with_binary("outbox-relay-faults")
        .env("OUTBOX_RELAY_BUG", "TrustAnyServer,TrustAnyReader,TrustAnyCopy");
    address.move_after(&[original, copy.port()], original);
    faulty.start().expect("a start");
    rig.insert_each(1).await;
    eventually(DEADLINE, "a row is published before ten that are lost", || async {
        let records = rig.records(Isolation::Committed).await.ok()?;
        let ledger = Ledger::compare(&rig.rows().await, &records);
        (ledger.lost.len() == 10).then_some(())
    })
    .await;
    faulty.kill_hard().await;
    rig.wait_until_slot_is_free().await;
    run_recover(rig, &["--compare-anyway"]).await;
}

/// A relay with the same settings runs on the copy. Identifier, timeline, slot and checkpoint all match.
async fn the_copys_relay_stops(rig: &Rig, copy: &Postgres) {
    let since_start = "select extract(epoch from clock_timestamp() - pg_postmaster_start_time()) > 11";
    eventually(
        DEADLINE,
        "the copy has run for longer than clocks may differ",
        || async {
            let rows = copy.query("postgres", since_start).await.expect("the copy");
            (rows[0][0].as_deref() == Some("t")).then_some(())
        },
    )
    .await;
    rig.start().await;
    rig.insert_each(5).await;
    rig.assert_exactly_once().await;
    let others = rig
        .another_relay("copys")
        .with_env("DATABASE_URL", &copy.url("postgres", rig.name()));
    // At first the copy's WAL ends before the checkpoint, and then after it.
    for rows in [0, 3_000] {
        insert_each_on(copy, rig, rows).await;
        let logged = others.log_text().len();
        others.start().expect("a start");
        let status = others.exited(DEADLINE).await.unwrap_or_else(|err| panic!("{err:#}"));
        let log = others.log_text()[logged..].to_owned();
        assert_eq!(status.code(), Some(relay_exit::PUBLISHED_BY_ANOTHER), "{log}");
        assert!(log.contains("a relay of another server publishes as"), "{log}");
        rig.insert_each(5).await;
        rig.assert_exactly_once().await;
    }
}

/// By now the copy's relay has written the checkpoint. The original's relay stops. With the planted bug it goes on, and skips its own rows below that
/// checkpoint.
async fn without_the_look_at_who_wrote_the_checkpoint_rows_are_skipped(rig: &Rig, copy: &Postgres) {
    rig.insert_each(5).await;
    let end = copy.query("postgres", "select pg_current_wal_lsn()").await;
    let end = end.expect("the copy")[0][0].clone().expect("an end");
    let is_ahead = format!("select pg_current_wal_lsn() > '{end}'::pg_lsn");
    while rig.value(&is_ahead).await != "t" {
        rig.sql("select pg_switch_wal()").await;
        rig.sql("create table if not exists filler (n int); insert into filler values (1)")
            .await;
    }
    rig.assert_stops(
        relay_exit::PUBLISHED_BY_ANOTHER,
        &["a relay of another server publishes as"],
    )
    .await;
    rig.wait_until_slot_is_free().await;
    let faulty = rig
        .relay
        .with_binary("outbox-relay-faults")
        .env("OUTBOX_RELAY_BUG", "TrustAnyCopy");
    faulty.start().expect("a start");
    rig.insert_each(1).await;
    let newest = ids(rig).await.pop().expect("a row");
    eventually(
        DEADLINE,
        "the newest row is published, and those before are skipped",
        || async {
            let records = rig.records(Isolation::Committed).await.ok()?;
            let ledger = Ledger::compare(&rig.rows().await, &records);
            (ledger.lost.len() == 5 && !ledger.lost.contains(&newest)).then_some(())
        },
    )
    .await;
    faulty.kill_hard().await;
    rig.wait_until_slot_is_free().await;
}

/// The operator decides that the copy is the right server, and its relay goes on.
async fn the_copy_is_accepted(rig: &Rig, copy: &Postgres) {
    let accepted = rig
        .another_relay("accepted")
        .with_env("DATABASE_URL", &copy.url("postgres", rig.name()));
    let done = accepted.run(&["init", "--accept-server"]).await;
    done.unwrap_or_else(|err| panic!("{err:#}"));
    accepted.start().expect("a start");
    insert_each_on(copy, rig, 5).await;
    let sql = "select id from outbox order by created_at desc limit 5";
    let newest = copy.query(rig.name(), sql).await.expect("the copy's rows");
    let newest: Vec<String> = newest.into_iter().filter_map(|mut row| row.remove(0)).collect();
    let published = eventually_ok(DEADLINE, "the copy's new rows are published once", || async {
        let records = rig.records(Isolation::Committed).await?;
        for id in &newest {
            let times = records
                .iter()
                .filter(|record| record.header("id") == Some(id.as_str()))
                .count();
            anyhow::ensure!(times == 1, "{id}: {times} times");
        }
        Ok(())
    });
    published.await.unwrap_or_else(|err| panic!("{err:#}"));
    accepted.stop().await.expect("a clean end");
}

/// A relay streams from a primary. A standby is promoted, and the address leads to it. The former primary gets 30 more rows, and the new one 50.
async fn promoted_while_the_primary_lives(name: &str, bugs: Option<&str>) -> (Rig, Postgres) {
    let (mut rig, address) = with_address(name).await;
    if let Some(bugs) = bugs {
        rig.relay = rig
            .relay
            .with_binary("outbox-relay-faults")
            .with_env("OUTBOX_RELAY_BUG", bugs);
    }
    let standby = rig.servers.postgres.standby("standby").await.expect("a standby");
    rig.init(&["--failover"]).await;
    rig.start().await;
    rig.insert_each(20).await;
    rig.assert_exactly_once().await;
    let copy_of_the_slot =
        format!("select 1 from pg_replication_slots where slot_name = '{name}' and synced and not temporary");
    eventually(DEADLINE, "the standby has the slot", || async {
        rig.sql("select pg_log_standby_snapshot()").await;
        let found = standby.query("postgres", &copy_of_the_slot).await.expect("the standby");
        (!found.is_empty()).then_some(())
    })
    .await;
    standby.promote().await.expect("a promotion");
    address.move_to(standby.port());
    // The former primary still accepts rows. The relay publishes them until it notices.
    rig.insert_each(30).await;
    insert_each_on(&standby, &rig, 50).await;
    (rig, standby)
}

#[tokio::test]
async fn an_address_that_moves_to_a_promoted_standby_ends_the_stream_from_the_former_primary() {
    let (rig, _standby) = promoted_while_the_primary_lives("moving_live", None).await;
    assert_ends(
        &rig,
        relay_exit::OTHER_TIMELINE,
        &["leads to another server", "left timeline 1 at"],
    )
    .await;
}

#[tokio::test]
async fn without_the_question_rows_of_the_former_primary_go_on_being_published_and_confirmed() {
    let bugs = "TrustAnyServer,GuardTrustsAnySlot";
    let (rig, standby) = promoted_while_the_primary_lives("moving_live_planted", Some(bugs)).await;
    rig.assert_exactly_once().await;
    wait_until_confirmed(&rig).await;
    let records = rig.records(Isolation::Committed).await.expect("records");
    let ledger = Ledger::compare(&rig.rows_on(&standby).await, &records);
    assert!(!ledger.invented.is_empty() && ledger.lost.len() == 50, "{ledger}");
    rig.relay.kill_hard().await;
}
