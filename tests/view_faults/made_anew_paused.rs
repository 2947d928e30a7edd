//! A topic was made anew while a view or a partition was paused.

use anyhow::ensure;
use rig::view_rig::{DEADLINE, Event};
use rig::{ViewRig, view_builder_exit};
use serde_json::json;
use stack::{Program, eventually_ok};

use super::rig_itself::{TABLE, apply};

const PARTITIONS: i32 = 2;

fn items(topic: &str, ids: std::ops::Range<i64>) -> Vec<Event> {
    let event = |id: i64| Event::of(topic, (id % 2) as i32, id, 1, Some(&json!({"name": format!("n{id}")})));
    ids.map(event).collect()
}

/// Starts the builder, which applies 10 events of each partition.
async fn start_with_ten_events_a_partition(rig: &ViewRig, topic: &str, builder: &Program) {
    rig.create_topic(topic, PARTITIONS, &[]).await.expect("a topic");
    rig.write_view("item", TABLE, &apply(topic));
    builder.start().expect("a start");
    produce(rig, topic, builder, 0..20).await;
}

/// Produces these items, and waits until the positions are after them.
async fn produce(rig: &ViewRig, topic: &str, builder: &Program, ids: std::ops::Range<i64>) {
    rig.produce(topic, items(topic, ids)).await.expect("offsets");
    rig.wait_until_applied(topic)
        .await
        .unwrap_or_else(|err| panic!("{err:#}\n{}", builder.log_tail(30)));
}

/// The view was paused after 10 events of each partition. Then the topic got 10 more events. While no builder ran, it was made anew with 30 events,
/// so that its offsets do not show the change.
async fn paused_and_made_anew(rig: &ViewRig, topic: &str, builder: &Program) {
    start_with_ten_events_a_partition(rig, topic, builder).await;
    rig.assert_command(&["pause", "item"], view_builder_exit::SUCCESS).await;
    produce(rig, topic, builder, 20..40).await;
    builder.stop().await.expect("a clean end");
    rig.delete_topic(topic).await.expect("a topic that is gone");
    rig.create_topic(topic, PARTITIONS, &[]).await.expect("another topic");
    rig.produce(topic, items(topic, 100..160)).await.expect("offsets");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_that_lacks_events_of_a_former_topic_is_not_resumed_before_a_builder_knows_of_the_new_one_nor_after() {
    let rig = ViewRig::new("anew_resume").await;
    let (topic, builder) = (rig.topic("item"), rig.builder("builder"));
    paused_and_made_anew(&rig, &topic, &builder).await;
    let refused = "was made anew, and the view lacks events of the topic of before";
    let said = rig
        .assert_command(&["resume", "item"], view_builder_exit::REFUSED)
        .await;
    assert!(
        said.contains(refused) && said.contains("view-builder rebuild item"),
        "{said}"
    );
    builder.start().expect("a start");
    rig.wait_until_applied(&topic)
        .await
        .unwrap_or_else(|err| panic!("{err:#}"));
    let said = rig
        .assert_command(&["resume", "item"], view_builder_exit::REFUSED)
        .await;
    assert!(said.contains(refused), "{said}");
    rig.assert_command(&["rebuild", "item"], view_builder_exit::SUCCESS)
        .await;
    assert_eq!(rig.value("select count(*) from item").await.expect("a count"), "60");
    builder.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resuming_by_the_topics_name_is_caught() {
    let rig = ViewRig::new("anew_resume_name").await;
    let (topic, builder) = (rig.topic("item"), rig.builder("builder"));
    paused_and_made_anew(&rig, &topic, &builder).await;
    let command = rig
        .faulty_builder("command")
        .command_of("resume", &["resume", "item"])
        .env("VIEW_BUILDER_BUG", "KnowTopicsByName");
    command.start().expect("a start");
    let status = command.exited(DEADLINE).await.expect("an end");
    assert_eq!(status.code(), Some(0), "it takes the new topic for the one of before");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_that_lacks_nothing_of_a_former_topic_is_resumed_and_has_the_new_one() {
    let rig = ViewRig::new("anew_resume_all").await;
    let (topic, builder) = (rig.topic("item"), rig.builder("builder"));
    start_with_ten_events_a_partition(&rig, &topic, &builder).await;
    rig.assert_command(&["pause", "item"], view_builder_exit::SUCCESS).await;
    builder.stop().await.expect("a clean end");
    rig.delete_topic(&topic).await.expect("a topic that is gone");
    rig.create_topic(&topic, PARTITIONS, &[]).await.expect("another topic");
    rig.produce(&topic, items(&topic, 100..160)).await.expect("offsets");
    rig.assert_command(&["resume", "item"], view_builder_exit::SUCCESS)
        .await;
    builder.start().expect("a start");
    rig.wait_until_applied(&topic)
        .await
        .unwrap_or_else(|err| panic!("{err:#}"));
    assert_eq!(rig.value("select count(*) from item").await.expect("a count"), "80");
    builder.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_that_lacks_events_of_a_partition_that_came_after_its_pause_is_not_resumed() {
    let rig = ViewRig::new("anew_resume_grown").await;
    let (topic, builder) = (rig.topic("item"), rig.builder("builder"));
    start_with_ten_events_a_partition(&rig, &topic, &builder).await;
    rig.assert_command(&["pause", "item"], view_builder_exit::SUCCESS).await;
    // This partition was added after the pause, so nothing is noted for it.
    rig.query("delete from view_pause_positions where partition = 1")
        .await
        .expect("a deletion");
    builder.stop().await.expect("a clean end");
    rig.delete_topic(&topic).await.expect("a topic that is gone");
    rig.create_topic(&topic, PARTITIONS, &[]).await.expect("another topic");
    rig.produce(&topic, items(&topic, 100..160)).await.expect("offsets");
    builder.start().expect("a start");
    rig.wait_until_applied(&topic)
        .await
        .unwrap_or_else(|err| panic!("{err:#}"));
    let said = rig
        .assert_command(&["resume", "item"], view_builder_exit::REFUSED)
        .await;
    assert!(
        said.contains("/1 was made anew, and the view lacks events of the topic of before"),
        "{said}"
    );
    builder.stop().await.expect("a clean end");
}

/// A second view of the same topic. It is new when the partition is paused.
fn other_apply(topic: &str) -> String {
    apply(topic)
        .replace("Every item", "Every other item")
        .replace("insert into item as known", "insert into other as known")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_that_comes_while_a_broker_tells_of_a_former_topic_gets_the_events_from_before() {
    let rig = ViewRig::new("anew_new_view").await;
    let (topic, builder) = (rig.topic("item"), rig.builder("builder"));
    start_with_ten_events_a_partition(&rig, &topic, &builder).await;
    builder.stop().await.expect("a clean end");
    // This is as if a broker had answered that does not know the new topic yet.
    let successor =
        "update view_positions set topic_id = 'successor', former_topic_ids = array[topic_id] where partition = 0";
    rig.query(successor).await.expect("an update");
    builder.start().expect("a start");
    let is_paused = || async {
        let (status, text) = rig.readiness(&builder).await?;
        ensure!(status == 503 && text.contains("/0 is paused: "), "{text}");
        Ok(())
    };
    eventually_ok(DEADLINE, "the partition is paused", is_paused)
        .await
        .unwrap_or_else(|err| panic!("{err:#}"));
    builder.stop().await.expect("a clean end");
    let table = TABLE.replace("exists item", "exists other");
    rig.write_view("other", &table, &other_apply(&topic));
    builder.start().expect("a start");
    eventually_ok(DEADLINE, "the new view has the other partition", || async {
        let count = rig.value("select count(*) from other").await?;
        ensure!(count == "10", "{count}");
        Ok(())
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}\n{}", builder.log_tail(30)));
    // Now the broker knows the new topic.
    let knows = "update view_positions set topic_id = former_topic_ids[1], former_topic_ids = '{}', epoch = epoch + 1 where partition = 0";
    rig.query(knows).await.expect("an update");
    eventually_ok(DEADLINE, "the new view has all", || async {
        let count = rig.value("select count(*) from other").await?;
        ensure!(count == "20", "{count}");
        Ok(())
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}\n{}", builder.log_tail(30)));
    builder.stop().await.expect("a clean end");
}
