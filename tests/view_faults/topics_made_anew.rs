//! A topic that is deleted and made anew has the same name, other events, and offsets that begin at 0 again.

use std::time::Duration;

use anyhow::ensure;
use rig::metrics::Metrics;
use rig::view_rig::{DEADLINE, Event};
use rig::{ViewRig, view_builder_exit};
use serde_json::json;
use stack::{Program, eventually_ok};

use super::rig_itself::{TABLE, apply};

/// This is longer than a builder takes to notice by itself.
const NOTICE_DEADLINE: Duration = Duration::from_secs(45);
const PARTITIONS: i32 = 2;

/// A rig with one view of one topic.
async fn rig(name: &str) -> (ViewRig, String) {
    let rig = ViewRig::new(name).await;
    let topic = rig.topic("item");
    rig.create_topic(&topic, PARTITIONS, &[]).await.expect("a topic");
    rig.write_view("item", TABLE, &apply(&topic));
    (rig, topic)
}

fn builder(rig: &ViewRig, bug: &str) -> Program {
    if bug.is_empty() {
        rig.builder("builder")
    } else {
        rig.faulty_builder("builder").env("VIEW_BUILDER_BUG", bug)
    }
}

/// Events of the items with these ids, half of them in each partition.
fn items(topic: &str, ids: std::ops::Range<i64>) -> Vec<Event> {
    let event = |id: i64| Event::of(topic, (id % 2) as i32, id, 1, Some(&json!({"name": format!("n{id}")})));
    ids.map(event).collect()
}

async fn make_anew(rig: &ViewRig, topic: &str) {
    rig.delete_topic(topic).await.expect("a topic that is gone");
    rig.create_topic(topic, PARTITIONS, &[]).await.expect("another topic");
}

/// How many items of the new topic there are. Their ids begin at 100.
async fn new_items(rig: &ViewRig) -> String {
    rig.value("select count(*) from item where id >= 100")
        .await
        .expect("a count")
}

async fn wait_for_new_items(rig: &ViewRig, builder: &Program, count: &str) {
    let all = eventually_ok(NOTICE_DEADLINE, "the new topic's events are applied", || async {
        let found = rig.value("select count(*) from item where id >= 100").await?;
        ensure!(found == count, "{found} of {count}");
        Ok(())
    });
    all.await
        .unwrap_or_else(|err| panic!("{err:#}\n{}", builder.log_tail(30)));
}

async fn wait_until_applied(rig: &ViewRig, topic: &str, builder: &Program) {
    rig.wait_until_applied(topic)
        .await
        .unwrap_or_else(|err| panic!("{err:#}\n{}", builder.log_tail(30)));
}

/// The view has 15 events of each partition. Then the topic is made anew with 20 events in each, while no builder runs. Returns a builder that was
/// started afterwards.
async fn made_anew_while_stopped(rig: &ViewRig, topic: &str, bug: &str) -> Program {
    let builder = builder(rig, bug);
    builder.start().expect("a start");
    rig.produce(topic, items(topic, 0..30)).await.expect("offsets");
    wait_until_applied(rig, topic, &builder).await;
    builder.stop().await.expect("a clean end");
    make_anew(rig, topic).await;
    rig.produce(topic, items(topic, 100..140)).await.expect("offsets");
    builder.start().expect("a start");
    builder
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_was_made_anew_while_no_builder_ran_is_applied_from_its_beginning_and_that_is_told() {
    let (rig, topic) = rig("anew_stopped").await;
    let builder = made_anew_while_stopped(&rig, &topic, "").await;
    wait_for_new_items(&rig, &builder, "40").await;
    assert_eq!(rig.value("select count(*) from item").await.expect("a count"), "70");
    let told = format!("{topic}/1: the topic was deleted and made anew");
    eventually_ok(DEADLINE, "the warning", || async {
        let (status, text) = rig.readiness(&builder).await?;
        ensure!(status == 200 && text.contains(&told), "{status}: {text}");
        let metrics = Metrics::of(&builder).await?;
        let count = metrics.value("view_partition_notices", Some(("notice", "made-anew")));
        ensure!((count - 2.0).abs() < 0.1, "{count}");
        Ok(())
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}"));
    let (code, said) = rig.command(&["status"]).await.expect("a status");
    assert!(code == Some(0) && said.contains(&told), "{said}");
    for partition in 0..PARTITIONS {
        let place = format!("{topic}/{partition}");
        rig.assert_command(&["accept", &place], view_builder_exit::SUCCESS)
            .await;
    }
    eventually_ok(DEADLINE, "no warning", || async {
        let (_, text) = rig.readiness(&builder).await?;
        ensure!(!text.contains("made anew"), "{text}");
        Ok(())
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}"));
    // From now on the builder knows the new topic, so another start repeats nothing.
    let epoch_of_breaks = "select sum(breaks) from view_positions";
    builder.stop().await.expect("a clean end");
    builder.start().expect("a start");
    rig.produce(&topic, items(&topic, 140..142)).await.expect("offsets");
    wait_for_new_items(&rig, &builder, "42").await;
    assert_eq!(rig.value(epoch_of_breaks).await.expect("a sum"), "2");
    builder.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn knowing_topics_by_name_is_caught() {
    let (rig, topic) = rig("anew_by_name").await;
    let builder = made_anew_while_stopped(&rig, &topic, "KnowTopicsByName").await;
    wait_until_applied(&rig, &topic, &builder).await;
    assert_eq!(
        new_items(&rig).await,
        "10",
        "only what lies behind the former positions"
    );
    builder.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_made_anew_under_a_running_builder_is_applied_from_its_beginning() {
    let (rig, topic) = rig("anew_running").await;
    let builder = builder(&rig, "");
    builder.start().expect("a start");
    rig.produce(&topic, items(&topic, 0..30)).await.expect("offsets");
    wait_until_applied(&rig, &topic, &builder).await;
    make_anew(&rig, &topic).await;
    // There are more events than before, so that no position is after the end.
    rig.produce(&topic, items(&topic, 100..150)).await.expect("offsets");
    wait_for_new_items(&rig, &builder, "50").await;
    builder.wait_ready(DEADLINE).await.expect("it is ready");
    builder.stop().await.expect("a clean end");
}

/// A topic gets a record that is not an event, and then an event of the same item, which is parked behind it. Then the topic is made anew with events
/// of that item.
async fn letters_of_a_former_topic(rig: &ViewRig, topic: &str, bug: &str) -> Program {
    let builder = builder(rig, bug);
    builder.start().expect("a start");
    let broken = Event {
        partition: 0,
        key: Some("100".to_owned()),
        value: Some("no json".to_owned()),
    };
    let parked = Event::of(topic, 0, 100, 9, Some(&json!({"name": "former"})));
    rig.produce(topic, [broken, parked]).await.expect("offsets");
    wait_until_applied(rig, topic, &builder).await;
    builder.stop().await.expect("a clean end");
    make_anew(rig, topic).await;
    rig.produce(topic, items(topic, 98..104)).await.expect("offsets");
    builder.start().expect("a start");
    builder
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_of_a_former_topic_hold_up_no_event_of_the_new_one_and_are_still_the_operators() {
    let (rig, topic) = rig("anew_letters").await;
    let builder = letters_of_a_former_topic(&rig, &topic, "").await;
    wait_for_new_items(&rig, &builder, "4").await;
    let said = rig
        .assert_command(&["dead-letters", "list"], view_builder_exit::DEAD_LETTERS)
        .await;
    assert_eq!(said.matches("of a former topic: ").count(), 2, "{said}");
    // `--all` means all letters of current topics. Each letter of a former topic has to be named.
    let (code, said) = rig.command(&["dead-letters", "retry", "--all"]).await.expect("a retry");
    assert!(code == Some(0) && said.contains("no dead letters"), "{said}");
    assert!(
        said.contains("2 letters of topics that were made anew are left alone"),
        "{said}"
    );
    let id = |offset: i64| format!("select id from view_former_dead_letters where record_offset = {offset}");
    let first = rig.value(&id(0)).await.expect("an id");
    let second = rig.value(&id(1)).await.expect("an id");
    let (code, said) = rig.command(&["dead-letters", "retry", &second]).await.expect("a retry");
    assert!(
        code == Some(view_builder_exit::REFUSED) && said.contains(&format!("waits behind {first}")),
        "{said}"
    );
    let (code, said) = rig.command(&["dead-letters", "retry", &first]).await.expect("a retry");
    assert!(
        code == Some(view_builder_exit::DEAD_LETTERS) && said.contains("still dead"),
        "{said}"
    );
    let (code, said) = rig.command(&["dead-letters", "discard", &first]).await.expect("it");
    assert!(code == Some(0) && !said.contains("applied"), "{said}");
    let name = "select name from item where id = 100";
    assert_eq!(rig.value(name).await.expect("a name"), "n100");
    // The operator wants this event, so it is applied with the version that it had in the former topic.
    let (code, said) = rig.command(&["dead-letters", "retry", &second]).await.expect("a retry");
    assert!(code == Some(0) && said.contains("applied"), "{said}");
    assert_eq!(rig.value(name).await.expect("a name"), "former");
    builder.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeping_former_letters_is_caught() {
    let (rig, topic) = rig("anew_keep").await;
    let builder = letters_of_a_former_topic(&rig, &topic, "KeepFormerLetters").await;
    wait_until_applied(&rig, &topic, &builder).await;
    assert_eq!(
        new_items(&rig).await,
        "3",
        "item 100 waits behind a letter of another topic"
    );
    builder.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_that_begins_behind_removed_events_says_so_until_somebody_knows_it() {
    let (rig, topic) = rig("anew_truncated").await;
    rig.produce(&topic, items(&topic, 100..120)).await.expect("offsets");
    rig.delete_records_before(&topic, 0, 4)
        .await
        .expect("records that are gone");
    let builder = builder(&rig, "");
    builder.start().expect("a start");
    wait_for_new_items(&rig, &builder, "16").await;
    let told = format!("the view of {topic}/0 begins at offset 4: ");
    eventually_ok(DEADLINE, "the warning", || async {
        let (status, text) = rig.readiness(&builder).await?;
        ensure!(status == 200 && text.contains(&told), "{status}: {text}");
        let metrics = Metrics::of(&builder).await?;
        let count = metrics.value("view_partition_notices", Some(("notice", "truncated")));
        ensure!((count - 1.0).abs() < 0.1, "{count}");
        Ok(())
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}"));
    assert!(builder.log_text().contains(&told), "{}", builder.log_tail(30));
    let (code, said) = rig.command(&["status"]).await.expect("a status");
    assert!(code == Some(0) && said.contains(&told), "{said}");
    let (code, said) = rig.command(&["accept", &format!("{topic}/0")]).await.expect("it");
    assert!(code == Some(0) && said.contains("truncated is known"), "{said}");
    let (_, said) = rig.command(&["status"]).await.expect("a status");
    assert!(!said.contains(&told), "{said}");
    builder.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_that_was_begun_over_a_former_topic_does_not_go_on_over_the_new_one() {
    let (rig, topic) = rig("anew_rebuild").await;
    let builder = builder(&rig, "");
    builder.start().expect("a start");
    rig.produce(&topic, items(&topic, 0..30)).await.expect("offsets");
    wait_until_applied(&rig, &topic, &builder).await;
    let hits = rig.logs().join("hits");
    let killed = rig
        .faulty_builder("rebuild")
        .command_of("rebuild", &["rebuild", "item"])
        .env("VIEW_BUILDER_FAILPOINT", "rebuild.filled=kill@1")
        .env("VIEW_BUILDER_FAILPOINT_HITS", &hits.to_string_lossy());
    killed.start().expect("a start");
    killed.exited(DEADLINE).await.expect("an end");
    builder.stop().await.expect("a clean end");
    make_anew(&rig, &topic).await;
    rig.produce(&topic, items(&topic, 100..140)).await.expect("offsets");
    builder.start().expect("a start");
    wait_for_new_items(&rig, &builder, "40").await;
    let (code, said) = rig.command(&["rebuild", "item"]).await.expect("a rebuild");
    assert!(
        code == Some(view_builder_exit::REFUSED) && said.contains("view-builder rebuild item --abandon"),
        "{said}"
    );
    assert_eq!(new_items(&rig).await, "40");
    rig.assert_command(&["rebuild", "item", "--abandon"], view_builder_exit::SUCCESS)
        .await;
    rig.assert_command(&["rebuild", "item"], view_builder_exit::SUCCESS)
        .await;
    assert_eq!(new_items(&rig).await, "40");
    builder.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_that_is_not_known_yet_is_written_down_and_one_that_was_replaced_is_not_gone_back_to() {
    let (rig, topic) = rig("anew_ids").await;
    let builder = builder(&rig, "");
    builder.start().expect("a start");
    rig.produce(&topic, items(&topic, 100..120)).await.expect("offsets");
    wait_until_applied(&rig, &topic, &builder).await;
    builder.stop().await.expect("a clean end");
    let known = "select count(*) from view_positions where topic_id is not null and breaks = 0";
    assert_eq!(rig.value(known).await.expect("a count"), "2");
    // An earlier version of view-builder leaves the table like this.
    rig.query("update view_positions set topic_id = null")
        .await
        .expect("an update");
    builder.start().expect("a start");
    rig.produce(&topic, items(&topic, 120..140)).await.expect("offsets");
    wait_for_new_items(&rig, &builder, "40").await;
    assert_eq!(rig.value(known).await.expect("a count"), "2");
    builder.stop().await.expect("a clean end");
    // This is as if a broker had answered that does not know the new topic yet.
    let successor =
        "update view_positions set topic_id = 'successor', former_topic_ids = array[topic_id] where partition = 0";
    rig.query(successor).await.expect("an update");
    builder.start().expect("a start");
    let place = format!("{topic}/0");
    eventually_ok(DEADLINE, "the partition is paused", || async {
        let (status, text) = rig.readiness(&builder).await?;
        let told = format!("{place} is paused: kafka tells of a topic that was made anew since");
        ensure!(status == 503 && text.contains(&told), "{status}: {text}");
        Ok(())
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}\n{}", builder.log_tail(30)));
    let accept = ["accept", &place, "--from", "beginning"];
    rig.assert_command(&accept, view_builder_exit::SUCCESS).await;
    builder.wait_ready(DEADLINE).await.expect("it is ready");
    wait_until_applied(&rig, &topic, &builder).await;
    let ids = "select (select array_agg(distinct topic_id) = array[max(topic_id)] from view_positions)::text || former_topic_ids::text
        from view_positions where partition = 0";
    assert_eq!(rig.value(ids).await.expect("ids"), "true{successor}");
    builder.stop().await.expect("a clean end");
}
