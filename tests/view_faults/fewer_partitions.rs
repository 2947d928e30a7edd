//! A topic is made anew with fewer partitions. Positions of the missing partitions are left. They must delay nobody, and never be used again.

use std::ops::Range;
use std::time::Duration;

use anyhow::ensure;
use rig::view_rig::{DEADLINE, Event};
use rig::{ViewRig, view_builder_exit};
use serde_json::json;
use stack::{Program, eventually_ok};

use super::rig_itself::{TABLE, apply};

/// This is longer than a builder takes to notice by itself.
const NOTICE_DEADLINE: Duration = Duration::from_secs(45);
const PARTITIONS_BEFORE: i32 = 8;
const PARTITIONS_AFTER: i32 = 4;

/// Events of the items with these ids, spread over so many partitions.
fn items(topic: &str, ids: Range<i64>, partitions: i32) -> Vec<Event> {
    let event = |id: i64| {
        let partition = i32::try_from(id % i64::from(partitions)).expect("a partition");
        Event::of(topic, partition, id, 1, Some(&json!({"name": format!("n{id}")})))
    };
    ids.map(event).collect()
}

/// A rig with one view of one topic of eight partitions. Its builder has applied 5 events of each partition.
async fn rig_with_applied_events(name: &str) -> (ViewRig, String, Program) {
    let rig = ViewRig::new(name).await;
    let topic = rig.topic("item");
    rig.create_topic(&topic, PARTITIONS_BEFORE, &[]).await.expect("a topic");
    rig.write_view("item", TABLE, &apply(&topic));
    let builder = rig.builder("builder");
    builder.start().expect("a start");
    rig.produce(&topic, items(&topic, 0..40, PARTITIONS_BEFORE))
        .await
        .expect("offsets");
    rig.wait_until_applied(&topic)
        .await
        .unwrap_or_else(|err| panic!("{err:#}\n{}", builder.log_tail(30)));
    (rig, topic, builder)
}

async fn make_anew(rig: &ViewRig, topic: &str, partitions: i32) {
    rig.delete_topic(topic).await.expect("a topic that is gone");
    rig.create_topic(topic, partitions, &[]).await.expect("another topic");
}

async fn wait_items(rig: &ViewRig, builder: &Program, from: i64, count: &str) {
    let sql = format!("select count(*) from item where id >= {from}");
    eventually_ok(NOTICE_DEADLINE, "the new topic's events are applied", || async {
        let found = rig.value(&sql).await?;
        ensure!(found == count, "{found} of {count}");
        Ok(())
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}\n{}", builder.log_tail(30)));
}

/// Asserts that every command works while there are positions of missing partitions.
async fn commands_work(rig: &ViewRig, topic: &str, builder: &Program) {
    let said = rig.assert_command(&["status"], view_builder_exit::SUCCESS).await;
    for partition in PARTITIONS_AFTER..PARTITIONS_BEFORE {
        let told = format!("{topic}/{partition} is gone: the topic has 4 partitions now");
        assert!(said.contains(&told), "{said}");
    }
    assert!(said.contains("lag in all: 0, oldest: 0.0 s"), "{said}");
    rig.assert_command(&["pause", "item"], view_builder_exit::SUCCESS).await;
    rig.assert_command(&["resume", "item"], view_builder_exit::SUCCESS)
        .await;
    let replay = ["replay", "--group", rig.name(), "--topic", topic, "--yes"];
    let said = rig.assert_command(&replay, view_builder_exit::SUCCESS).await;
    assert!(said.contains("NEW-OFFSET"), "{said}");
    let said = rig
        .assert_command(&["accept", &format!("{topic}/0")], view_builder_exit::SUCCESS)
        .await;
    assert!(said.contains("made-anew is known"), "{said}");
    let gone = format!("{topic}/7");
    let said = rig.assert_command(&["accept", &gone], view_builder_exit::REFUSED).await;
    assert!(said.contains("has nothing to accept"), "{said}");
    let said = rig
        .assert_command(&["accept", &gone, "--from", "beginning"], view_builder_exit::REFUSED)
        .await;
    assert!(said.contains("the topic has 4 partitions now"), "{said}");
    rig.assert_command(&["rebuild", "item"], view_builder_exit::SUCCESS)
        .await;
    // The view no longer has what only the former topic had.
    wait_items(rig, builder, 0, "20").await;
    wait_items(rig, builder, 100, "20").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_was_made_anew_with_fewer_partitions_leaves_every_command_working_and_may_grow_again() {
    let (rig, topic, builder) = rig_with_applied_events("fewer_stopped").await;
    builder.stop().await.expect("a clean end");
    make_anew(&rig, &topic, PARTITIONS_AFTER).await;
    rig.produce(&topic, items(&topic, 100..120, PARTITIONS_AFTER))
        .await
        .expect("offsets");
    builder.start().expect("a start");
    wait_items(&rig, &builder, 100, "20").await;
    assert_eq!(rig.value("select count(*) from item").await.expect("a count"), "60");
    builder.wait_ready(DEADLINE).await.expect("it is ready");
    commands_work(&rig, &topic, &builder).await;
    // The new partitions get as many events as the missing ones had, so that no event is after their old positions.
    builder.stop().await.expect("a clean end");
    make_anew(&rig, &topic, PARTITIONS_BEFORE).await;
    rig.produce(&topic, items(&topic, 200..240, PARTITIONS_BEFORE))
        .await
        .expect("offsets");
    builder.start().expect("a start");
    wait_items(&rig, &builder, 200, "40").await;
    let said = rig.assert_command(&["status"], view_builder_exit::SUCCESS).await;
    assert!(!said.contains("gone"), "{said}");
    builder.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_made_anew_with_fewer_partitions_under_a_running_builder_is_applied() {
    let (rig, topic, builder) = rig_with_applied_events("fewer_running").await;
    make_anew(&rig, &topic, PARTITIONS_AFTER).await;
    rig.produce(&topic, items(&topic, 100..140, PARTITIONS_AFTER))
        .await
        .expect("offsets");
    wait_items(&rig, &builder, 100, "40").await;
    builder.wait_ready(NOTICE_DEADLINE).await.expect("it is ready");
    let said = rig.assert_command(&["status"], view_builder_exit::SUCCESS).await;
    assert!(
        said.contains(&format!("{topic}/7 is gone: the topic has 4 partitions now")),
        "{said}"
    );
    builder.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_was_paused_and_is_gone_asks_nobody_for_anything() {
    let (rig, topic, builder) = rig_with_applied_events("fewer_paused").await;
    builder.stop().await.expect("a clean end");
    rig.produce(&topic, items(&topic, 40..80, PARTITIONS_BEFORE))
        .await
        .expect("offsets");
    rig.delete_records_before(&topic, 7, 8)
        .await
        .expect("records that are gone");
    builder.start().expect("a start");
    let place = format!("{topic}/7");
    eventually_ok(DEADLINE, "the partition is paused", || async {
        let (status, text) = rig.readiness(&builder).await?;
        ensure!(
            status == 503 && text.contains(&format!("{place} is paused: ")),
            "{text}"
        );
        Ok(())
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}"));
    rig.assert_command(&["status"], view_builder_exit::PARTITION_PAUSED)
        .await;
    make_anew(&rig, &topic, PARTITIONS_AFTER).await;
    rig.produce(&topic, items(&topic, 100..140, PARTITIONS_AFTER))
        .await
        .expect("offsets");
    wait_items(&rig, &builder, 100, "40").await;
    builder.wait_ready(NOTICE_DEADLINE).await.expect("it is ready");
    let said = rig.assert_command(&["status"], view_builder_exit::SUCCESS).await;
    assert!(!said.contains("is paused"), "{said}");
    builder.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeping_partitions_that_are_gone_is_caught() {
    let (rig, topic, builder) = rig_with_applied_events("fewer_kept").await;
    builder.stop().await.expect("a clean end");
    make_anew(&rig, &topic, PARTITIONS_AFTER).await;
    rig.produce(&topic, items(&topic, 100..120, PARTITIONS_AFTER))
        .await
        .expect("offsets");
    builder.start().expect("a start");
    wait_items(&rig, &builder, 100, "20").await;
    for (arguments, told) in [
        (&["rebuild", "item"][..], "is not there in kafka"),
        (&["status"][..], "kafka does not tell of all partitions"),
    ] {
        let command = rig.faulty_builder("command").command_of("gone", arguments);
        let command = command.env("VIEW_BUILDER_BUG", "KeepGonePartitions");
        command.start().expect("a start");
        let status = command.exited(DEADLINE).await.expect("an end");
        let said = command.log_text();
        assert!(
            status.code() == Some(1) && said.contains(told),
            "{arguments:?}: {status}: {said}"
        );
    }
    builder.stop().await.expect("a clean end");
}
