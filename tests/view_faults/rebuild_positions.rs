//! A rebuild gives a view exactly what it had, wherever the positions are: somebody wants a replay, a replay is running or comes later, a builder
//! adds a view, or the group was set back in Kafka. A reader looks all the time.

use std::time::Duration;

use anyhow::{Context, ensure};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rig::view_rig::{DEADLINE, Event};
use rig::{ViewRig, view_builder_exit};
use serde_json::json;
use stack::{Program, eventually_ok};

use super::item_reader::ItemReader;
use super::rig_itself::{TABLE, apply};

pub(crate) const ITEMS: i64 = 200;
const VERSIONS: i64 = 3;
const PARTITIONS: i32 = 2;
const BUG: &str = "VIEW_BUILDER_BUG";
/// Every item with its version.
pub(crate) const CONTENT: &str =
    "select coalesce(string_agg(id || ':' || version, ' ' order by id), 'nothing') from item";

pub(crate) fn item(topic: &str, id: i64, version: i64) -> Event {
    let entity = json!({"name": format!("n{id}-{version}")});
    Event::of(topic, (id % i64::from(PARTITIONS)) as i32, id, version, Some(&entity))
}

/// A rig whose builder has applied every version of every item, the older versions first, and was stopped.
pub(crate) async fn rig_with_applied_versions(name: &str) -> (ViewRig, String) {
    let rig = ViewRig::new(name).await;
    let topic = rig.topic("item");
    rig.create_topic(&topic, PARTITIONS, &[]).await.expect("a topic");
    rig.write_view("item", TABLE, &apply(&topic));
    let events = (1..=VERSIONS).flat_map(|version| (1..=ITEMS).map(move |id| (id, version)));
    let events = events.map(|(id, version)| item(&topic, id, version));
    rig.produce(&topic, events).await.expect("offsets");
    apply_all(&rig, &topic).await;
    (rig, topic)
}

/// Starts a builder, waits until it has applied everything in the topic, and stops it.
pub(crate) async fn apply_all(rig: &ViewRig, topic: &str) {
    let builder = rig.builder("builder");
    builder.start().expect("a start");
    let done = rig.wait_until_applied(topic).await;
    done.unwrap_or_else(|err| panic!("{err:#}\n{}", builder.log_tail(20)));
    builder.stop().await.expect("a clean end");
}

/// Runs a rebuild with this planted bug, or without one. Returns its exit code and what it said.
pub(crate) async fn rebuild(rig: &ViewRig, view: &str, bug: &str, flags: &[&str]) -> (Option<i32>, String) {
    let arguments = [&["rebuild", view], flags].concat();
    let program = if bug.is_empty() {
        rig.builder("rebuild")
    } else {
        rig.faulty_builder("rebuild").env(BUG, bug)
    };
    let command = program.command_of(&format!("rebuild-{view}-{bug}"), &arguments);
    let before = command.log_text().len();
    command.start().expect("a start");
    let status = command.exited(DEADLINE).await;
    let said = command.log_text()[before..].to_owned();
    let status = status.unwrap_or_else(|err| panic!("{err:#}\n{said}"));
    (status.code(), said)
}

async fn order_replay(rig: &ViewRig, topic: &str) {
    let replay = ["replay", "--group", rig.name(), "--topic", topic, "--yes"];
    rig.assert_command(&replay, view_builder_exit::SUCCESS).await;
}

/// Starts a builder that applies some small batches and dies.
async fn apply_a_part(rig: &ViewRig, topic: &str) {
    let hits = rig.logs().join("part-hits");
    let _ = std::fs::remove_file(&hits);
    let builder = rig
        .faulty_builder("part")
        .env("BATCH_ROWS", "20")
        .env("VIEW_BUILDER_FAILPOINT", "batch.before=kill@4")
        .env("VIEW_BUILDER_FAILPOINT_HITS", &hits.to_string_lossy());
    builder.start().expect("a start");
    builder.exited(DEADLINE).await.expect("it dies");
    let position = format!("select sum(coalesce(next_offset, 0)) from view_positions where topic = '{topic}'");
    let position: i64 = rig
        .value(&position)
        .await
        .expect("positions")
        .parse()
        .expect("a number");
    let all = ITEMS * VERSIONS;
    assert!(
        0 < position && position < all,
        "{position} of {all}\n{}",
        builder.log_tail(20)
    );
}

/// Rebuilds the view, and lets a builder apply again what it wants to. The view must be as it was after both.
///
/// # Errors
/// It is not, or the reader has seen another state.
async fn check_rebuild(rig: &ViewRig, topic: &str, bug: &str) -> anyhow::Result<()> {
    let before = rig.value(CONTENT).await?;
    let reader = ItemReader::start(rig).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let (code, said) = rebuild(rig, "item", bug, &[]).await;
    ensure!(code == Some(0), "{code:?} {said}");
    ensure!(rig.value(CONTENT).await? == before, "rebuilt, it is another one");
    apply_all(rig, topic).await;
    ensure!(rig.value(CONTENT).await? == before, "applied again, it is another one");
    reader.end()
}

async fn assert_rebuild_changes_nothing(rig: &ViewRig, topic: &str) {
    let exact = check_rebuild(rig, topic, "").await;
    exact.unwrap_or_else(|err| panic!("{err:#}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_after_a_replay_was_ordered_gives_what_the_view_has_had() {
    let (rig, topic) = rig_with_applied_versions("replay_then_rebuild").await;
    order_replay(&rig, &topic).await;
    assert_rebuild_changes_nothing(&rig, &topic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_in_the_middle_of_a_replay_gives_what_the_view_has_had() {
    let (rig, topic) = rig_with_applied_versions("rebuild_within_replay").await;
    order_replay(&rig, &topic).await;
    apply_a_part(&rig, &topic).await;
    assert_rebuild_changes_nothing(&rig, &topic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_while_a_builder_adds_another_view_gives_what_the_view_has_had() {
    let (rig, topic) = rig_with_applied_versions("rebuild_beside_new_view").await;
    let (table, statement) = (
        TABLE.replace("item", "thing"),
        apply(&topic).replace("into item", "into thing"),
    );
    rig.write_view("thing", &table, &statement);
    apply_a_part(&rig, &topic).await;
    let things = "select count(*) from thing where version = 3";
    assert_eq!(rig.value(things).await.expect("a count"), "0");
    // A rebuild makes the new view complete at once.
    let (code, said) = rebuild(&rig, "thing", "", &[]).await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(rig.value(things).await.expect("a count"), ITEMS.to_string());
    assert_rebuild_changes_nothing(&rig, &topic).await;
    assert_eq!(rig.value(things).await.expect("a count"), ITEMS.to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_after_the_group_was_set_back_in_kafka_gives_what_the_view_has_had() {
    let (rig, topic) = rig_with_applied_versions("group_set_back").await;
    let group_offsets = format!("select count(group_offset)::text from view_positions where topic = '{topic}'");
    let noted = async || {
        let count: i32 = rig.value(&group_offsets).await?.parse()?;
        ensure!(count == PARTITIONS, "{count} group offsets are noted");
        Ok(())
    };
    let builder = rig.builder("builder");
    builder.start().expect("a start");
    // The offsets of the builder before are noted already.
    builder.wait_ready(DEADLINE).await.expect("it is ready");
    eventually_ok(DEADLINE, "the group's offsets are noted", noted)
        .await
        .unwrap_or_else(|err| panic!("{err:#}"));
    builder.stop().await.expect("a clean end");
    eventually_ok(DEADLINE, "the group is set back", || async {
        set_group_back(&rig, &topic)
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}"));
    apply_a_part(&rig, &topic).await;
    assert_rebuild_changes_nothing(&rig, &topic).await;
}

/// Sets the group's offsets back as Kafka's own tools do. Kafka refuses this while the group has members.
fn set_group_back(rig: &ViewRig, topic: &str) -> anyhow::Result<()> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", rig.servers.kafka.bootstrap_servers())
        .set("group.id", rig.name())
        .create()?;
    let mut offsets = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        offsets.add_partition_offset(topic, partition, Offset::Offset(0))?;
    }
    consumer.commit(&offsets, CommitMode::Sync).context("the group")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_and_discarded_events_stay_out_of_a_rebuild_in_the_middle_of_a_replay() {
    let (rig, topic) = rig_with_applied_versions("letters_within_replay").await;
    let (broken_version, later_version) = (VERSIONS + 1, VERSIONS + 2);
    let broken = |id| Event {
        value: Some("no event".to_owned()),
        ..item(&topic, id, broken_version)
    };
    let later = |id| item(&topic, id, later_version);
    let events = [broken(1), later(1), broken(2), later(2), broken(3)];
    rig.produce(&topic, events).await.expect("offsets");
    apply_all(&rig, &topic).await;
    let id = |key| format!("select min(id) from view_dead_letters where convert_from(key, 'UTF8') = '{key}'");
    for key in [2, 3] {
        let letter = rig.value(&id(key)).await.expect("a letter");
        rig.assert_command(&["dead-letters", "discard", &letter], view_builder_exit::SUCCESS)
            .await;
    }
    let content = rig.value(CONTENT).await.expect("the view");
    assert!(content.starts_with("1:3 2:5 3:3 4:3"), "{content}");
    order_replay(&rig, &topic).await;
    apply_a_part(&rig, &topic).await;
    assert_rebuild_changes_nothing(&rig, &topic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rebuilds_and_replays_in_turns_while_builders_run_are_not_seen() {
    let (rig, topic) = rig_with_applied_versions("rebuilds_and_replays").await;
    let builder = rig.builder("builder").env("BATCH_ROWS", "10");
    builder.start().expect("a start");
    builder.wait_ready(DEADLINE).await.expect("it is ready");
    let reader = ItemReader::start(&rig).await;
    let moved = format!("select coalesce(min(next_offset), 0) > 0 from view_positions where topic = '{topic}'");
    for turn in 0..4 {
        eventually_ok(DEADLINE, "there is something to set back", || async {
            ensure!(rig.value(&moved).await? == "t", "every position is null or 0");
            Ok(())
        })
        .await
        .unwrap_or_else(|err| panic!("{err:#}"));
        order_replay(&rig, &topic).await;
        rig.produce(&topic, (1..=ITEMS).map(|id| item(&topic, id, VERSIONS + 1 + turn)))
            .await
            .expect("offsets");
        let (code, said) = rebuild(&rig, "item", "", &[]).await;
        assert_eq!(code, Some(0), "{said}");
    }
    rig.wait_until_applied(&topic)
        .await
        .unwrap_or_else(|err| panic!("{err:#}"));
    let all = format!("select count(*) from item where version = {}", VERSIONS + 4);
    assert_eq!(rig.value(&all).await.expect("a count"), ITEMS.to_string());
    reader.end().unwrap_or_else(|err| panic!("{err:#}"));
    builder.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filling_up_to_the_position_alone_is_caught() {
    let (rig, topic) = rig_with_applied_versions("bug_fill_to_position").await;
    order_replay(&rig, &topic).await;
    let exact = check_rebuild(&rig, &topic, "FillToPosition").await;
    let found = exact.expect_err("the bug goes unnoticed").to_string();
    assert_eq!(found, "rebuilt, it is another one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_views_are_rebuilt_at_once() {
    let (rig, topic) = rig_with_applied_versions("two_rebuilds").await;
    let (table, statement) = (
        TABLE.replace("item", "thing"),
        apply(&topic).replace("into item", "into thing"),
    );
    rig.write_view("thing", &table, &statement);
    apply_all(&rig, &topic).await;
    let builder: Program = rig.builder("builder");
    builder.start().expect("a start");
    let reader = ItemReader::start(&rig).await;
    let (item, thing) = tokio::join!(rebuild(&rig, "item", "", &[]), rebuild(&rig, "thing", "", &[]));
    for (code, said) in [item, thing] {
        assert_eq!(code, Some(0), "{said}");
    }
    for view in ["item", "thing"] {
        let all = format!("select count(*) from {view} where version = {VERSIONS}");
        assert_eq!(rig.value(&all).await.expect("a count"), ITEMS.to_string());
    }
    reader.end().unwrap_or_else(|err| panic!("{err:#}"));
    builder.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_is_not_dropped_while_it_is_rebuilt() {
    let (rig, _) = rig_with_applied_versions("drop_within_rebuild").await;
    // The rebuild waits until the second file exists.
    let (hits, may_go_on) = (rig.logs().join("hits"), rig.logs().join("go"));
    let command = rig
        .faulty_builder("rebuild")
        .env(
            "VIEW_BUILDER_FAILPOINT",
            &format!("rebuild.filled=until:{}@1", may_go_on.display()),
        )
        .env("VIEW_BUILDER_FAILPOINT_HITS", &hits.to_string_lossy())
        .command_of("rebuild-held", &["rebuild", "item"]);
    command.start().expect("a start");
    eventually_ok(DEADLINE, "the rebuild is held", || async {
        ensure!(hits.exists(), "not yet");
        Ok(())
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}\n{}", command.log_tail(20)));
    let said = rig
        .assert_command(&["drop", "item", "--yes"], view_builder_exit::REFUSED)
        .await;
    assert!(said.contains("another rebuild of item is under way"), "{said}");
    std::fs::write(&may_go_on, "").expect("a file");
    let status = command.exited(DEADLINE).await.expect("an end");
    assert!(status.success(), "{}", command.log_tail(20));
}

/// After a topic was made anew, an operator deletes the rows of its positions. A generation that was begun before has events of the former topic.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generation_that_has_more_than_the_live_view_is_not_gone_on_with() {
    let (rig, topic) = rig_with_applied_versions("positions_deleted").await;
    let before = rig.value(CONTENT).await.expect("the view");
    let killed = rig
        .faulty_builder("rebuild")
        .env("VIEW_BUILDER_FAILPOINT", "rebuild.filled=kill@1")
        .env(
            "VIEW_BUILDER_FAILPOINT_HITS",
            &rig.logs().join("hits").to_string_lossy(),
        )
        .command_of("rebuild-killed", &["rebuild", "item"]);
    killed.start().expect("a start");
    killed.exited(DEADLINE).await.expect("it dies");
    rig.query("delete from view_positions where partition = 1")
        .await
        .expect("a deletion");
    let (code, said) = rebuild(&rig, "item", "", &[]).await;
    assert_eq!(code, Some(view_builder_exit::REFUSED), "{said}");
    assert!(
        said.contains(&format!(
            "has events of {topic}/1 up to offset {}",
            ITEMS * VERSIONS / i64::from(PARTITIONS)
        )),
        "{said}"
    );
    assert_eq!(rig.value(CONTENT).await.expect("the view"), before);
    let (code, said) = rebuild(&rig, "item", "", &["--abandon"]).await;
    assert_eq!(code, Some(0), "{said}");
    apply_all(&rig, &topic).await;
    assert_rebuild_changes_nothing(&rig, &topic).await;
}
