//! Less common commands that [`super::least_privileges`] runs with its roles: parking by hand, going on after each kind of stop, and other slots.

use rig::rig::READY_DEADLINE;
use rig::{Rig, relay_exit};
use serde_json::{Value, json};
use stack::{Program, eventually};

use super::least_privileges::run;
use super::topic_settings::{assert_stops, set_topic};
use crate::relay::load::metric;
use crate::relay::tampering::{DEADLINE, checkpoints, recreate_slot, write_checkpoint};

/// Parks a row at which the relay has stopped by hand, and gives it up.
pub(super) async fn park_and_discard(rig: &Rig, admin: &Program) {
    set_topic(rig, &[("max.message.bytes", "20000")]).await;
    let topic = rig.topic();
    let id = rig
        .value(&format!(
            "insert into outbox (aggregatetype, aggregateid, type, payload)
             values ('{topic}', 'by hand', 'Some', jsonb_build_object('n', nextval('numbers'), 'pad', repeat('x', 30000))) returning id"
        ))
        .await;
    let said = assert_stops(&rig.relay, relay_exit::RECORD_TOO_LARGE, &["`outbox-relay park "]).await;
    let (_, rest) = said.rsplit_once("`outbox-relay park ").expect("what to do");
    let position = rest.split('`').next().expect("a position");
    rig.wait_until_slot_is_free().await;
    run(admin, &["park", position]).await;
    rig.start().await;
    eventually(DEADLINE, "the row is parked", || async {
        (metric(&rig.relay, "relay_parked_rows").await? >= 1.0).then_some(())
    })
    .await;
    rig.relay.stop().await.expect("a clean end");
    rig.wait_until_slot_is_free().await;
    run(admin, &["parked", "discard", position, "--yes"]).await;
    rig.sql(&format!("delete from outbox where id = '{id}'")).await;
    set_topic(rig, &[("max.message.bytes", "60000")]).await;
}

/// Changes a checkpoint. The text is the topic of the rows.
type Change = fn(&mut Value, &str);

/// Writes the last checkpoint once more, with a change.
async fn write_changed(rig: &Rig, change: impl FnOnce(&mut Value)) {
    let last = checkpoints(rig).await.into_iter().filter_map(|record| record.value);
    let is_checkpoint = |value: &Value| !value["lineage"].is_null();
    let mut last = last
        .filter_map(|value| serde_json::from_slice(&value).ok())
        .filter(is_checkpoint);
    let mut checkpoint: Value = last.next_back().expect("a checkpoint");
    change(&mut checkpoint);
    write_checkpoint(rig, Some(checkpoint.to_string().into_bytes())).await;
}

/// Breaks one thing after the other. For each, `admin` goes on by a flag. No row is between the checkpoint and the slot.
pub(super) async fn accept_each(rig: &Rig, admin: &Program) {
    let accept = async |flag: &str| run(admin, &["init", flag]).await;
    rig.sql("select pg_logical_emit_message(false, 'of nobody', 'moves the end of the WAL')")
        .await;
    recreate_slot(rig).await;
    accept("--accept-slot-gap").await;
    write_checkpoint(rig, None).await;
    accept("--accept-checkpoint-loss").await;
    write_checkpoint(rig, Some(b"garbage".to_vec())).await;
    accept("--accept-garbled-checkpoint").await;
    rig.sql("alter publication outbox set (publish = 'update')").await;
    rig.sql("alter publication outbox set (publish = 'insert')").await;
    accept("--accept-publication").await;

    let changes: [(&str, Change); 7] = [
        ("--accept-timeline", |last, _| last["lineage"]["timeline"] = json!(7)),
        ("--accept-older-database", |last, _| last["lsn"] = json!("FFFF/0")),
        ("--accept-cluster", |last, _| {
            last["lineage"]["systemIdentifier"] = json!("1")
        }),
        ("--accept-partitions", |last, topic| {
            last["lineage"]["partitions"][topic] = json!(3)
        }),
        ("--accept-topic-recreated", |last, topic| {
            last["lineage"]["topicIds"][topic] = json!("AAAAAAAAAAAAAAAAAAAAAQ");
        }),
        ("--accept-parked-loss", |last, _| last["parking"] = json!({"rows": 1})),
        ("--accept-unfinished-recovery", |last, _| {
            last["state"] = json!("recovering");
            last["generation"] = json!(last["generation"].as_u64().unwrap_or_default() + 1);
        }),
    ];
    for (flag, change) in changes {
        let topic = rig.topic();
        write_changed(rig, |last| change(last, &topic)).await;
        accept(flag).await;
    }
}

/// Makes a failover slot, a second slot, and adopts a slot that somebody else has made.
pub(super) async fn make_other_slots(rig: &Rig, admin: &Program) {
    if rig.servers.postgres.version() >= 17 {
        run(admin, &["init", "--failover"]).await;
    }
    let second = admin.with_env("OUTBOX_SLOT", "second");
    let second = second.command_of(
        "second",
        &["run", "--init", "--another-slot", "--existing-rows", "skip"],
    );
    second.start().expect("a start");
    let ready = second.wait_ready(READY_DEADLINE).await;
    ready.unwrap_or_else(|err| panic!("{err:#}"));
    second.stop().await.expect("a clean end");
    let log = second.log_text();
    assert!(!log.contains("is not known"), "a privilege is missing: {log}");

    rig.sql("select pg_create_logical_replication_slot('third', 'pgoutput')")
        .await;
    let third = admin.with_env("OUTBOX_SLOT", "third");
    run(&third, &["init", "--adopt-slot", "--another-slot"]).await;
    for slot in ["second", "third"] {
        let is_free = format!("select 1 from pg_replication_slots where slot_name = '{slot}' and not active");
        eventually(DEADLINE, "the slot is free", || async {
            (!rig.sql(&is_free).await.is_empty()).then_some(())
        })
        .await;
        rig.sql(&format!("select pg_drop_replication_slot('{slot}')")).await;
    }
}
