//! A publication FOR ALL TABLES or FOR TABLES IN SCHEMA has no entry of its own for the outbox that a change would alter. So the relay watches the
//! table itself.

use rig::{Rig, relay_exit};
use stack::eventually;

use super::tampering::{DEADLINE, assert_ends, kill_and_drop_slot, wait_until_confirmed};

/// Debezium makes such a publication by default.
const ALL_TABLES: &str = "for all tables";
const SCHEMA: &str = "for tables in schema public";

/// Changes of the outbox table after which no stream has the rows that are written to it.
const ALTERATIONS: [(&str, &str, &str); 6] = [
    (
        "all_copy",
        ALL_TABLES,
        "alter table outbox rename to former; create unlogged table outbox (like former including all)",
    ),
    ("all_unlogged", ALL_TABLES, "alter table outbox set unlogged"),
    (
        "all_view",
        ALL_TABLES,
        "alter table outbox rename to former; create view outbox as select * from former",
    ),
    (
        "all_days",
        ALL_TABLES,
        "alter table outbox rename to former; create table outbox (like former including defaults) partition by range (created_at); create table every_day partition of outbox default",
    ),
    ("schema_unlogged", SCHEMA, "alter table outbox set unlogged"),
    (
        "schema_view",
        SCHEMA,
        "alter table outbox rename to former; create view outbox as select * from former",
    ),
];

async fn published_by(name: &str, publication: &str) -> Rig {
    published(Rig::new(name).await, publication).await
}

async fn published(rig: Rig, publication: &str) -> Rig {
    rig.sql(&format!("create publication outbox {publication}")).await;
    rig.init(&[]).await;
    starts_publishing(&rig).await;
    rig
}

async fn starts_publishing(rig: &Rig) {
    rig.start().await;
    rig.insert_each(5).await;
    rig.assert_exactly_once().await;
    wait_until_confirmed(rig).await;
}

/// Runs the statements one by one, each in a transaction of its own.
async fn alter(rig: &Rig, alteration: &str) {
    for statement in alteration.split("; ") {
        rig.sql(statement).await;
    }
}

/// Makes the alteration. Asserts that it ends the running relay, stops the next one, and that nothing is confirmed that was written after it.
async fn assert_stopped_by(rig: &Rig, alteration: &str) {
    alter(rig, alteration).await;
    let after = rig.value("select pg_current_wal_insert_lsn()").await;
    rig.insert_each(50).await;
    assert_ends(rig, relay_exit::PUBLICATION_WRONG, &[]).await;
    let confirmed = rig.confirmed_lsn().await;
    let order = format!("select '{confirmed}'::pg_lsn < '{after}'::pg_lsn");
    assert_eq!(rig.value(&order).await, "t", "{}: {confirmed} {after}", rig.name());
    rig.assert_stops(relay_exit::PUBLICATION_WRONG, &[]).await;
    kill_and_drop_slot(rig).await;
}

#[tokio::test]
async fn an_outbox_that_leaves_the_stream_stops_the_relay_while_it_streams_and_at_its_start() {
    for (name, publication, alteration) in ALTERATIONS {
        let rig = published_by(name, publication).await;
        assert_stopped_by(&rig, alteration).await;
    }
}

#[tokio::test]
async fn a_partition_that_is_unlogged_stops_the_relay_while_it_streams_and_at_its_start() {
    for (name, alteration) in [
        ("day_unlogged", "alter table day set unlogged"),
        (
            "day_attached",
            "alter table outbox detach partition day; create unlogged table today (like outbox including defaults); alter table outbox attach partition today default",
        ),
    ] {
        let rig = Rig::new(name).await;
        for statement in [
            "drop table outbox",
            "create table outbox (id uuid default gen_random_uuid(), aggregatetype text not null, aggregateid text not null, type text not null, payload jsonb, created_at timestamptz not null default clock_timestamp()) partition by range (created_at)",
            "create table day partition of outbox default",
        ] {
            rig.sql(statement).await;
        }
        rig.init(&[]).await;
        starts_publishing(&rig).await;
        assert_stopped_by(&rig, alteration).await;
    }
}

#[tokio::test]
async fn without_the_look_at_the_table_rows_are_confirmed_that_no_stream_has() {
    let mut rig = Rig::new("all_planted").await;
    rig.relay = rig
        .relay
        .with_binary("outbox-relay-faults")
        .env("OUTBOX_RELAY_BUG", "TrustAnyTable");
    let rig = published(rig, ALL_TABLES).await;
    rig.sql("alter table outbox set unlogged").await;
    rig.insert_each(5).await;
    let after = rig.value("select pg_switch_wal()").await;
    eventually(DEADLINE, "what is lost is confirmed", || async {
        let order = format!("select '{}'::pg_lsn >= '{after}'::pg_lsn", rig.confirmed_lsn().await);
        (rig.value(&order).await == "t").then_some(())
    })
    .await;
    rig.relay.kill_hard().await;
    kill_and_drop_slot(&rig).await;
}

#[tokio::test]
async fn what_takes_no_row_out_of_the_stream_does_not_stop_the_relay() {
    let rig = published_by("all_harmless", ALL_TABLES).await;
    for statement in [
        "create role all_harmless_reader",
        "grant select on outbox to all_harmless_reader",
        "create index on outbox (created_at)",
        "alter table outbox add column note text",
        "alter table outbox set (fillfactor = 90)",
        "vacuum full outbox",
        "analyze outbox",
        "create table another (id int)",
        "insert into another values (1)",
    ] {
        rig.sql(statement).await;
        rig.insert_each(2).await;
    }
    rig.assert_exactly_once().await;
    wait_until_confirmed(&rig).await;
    rig.relay.stop().await.expect("a clean end");
    rig.start().await;
    rig.insert_each(2).await;
    rig.assert_exactly_once().await;
    rig.finish().await.expect("an end");
}

/// Renames the outbox, lets the application write through a view that has the outbox' name, and renames the outbox back. No relay looks meanwhile.
async fn renamed_while_no_relay_runs(rig: &Rig) {
    rig.relay.stop().await.expect("a clean end");
    rig.wait_until_slot_is_free().await;
    alter(
        rig,
        "alter table outbox rename to former; create view outbox as select * from former",
    )
    .await;
    rig.insert_each(5).await;
    alter(rig, "drop view outbox; alter table former rename to outbox").await;
    rig.insert_each(2).await;
}

#[tokio::test]
async fn rows_of_a_time_when_the_outbox_had_another_name_are_no_other_tables() {
    for (name, publication) in [("renamed_all", ALL_TABLES), ("renamed_alone", "for table outbox")] {
        let rig = published_by(name, publication).await;
        renamed_while_no_relay_runs(&rig).await;
        let says = ["was named public.former", "`outbox-relay recover --compare-anyway`"];
        rig.assert_stops(relay_exit::PUBLICATION_WRONG, &says).await;
        super::ways_out::run_recover(&rig, &["--compare-anyway"]).await;
        assert_eq!(super::ways_out::assert_goes_on(&rig).await.rows, 15);
    }
}

#[tokio::test]
async fn where_the_outbox_is_known_by_its_name_alone_rows_of_another_name_are_lost() {
    let mut rig = Rig::new("renamed_planted").await;
    rig.relay = rig
        .relay
        .with_binary("outbox-relay-faults")
        .env("OUTBOX_RELAY_BUG", "KnowOutboxByName");
    let rig = published(rig, ALL_TABLES).await;
    renamed_while_no_relay_runs(&rig).await;
    rig.start().await;
    wait_until_confirmed(&rig).await;
    let ledger = rig.ledger(rig::Isolation::Committed).await.expect("a ledger");
    assert_eq!((ledger.lost.len(), ledger.rows), (5, 12), "{ledger}");
    rig.relay.stop().await.expect("a clean end");
    kill_and_drop_slot(&rig).await;
}
