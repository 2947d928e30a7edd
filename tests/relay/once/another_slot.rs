//! Only one slot publishes an outbox, unless an operator wants more. Otherwise a slot name with a wrong letter would publish everything again.

use rig::{Isolation, Rig, relay_exit};

use crate::relay::tampering::{DEADLINE, ids, times_published};

/// A relay whose slot has another name, as after a mistake in its settings.
fn relay_with_mistyped_slot(rig: &Rig) -> stack::Program {
    rig.another_relay("mistyped")
        .env("OUTBOX_SLOT", &format!("{}x", rig.name()))
}

async fn drop_slot(rig: &Rig, slot: &str) {
    let drop = format!(
        "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = '{slot}' and not active"
    );
    stack::eventually(DEADLINE, "the other slot is dropped", || async {
        let dropped = rig.sql(&drop).await;
        (!dropped.is_empty()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_mistyped_slot_is_refused_with_the_name_of_the_one_that_publishes_the_outbox() {
    let rig = Rig::initialised("another_slot").await;
    rig.start().await;
    rig.insert_each(10).await;
    rig.assert_exactly_once().await;
    let other = relay_with_mistyped_slot(&rig);
    // These rows are not published yet, so no topic has them. A recovery would publish them, and the relay would publish them, too.
    rig.relay
        .run(&["pause", "--reason", "another slot"])
        .await
        .expect("a pause");
    rig.insert_each(5).await;
    for arguments in [
        &["run"][..],
        &["run", "--init"],
        &["init"],
        &["init", "--adopt-slot"],
        &["recover", "--yes"],
        &["recover", "--yes", "--compare-anyway"],
    ] {
        let logged = other.log_text().len();
        let status = other.run_for_status(arguments).await.expect("an end");
        let log = other.log_text()[logged..].to_owned();
        assert_eq!(
            status.code(),
            Some(relay_exit::PUBLISHED_BY_ANOTHER),
            "{arguments:?}: {log}"
        );
        assert!(
            log.contains("`another_slot/another_slot`") && log.contains("--another-slot"),
            "{log}"
        );
    }
    let slots = rig
        .sql("select 1 from pg_replication_slots where slot_name = 'another_slotx'")
        .await;
    assert!(slots.is_empty(), "no slot was made");
    rig.relay.run(&["resume"]).await.expect("a resumption");
    rig.assert_exactly_once().await;
    rig.finish().await.expect("an end");
}

#[tokio::test]
async fn a_relay_that_does_not_look_for_other_slots_is_caught_because_a_mistyped_slot_publishes_every_row_again() {
    let rig = Rig::initialised("another_planted").await;
    rig.start().await;
    rig.insert_each(5).await;
    rig.assert_exactly_once().await;
    let other = relay_with_mistyped_slot(&rig)
        .with_binary("outbox-relay-faults")
        .env("OUTBOX_RELAY_BUG", "AnySlotPublishes")
        .command_of("planted", &["run", "--init"]);
    other.start().expect("a start");
    stack::eventually(DEADLINE, "all is published twice", || async {
        let records = rig.records(Isolation::Committed).await.ok()?;
        (records.len() == 10).then_some(())
    })
    .await;
    let written = ids(&rig).await;
    assert_eq!(times_published(&rig, &written, &written).await, [2; 5]);
    other.kill_hard().await;
    drop_slot(&rig, "another_plantedx").await;
    rig.finish().await.expect("an end");
}

#[tokio::test]
async fn another_slot_publishes_what_it_is_asked_for_a_second_time() {
    let rig = Rig::initialised("two_slots").await;
    rig.start().await;
    rig.insert_each(3).await;
    rig.assert_exactly_once().await;
    let other = relay_with_mistyped_slot(&rig);
    other
        .run(&["init", "--another-slot", "--existing-rows", "skip"])
        .await
        .unwrap_or_else(|err| panic!("{err:#}"));
    other.start().expect("a start");
    rig.insert_each(2).await;
    let written = ids(&rig).await;
    stack::eventually(DEADLINE, "both publish", || async {
        let records = rig.records(Isolation::Committed).await.ok()?;
        (records.len() == 3 + 2 * 2).then_some(())
    })
    .await;
    assert_eq!(times_published(&rig, &written, &written).await, [1, 1, 1, 2, 2]);
    other.stop().await.expect("a clean end");
    drop_slot(&rig, "two_slotsx").await;
    rig.finish().await.expect("an end");
}

#[tokio::test]
async fn init_makes_no_slot_whose_transactional_ids_may_be_another_databases_relays() {
    let mut rig = Rig::new("slot_ids").await;
    rig.sql("create database \"slot-ids\"").await;
    let url = rig.servers.postgres.url("postgres", "slot-ids");
    for slot in ["2", "replay"] {
        rig.relay = rig.relay.with_env("DATABASE_URL", &url).with_env("OUTBOX_SLOT", slot);
        let logged = rig.relay.log_text().len();
        let status = rig.relay.run_for_status(&["init"]).await.expect("it ends");
        let log = rig.relay.log_text()[logged..].to_owned();
        assert_eq!(status.code(), Some(relay_exit::WRONG_SETTING), "{log}");
        assert!(
            log.contains(&format!("--slot `{slot}` of database `slot-ids`")),
            "{log}"
        );
        let logged = rig.relay.log_text().len();
        rig.relay.run_for_status(&["check"]).await.expect("it ends");
        assert!(
            rig.relay.log_text()[logged..].contains(&format!("warning  --slot `{slot}`")),
            "{}",
            rig.relay.log_tail(20)
        );
    }
    rig.relay.kill_hard().await;
}
