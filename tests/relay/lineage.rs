//! A relay that cannot prove where it stopped publishes nothing, confirms nothing, and says what to do.

use rig::{Rig, Servers, relay_exit, servers};
use stack::KafkaOptions;
use std::sync::Arc;

use super::tampering::{
    checkpoints, kill_and_drop_slot, last_checkpoint, publish_and_stop, published_and_stopped,
    published_and_stopped_with_little_wal, recreate_slot, write_checkpoint,
};

#[tokio::test]
async fn a_slot_that_was_dropped_stops_the_relay() {
    let rig = published_and_stopped("slot_dropped").await;
    rig.drop_slot().await;
    rig.insert_each(2).await;
    rig.assert_stops(relay_exit::SLOT_GONE, &["is gone", "--accept-new-slot"])
        .await;
}

#[tokio::test]
async fn a_slot_that_was_made_again_stops_the_relay() {
    let rig = published_and_stopped("slot_recreated").await;
    rig.insert_each(2).await;
    recreate_slot(&rig).await;
    rig.assert_stops(
        relay_exit::SLOT_AHEAD,
        &["ahead of the checkpoint", "--accept-slot-gap"],
    )
    .await;
    kill_and_drop_slot(&rig).await;
}

#[tokio::test]
async fn a_slot_that_was_advanced_stops_the_relay() {
    let rig = published_and_stopped("slot_advanced").await;
    rig.insert_each(2).await;
    let name = rig.name();
    rig.sql(&format!(
        "select pg_replication_slot_advance('{name}', pg_current_wal_lsn())"
    ))
    .await;
    rig.assert_stops(
        relay_exit::SLOT_AHEAD,
        &["ahead of the checkpoint", "--accept-slot-gap"],
    )
    .await;
    kill_and_drop_slot(&rig).await;
}

#[tokio::test]
async fn a_slot_that_somebody_else_has_read_stops_the_relay() {
    let rig = published_and_stopped("slot_read").await;
    rig.insert_each(2).await;
    let name = rig.name();
    let read = rig
        .sql(&format!(
            "select count(*) from pg_logical_slot_get_binary_changes('{name}', null, null, 'proto_version', '1', 'publication_names', 'outbox')"
        ))
        .await;
    assert_ne!(read[0][0].as_deref(), Some("0"), "somebody else has read the rows");
    rig.assert_stops(
        relay_exit::SLOT_AHEAD,
        &["ahead of the checkpoint", "--accept-slot-gap"],
    )
    .await;
    kill_and_drop_slot(&rig).await;
}

#[tokio::test]
async fn a_slot_that_somebody_else_has_only_peeked_at_does_not_stop_the_relay() {
    let rig = published_and_stopped("slot_peeked").await;
    rig.insert_each(2).await;
    let name = rig.name();
    rig.sql(&format!(
        "select count(*) from pg_logical_slot_peek_binary_changes('{name}', null, null, 'proto_version', '1', 'publication_names', 'outbox')"
    ))
    .await;
    rig.start().await;
    rig.assert_exactly_once().await;
    rig.finish().await.expect("an end");
}

#[tokio::test]
async fn a_slot_that_was_invalidated_stops_the_relay() {
    let rig = published_and_stopped_with_little_wal("slot_invalidated").await;
    rig.insert_each(2).await;
    invalidate_slot(&rig).await;
    rig.assert_stops(relay_exit::SLOT_INVALIDATED, &["was invalidated", "--accept-new-slot"])
        .await;
}

#[tokio::test]
async fn a_checkpoint_topic_that_was_deleted_stops_the_relay() {
    let rig = published_and_stopped("topic_deleted").await;
    let topic = rig.checkpoint_topic();
    let deleted = rig.servers.kafka.topic_tool(&["--delete", "--topic", &topic]).await;
    deleted.expect("a deletion");
    rig.insert_each(2).await;
    rig.assert_stops(
        relay_exit::CHECKPOINT_MISSING,
        &["has no checkpoint", "--accept-checkpoint-loss"],
    )
    .await;
    kill_and_drop_slot(&rig).await;
}

#[tokio::test]
async fn a_checkpoint_topic_that_is_deleted_while_the_relay_streams_stops_it() {
    let rig = Rig::initialised("topic_deleted_live").await;
    rig.start().await;
    rig.insert_each(5).await;
    rig.assert_exactly_once().await;
    let topic = rig.checkpoint_topic();
    let deleted = rig.servers.kafka.topic_tool(&["--delete", "--topic", &topic]).await;
    deleted.expect("a deletion");
    rig.insert_each(2).await;
    super::tampering::assert_ends(
        &rig,
        relay_exit::CHECKPOINT_MISSING,
        &["has no checkpoint", "--accept-checkpoint-loss"],
    )
    .await;
    kill_and_drop_slot(&rig).await;
}

#[tokio::test]
async fn a_checkpoint_under_a_tombstone_stops_the_relay() {
    let rig = published_and_stopped("tombstone").await;
    write_checkpoint(&rig, None).await;
    rig.insert_each(2).await;
    rig.assert_stops(
        relay_exit::CHECKPOINT_MISSING,
        &["has no checkpoint", "--accept-checkpoint-loss"],
    )
    .await;
    kill_and_drop_slot(&rig).await;
}

#[tokio::test]
async fn a_checkpoint_topic_that_was_emptied_stops_the_relay() {
    let rig = published_and_stopped("emptied").await;
    let topic = rig.checkpoint_topic();
    let kafka = &rig.servers.kafka;
    let delete = [
        "--entity-type",
        "topics",
        "--entity-name",
        &topic,
        "--add-config",
        "cleanup.policy=delete",
    ];
    kafka
        .configs_tool(&["--alter"].iter().chain(&delete).copied().collect::<Vec<_>>())
        .await
        .expect("another policy");
    kafka.delete_records(&topic, 0, -1).await.expect("a deletion");
    rig.insert_each(2).await;
    rig.assert_stops(
        relay_exit::CHECKPOINT_MISSING,
        &["has no checkpoint", "--accept-checkpoint-loss"],
    )
    .await;
    kill_and_drop_slot(&rig).await;
}

#[tokio::test]
async fn a_checkpoint_that_cannot_be_read_stops_the_relay() {
    let rig = published_and_stopped("garbled").await;
    write_checkpoint(&rig, Some(b"garbage".to_vec())).await;
    rig.insert_each(2).await;
    rig.assert_stops(
        relay_exit::CHECKPOINT_GARBLED,
        &["cannot be read", "--accept-garbled-checkpoint"],
    )
    .await;
    kill_and_drop_slot(&rig).await;
}

#[tokio::test]
async fn a_checkpoint_of_a_later_format_stops_the_relay() {
    let rig = published_and_stopped("later_format").await;
    let mut later = last_checkpoint(&rig).await;
    later["format"] = 2.into();
    write_checkpoint(&rig, Some(later.to_string().into_bytes())).await;
    rig.assert_stops(
        relay_exit::CHECKPOINT_GARBLED,
        &["format 2", "--accept-garbled-checkpoint"],
    )
    .await;
    kill_and_drop_slot(&rig).await;
}

#[tokio::test]
async fn a_checkpoint_that_went_back_stops_the_relay() {
    let rig = published_and_stopped("went_back").await;
    let old = checkpoints(&rig).await.pop().and_then(|record| record.value);
    publish_and_stop(&rig).await;
    write_checkpoint(&rig, old).await;
    rig.insert_each(2).await;
    rig.assert_stops(
        relay_exit::CHECKPOINT_WENT_BACK,
        &["went back", "--accept-garbled-checkpoint"],
    )
    .await;
    kill_and_drop_slot(&rig).await;
}

#[tokio::test]
async fn a_checkpoint_without_the_publications_state_is_upgraded_in_silence() {
    let rig = published_and_stopped("upgraded").await;
    let mut earlier = last_checkpoint(&rig).await;
    earlier["lineage"]
        .as_object_mut()
        .expect("a lineage")
        .remove("publicationVersion")
        .expect("the field");
    earlier
        .as_object_mut()
        .expect("an object")
        .remove("generation")
        .expect("the field");
    write_checkpoint(&rig, Some(earlier.to_string().into_bytes())).await;
    publish_and_stop(&rig).await;
    let last = last_checkpoint(&rig).await;
    assert!(last["lineage"]["publicationVersion"].is_string(), "{last}");
    rig.finish().await.expect("an end");
}

#[tokio::test]
async fn a_topic_with_more_partitions_than_before_stops_the_relay() {
    let rig = published_and_stopped("partitions").await;
    let topic = rig.topic();
    let altered = rig
        .servers
        .kafka
        .topic_tool(&["--alter", "--topic", &topic, "--partitions", "6"])
        .await;
    altered.expect("more partitions");
    rig.insert_each(2).await;
    rig.assert_stops(
        relay_exit::PARTITIONS_CHANGED,
        &["has 6 partitions and had 4", "--accept-partitions"],
    )
    .await;
    kill_and_drop_slot(&rig).await;
}

#[tokio::test]
async fn a_database_that_was_restored_from_an_older_backup_stops_the_relay() {
    let rig = older_database("restored").await;
    rig.assert_stops(
        relay_exit::SERVER_BEHIND,
        &["restored from an older backup", "--accept-older-database"],
    )
    .await;
}

#[tokio::test]
async fn a_relay_that_stopped_for_good_answers_for_its_exit_code_as_long_as_it_was_told_to() {
    let rig = published_and_stopped("lingering").await;
    rig.drop_slot().await;
    let mut rig = rig;
    rig.relay = rig.relay.with_env("LINGER_STOPPED", "600");
    rig.relay.start().expect("a start");
    let code = stack::eventually(super::tampering::DEADLINE, "the exit code can be scraped", || async {
        super::tampering::metric(&rig, "relay_stopped_exit_code").await
    })
    .await;
    assert!((code - f64::from(relay_exit::SLOT_GONE)).abs() < f64::EPSILON, "{code}");
    let readiness = rig.relay.readiness(&reqwest::Client::new()).await.expect("an answer");
    let stack::program::Readiness::NotReady(reasons) = readiness else {
        panic!("a relay that has stopped is ready");
    };
    assert!(reasons.contains("is gone"), "{reasons}");
    let ended = rig.relay.stop().await.expect_err("it stopped for good");
    assert!(
        ended
            .to_string()
            .contains(&format!("exit status: {}", relay_exit::SLOT_GONE)),
        "a signal ends the wait and not the reason: {ended:#}"
    );
}

/// Writes WAL until the server invalidates the slot.
pub(super) async fn invalidate_slot(rig: &Rig) {
    rig.sql("create table filler (t text)").await;
    let status = format!(
        "select wal_status from pg_replication_slots where slot_name = '{}'",
        rig.name()
    );
    stack::eventually(super::tampering::DEADLINE, "the slot is lost", || async {
        rig.sql("insert into filler select repeat('x', 1000) from generate_series(1, 16000)")
            .await;
        rig.sql("select pg_switch_wal()").await;
        rig.sql("checkpoint").await;
        (rig.value(&status).await == "lost").then_some(())
    })
    .await;
}

/// A rig whose database was set back to an older copy of its files.
pub(super) async fn older_database(name: &str) -> Rig {
    let servers = Servers::start(servers::postgres_options(), KafkaOptions::default()).await;
    let rig = Rig::on(Arc::new(servers.expect("servers")), name).await;
    rig.init(&[]).await;
    publish_and_stop(&rig).await;
    let newer = async {
        // The server itself writes less than this when it stops and starts.
        rig.sql(
            "create table filler (t text); insert into filler select repeat('x', 1000) from generate_series(1, 5000)",
        )
        .await;
        publish_and_stop(&rig).await;
    };
    restore_from_before(&rig, newer).await;
    rig
}

/// Takes a backup, lets `newer` happen, and then restores the database from the backup.
pub(crate) async fn restore_from_before(rig: &Rig, newer: impl Future<Output = ()>) {
    let postgres = &rig.servers.postgres;
    postgres.stop_fast().await.expect("an end");
    postgres.save_data().expect("a copy");
    postgres.start_again().await.expect("a start");
    newer.await;
    postgres.stop_fast().await.expect("an end");
    postgres.restore_data().expect("the copy");
    postgres.start_again().await.expect("a start");
}
