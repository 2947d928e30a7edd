//! `init --adopt-slot` takes over a slot that somebody else has made.

use rig::{Rig, relay_exit};
use rustix::process::Signal;

use super::tampering::{assert_refused, ids, times_published};

const PUBLICATION: &str =
    "create publication outbox for table outbox with (publish = 'insert', publish_via_partition_root = true)";

#[tokio::test]
async fn an_adopted_slot_is_continued_from_its_confirmed_position() {
    let rig = Rig::new("adopted").await;
    rig.sql(PUBLICATION).await;
    rig.insert_each(3).await;
    make_slot(&rig).await;
    rig.insert_each(2).await;
    // The first owner of the slot has read these two rows, and no more.
    let name = rig.name();
    rig.sql(&format!(
        "select pg_logical_slot_get_binary_changes('{name}', null, null, 'proto_version', '1', 'publication_names', 'outbox')"
    ))
    .await;
    rig.insert_each(4).await;
    assert_refused(&rig, &[], relay_exit::CHECKPOINT_MISSING, "--adopt-slot").await;
    rig.init(&["--adopt-slot"]).await;
    rig.start().await;
    rig.insert_each(3).await;
    let ids = ids(&rig).await;
    let times = times_published(&rig, &ids, &ids[5..]).await;
    assert_eq!(
        times,
        [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1],
        "nothing before, everything after, once"
    );
    rig.finish().await.expect("an end");
}

#[tokio::test]
async fn a_physical_slot_is_refused_by_name() {
    let rig = Rig::new("adopt_plugin").await;
    rig.sql(PUBLICATION).await;
    let name = rig.name();
    rig.sql(&format!("select pg_create_physical_replication_slot('{name}')"))
        .await;
    assert_refused(&rig, &["--adopt-slot"], relay_exit::SLOT_UNUSABLE, "plugin physical").await;
    rig.finish().await.expect("an end");
}

#[tokio::test]
async fn a_slot_of_another_database_is_refused_by_name() {
    let rig = Rig::new("adopt_database").await;
    rig.sql(PUBLICATION).await;
    let name = rig.name();
    let made = format!("select pg_create_logical_replication_slot('{name}', 'pgoutput')");
    rig.servers.postgres.query("postgres", &made).await.expect("a slot");
    assert_refused(&rig, &["--adopt-slot"], relay_exit::SLOT_UNUSABLE, "database postgres").await;
    rig.finish().await.expect("an end");
}

#[tokio::test]
async fn a_slot_that_is_being_read_is_refused_by_name() {
    let rig = Rig::initialised("adopt_active").await;
    rig.start().await;
    // It goes on reading the slot, and writes no checkpoint of its own meanwhile.
    let relay = rig.relay.process().expect("it runs");
    relay.signal(Signal::STOP);
    super::tampering::write_checkpoint(&rig, None).await;
    assert_refused(&rig, &["--adopt-slot"], 1, "stop what reads it first").await;
    relay.signal(Signal::CONT);
    rig.insert_each(3).await;
    rig.assert_exactly_once().await;
    rig.finish().await.expect("an end");
}

async fn make_slot(rig: &Rig) {
    let name = rig.name();
    rig.sql(&format!(
        "select pg_create_logical_replication_slot('{name}', 'pgoutput')"
    ))
    .await;
}

/// Makes a slot that also sends transactions that are prepared and not yet committed.
async fn make_two_phase_slot(rig: &Rig) {
    let name = rig.name();
    rig.sql(&format!(
        "select pg_create_logical_replication_slot('{name}', 'pgoutput', false, true)"
    ))
    .await;
}

/// Writes a row in a transaction that is prepared under the rig's name, and not committed.
async fn prepare_a_row(rig: &Rig) {
    let (name, topic) = (rig.name(), rig.topic());
    rig.sql(&format!(
        "begin; insert into outbox (aggregatetype, aggregateid, type) values ('{topic}', 'k', 'Prepared'); prepare transaction '{name}'"
    ))
    .await;
}

/// The first letters of the messages that a slot would send by protocol version 1.
async fn kinds_of_messages_to_send(rig: &Rig) -> String {
    let name = rig.name();
    rig.value(&format!(
        "select string_agg(chr(get_byte(data, 0)), '') from pg_logical_slot_peek_binary_changes(
             '{name}', null, null, 'proto_version', '1', 'publication_names', 'outbox')"
    ))
    .await
}

#[tokio::test]
async fn a_slot_that_sends_what_is_only_prepared_is_refused_by_name() {
    let rig = Rig::new("adopt_two_phase").await;
    rig.sql(PUBLICATION).await;
    make_two_phase_slot(&rig).await;
    prepare_a_row(&rig).await;
    // Begin Prepare, Relation, Insert, Prepare.
    assert_eq!(
        kinds_of_messages_to_send(&rig).await,
        "bRIP",
        "the server sends a prepared transaction also by protocol version 1"
    );
    assert_refused(&rig, &["--adopt-slot"], relay_exit::SLOT_UNUSABLE, "two_phase").await;
    let logged = rig.relay.log_text().len();
    let status = rig.relay.run_for_status(&["check"]).await.expect("check");
    let said = rig.relay.log_text()[logged..].to_owned();
    assert!(status.code() == Some(1) && said.contains("two_phase"), "{said}");
    rig.sql(&format!("rollback prepared '{}'", rig.name())).await;

    // If a slot was made anew like that, its relay stops before it reads from the slot.
    rig.drop_slot().await;
    rig.init(&[]).await;
    rig.drop_slot().await;
    make_two_phase_slot(&rig).await;
    rig.assert_stops(relay_exit::SLOT_UNUSABLE, &["two_phase"]).await;
    super::tampering::kill_and_drop_slot(&rig).await;
}

/// A test of the test: what such a slot sends is not a transaction that the relay can read.
#[tokio::test]
async fn a_relay_that_takes_a_slot_that_sends_what_is_only_prepared_is_caught() {
    let mut rig = Rig::new("adopt_two_phase_planted").await;
    rig.sql(PUBLICATION).await;
    make_two_phase_slot(&rig).await;
    rig.relay = rig
        .relay
        .with_binary("outbox-relay-faults")
        .env("OUTBOX_RELAY_BUG", "TakeTwoPhaseSlots");
    rig.init(&["--adopt-slot"]).await;
    rig.start().await;
    rig.insert_each(1).await;
    rig.assert_exactly_once().await;
    prepare_a_row(&rig).await;
    stack::eventually(rig::rig::ARRIVAL_DEADLINE, "it meets what it cannot read", || async {
        rig.relay.log_text().contains("unknown message").then_some(())
    })
    .await;
    rig.sql(&format!("rollback prepared '{}'", rig.name())).await;
    super::tampering::kill_and_drop_slot(&rig).await;
}
