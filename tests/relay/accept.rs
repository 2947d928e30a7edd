//! After each stop an operator can go on by a flag. What is published then is what the help of the flag says.

use rig::{Rig, relay_exit, servers};
use stack::Postgres;
use std::sync::Arc;

use super::lineage::older_database;
use super::tampering::{
    accept, assert_refused, checkpoints, ids, last_checkpoint, publish_and_stop, published_and_stopped,
    published_and_stopped_with_little_wal, recreate_slot, times_published, write_checkpoint,
};

#[tokio::test]
async fn a_slot_gap_is_accepted_without_the_events_in_it() {
    let rig = published_and_stopped("accept_gap").await;
    rig.insert_each(2).await;
    recreate_slot(&rig).await;
    rig.insert_each(3).await;
    rig.assert_stops(relay_exit::SLOT_AHEAD, &["--accept-slot-gap"]).await;
    assert_refused(
        &rig,
        &["--accept-new-slot"],
        relay_exit::SLOT_AHEAD,
        "--accept-slot-gap",
    )
    .await;
    accept(&rig, &["--accept-slot-gap"]).await;
    assert_times_published(&rig, &[1, 1, 1, 1, 1, 0, 0, 1, 1, 1]).await;
}

#[tokio::test]
async fn a_new_slot_is_accepted_and_the_rows_that_are_there_are_left_or_published_as_told() {
    let rig = published_and_stopped("accept_new_skip").await;
    rig.drop_slot().await;
    rig.insert_each(2).await;
    accept(&rig, &["--accept-new-slot", "--existing-rows", "skip"]).await;
    assert_times_published(&rig, &[1, 1, 1, 1, 1, 0, 0]).await;

    let rig = published_and_stopped("accept_new_publish").await;
    rig.drop_slot().await;
    rig.insert_each(2).await;
    accept(&rig, &["--accept-new-slot", "--existing-rows", "publish"]).await;
    assert_times_published(&rig, &[2, 2, 2, 2, 2, 1, 1]).await;
}

#[tokio::test]
async fn a_lost_checkpoint_is_accepted_and_the_slots_position_counts() {
    let rig = published_and_stopped("accept_loss").await;
    let topic = rig.checkpoint_topic();
    let deleted = rig.servers.kafka.topic_tool(&["--delete", "--topic", &topic]).await;
    deleted.expect("a deletion");
    rig.insert_each(2).await;
    accept(&rig, &["--accept-checkpoint-loss"]).await;
    assert_times_published(&rig, &[1, 1, 1, 1, 1, 1, 1]).await;
}

#[tokio::test]
async fn a_garbled_checkpoint_is_accepted_and_the_last_readable_one_counts() {
    let rig = published_and_stopped("accept_garbled").await;
    write_checkpoint(&rig, Some(b"garbage".to_vec())).await;
    rig.insert_each(2).await;
    accept(&rig, &["--accept-garbled-checkpoint"]).await;
    assert_times_published(&rig, &[1, 1, 1, 1, 1, 1, 1]).await;
}

#[tokio::test]
async fn a_checkpoint_that_went_back_is_accepted_and_the_later_one_counts() {
    let rig = published_and_stopped("accept_back").await;
    let old = checkpoints(&rig).await.pop().and_then(|record| record.value);
    publish_and_stop(&rig).await;
    write_checkpoint(&rig, old).await;
    rig.insert_each(2).await;
    assert_refused(
        &rig,
        &["--accept-checkpoint-loss"],
        relay_exit::CHECKPOINT_WENT_BACK,
        "--accept-garbled-checkpoint",
    )
    .await;
    accept(&rig, &["--accept-garbled-checkpoint"]).await;
    assert_times_published(&rig, &[1; 12]).await;
}

#[tokio::test]
async fn another_timeline_is_accepted_from_the_checkpoint() {
    // The server is on another timeline than the checkpoint, as after a promotion.
    let rig = published_and_stopped("accept_timeline").await;
    let mut elsewhere = last_checkpoint(&rig).await;
    elsewhere["lineage"]["timeline"] = 7.into();
    write_checkpoint(&rig, Some(elsewhere.to_string().into_bytes())).await;
    rig.insert_each(2).await;
    rig.assert_stops(relay_exit::OTHER_TIMELINE, &["--accept-timeline"])
        .await;
    accept(&rig, &["--accept-timeline"]).await;
    assert_times_published(&rig, &[1; 7]).await;
}

#[tokio::test]
async fn an_older_database_is_accepted_and_nothing_written_since_the_restore_is_lost() {
    let rig = older_database("accept_older").await;
    rig.insert_each(2).await;
    rig.assert_stops(relay_exit::SERVER_BEHIND, &["--accept-older-database"])
        .await;
    accept(&rig, &["--accept-older-database"]).await;
    // The five rows of the backup were confirmed before the backup. The five rows after it are in the topic, and no longer in any outbox. Before
    // PostgreSQL 17 a clean stop does not write the confirmed position to disk, so the slot sends the five of the backup once more.
    let of_the_backup = if servers::postgres_version() < 17 { 2 } else { 1 };
    let most = [
        of_the_backup,
        of_the_backup,
        of_the_backup,
        of_the_backup,
        of_the_backup,
        1,
        1,
    ];
    assert_times_published_between(&rig, &[1; 7], &most).await;
}

#[tokio::test]
async fn another_cluster_is_accepted_and_its_slot_continued() {
    let mut rig = published_and_stopped("accept_cluster").await;
    let other = Postgres::start(servers::postgres_options())
        .await
        .expect("another cluster");
    let url = other.url("postgres", rig.name());
    let name = rig.name().to_owned();
    other
        .query("postgres", &format!("create database {name}"))
        .await
        .expect("a database");
    let outbox = format!(
        "{}; create sequence numbers;
         create publication outbox for table outbox with (publish = 'insert', publish_via_partition_root = true)",
        rig::rig::OUTBOX
    );
    other.query(&name, &outbox).await.expect("an outbox");
    rig.finish().await.expect("an end");
    let slot = format!("select pg_create_logical_replication_slot('{name}', 'pgoutput')");
    other.query(&name, &slot).await.expect("a slot");
    let first = Arc::clone(&rig.servers);
    rig.relay = rig.relay.with_env("DATABASE_URL", &url);
    let insert = rig.insert_statement(1, 7);
    other.query(&name, &insert).await.expect("a row");
    let logged = rig.relay.log_text().len();
    rig.relay.start().expect("a start");
    let status = rig.relay.exited(super::tampering::DEADLINE).await.expect("an end");
    assert_eq!(
        status.code(),
        Some(relay_exit::OTHER_CLUSTER),
        "{}",
        &rig.relay.log_text()[logged..]
    );
    accept(&rig, &["--accept-cluster"]).await;
    rig.start().await;
    let rows = other.query(&name, "select id from outbox").await.expect("rows");
    let ids: Vec<String> = rows
        .into_iter()
        .filter_map(|row| row.into_iter().next().flatten())
        .collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(times_published(&rig, &ids, &ids).await, [1]);
    rig.relay.stop().await.expect("a clean end");
    drop(first);
}

#[tokio::test]
async fn more_partitions_are_accepted_from_the_checkpoint() {
    let rig = published_and_stopped("accept_partitions").await;
    let topic = rig.topic();
    let altered = rig
        .servers
        .kafka
        .topic_tool(&["--alter", "--topic", &topic, "--partitions", "6"])
        .await;
    altered.expect("more partitions");
    rig.insert_each(2).await;
    accept(&rig, &["--accept-partitions"]).await;
    assert_times_published(&rig, &[1; 7]).await;
}

#[tokio::test]
async fn an_altered_publication_is_accepted_without_what_it_hid() {
    let rig = published_and_stopped("accept_altered").await;
    rig.insert_each(1).await;
    rig.sql("alter publication outbox set (publish = 'update')").await;
    rig.insert_each(2).await;
    rig.assert_stops(relay_exit::PUBLICATION_WRONG, &["does not publish inserts"])
        .await;
    assert_refused(
        &rig,
        &["--accept-publication"],
        relay_exit::PUBLICATION_WRONG,
        "does not publish inserts",
    )
    .await;
    rig.sql("alter publication outbox set (publish = 'insert')").await;
    rig.insert_each(1).await;
    rig.assert_stops(relay_exit::PUBLICATION_WRONG, &["--accept-publication"])
        .await;
    accept(&rig, &["--accept-publication"]).await;
    assert_times_published(&rig, &[1, 1, 1, 1, 1, 1, 0, 0, 1]).await;
}

#[tokio::test]
async fn a_publication_that_was_dropped_is_accepted_and_the_stream_goes_on_from_now() {
    let rig = published_and_stopped("accept_dropped").await;
    rig.insert_each(1).await;
    rig.sql("drop publication outbox").await;
    rig.insert_each(2).await;
    rig.assert_stops(relay_exit::PUBLICATION_WRONG, &["it does not exist"])
        .await;
    accept(&rig, &["--accept-publication"]).await;
    assert_times_published(&rig, &[1, 1, 1, 1, 1, 0, 0, 0]).await;
}

#[tokio::test]
async fn where_nothing_is_broken_nothing_is_accepted() {
    let rig = published_and_stopped("accept_nothing").await;
    let before = checkpoints(&rig).await.len();
    for flag in [
        "--accept-slot-gap",
        "--accept-new-slot",
        "--accept-checkpoint-loss",
        "--accept-garbled-checkpoint",
        "--accept-timeline",
        "--accept-older-database",
        "--accept-cluster",
        "--accept-partitions",
        "--accept-publication",
        "--accept-topic-recreated",
    ] {
        assert_refused(
            &rig,
            &[flag],
            relay_exit::WRONG_SETTING,
            "there is nothing of the kind to accept",
        )
        .await;
    }
    assert_eq!(checkpoints(&rig).await.len(), before, "no checkpoint was written");
    assert_times_published(&rig, &[1; 5]).await;
}

#[tokio::test]
async fn two_breaks_take_two_flags() {
    let rig = published_and_stopped("accept_two").await;
    rig.sql("alter publication outbox set (publish = 'update')").await;
    rig.sql("alter publication outbox set (publish = 'insert')").await;
    rig.insert_each(1).await;
    recreate_slot(&rig).await;
    assert_refused(
        &rig,
        &["--accept-slot-gap"],
        relay_exit::PUBLICATION_WRONG,
        "--accept-publication",
    )
    .await;
    assert_refused(
        &rig,
        &["--accept-publication"],
        relay_exit::SLOT_AHEAD,
        "--accept-slot-gap",
    )
    .await;
    accept(&rig, &["--accept-slot-gap", "--accept-publication"]).await;
    assert_times_published(&rig, &[1, 1, 1, 1, 1, 0]).await;
}

#[tokio::test]
async fn nothing_is_accepted_while_a_relay_runs() {
    let rig = Rig::initialised("accept_running").await;
    rig.start().await;
    write_checkpoint(&rig, Some(b"garbage".to_vec())).await;
    assert_refused(&rig, &["--accept-garbled-checkpoint"], 1, "stop what reads it first").await;
    rig.insert_each(3).await;
    rig.assert_exactly_once().await;
    rig.finish().await.expect("an end");
}

#[tokio::test]
async fn an_invalidated_slot_is_replaced_when_that_is_accepted() {
    let rig = published_and_stopped_with_little_wal("accept_lost").await;
    super::lineage::invalidate_slot(&rig).await;
    rig.insert_each(2).await;
    rig.assert_stops(relay_exit::SLOT_INVALIDATED, &["--accept-new-slot"])
        .await;
    accept(&rig, &["--accept-new-slot", "--existing-rows", "skip"]).await;
    assert_times_published(&rig, &[1, 1, 1, 1, 1, 0, 0]).await;
}

/// Starts the relay, and writes three more rows. Asserts how many times each earlier row was published, and that the three were published once.
async fn assert_times_published(rig: &Rig, expected: &[usize]) {
    assert_times_published_between(rig, expected, expected).await;
}

/// As [`assert_times_published`], with the fewest and the most times of each earlier row.
async fn assert_times_published_between(rig: &Rig, at_least: &[usize], at_most: &[usize]) {
    rig.start().await;
    let earlier = ids(rig).await;
    assert_eq!(earlier.len(), at_least.len());
    rig.insert_each(3).await;
    let ids = ids(rig).await;
    let awaited: Vec<String> = (0..)
        .zip(&ids)
        .filter(|(index, _)| at_least.get(*index).is_none_or(|times| *times > 0))
        .map(|(_, id)| id.clone())
        .collect();
    let times = times_published(rig, &ids, &awaited).await;
    let is_right = times
        .iter()
        .zip(at_least.iter().zip(at_most))
        .all(|(times, (low, high))| (low..=high).contains(&times));
    assert!(
        is_right,
        "{}: {times:?}, expected {at_least:?} to {at_most:?}",
        rig.name()
    );
    assert_eq!(times[at_least.len()..], [1, 1, 1], "{}", rig.name());
    rig.finish().await.expect("an end");
}
