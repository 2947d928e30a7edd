//! The relay knows a topic by its id. A topic that was deleted and made anew has the same name, but is another topic without the events.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rig::rig::PARTITIONS;
use rig::servers::{kafka_options, postgres_options};
use rig::{Rig, Servers, relay_exit};
use stack::eventually;

use super::super::tampering::{
    DEADLINE, accept, assert_ends, assert_refused, checkpoints, ids, kill_and_drop_slot, metric, published_and_stopped,
    times_published, wait_until_confirmed, write_checkpoint,
};

use crate::relay::ways_out::{assert_goes_on, run_recover};

/// Kafka writes the id of a topic as so many characters.
const TOPIC_ID_CHARS: usize = 22;

pub(super) fn admin(rig: &Rig) -> AdminClient<DefaultClientContext> {
    let servers = rig.servers.kafka.bootstrap_servers();
    let admin = ClientConfig::new().set("bootstrap.servers", &servers).create();
    admin.expect("a client")
}

async fn create(rig: &Rig, topic: &NewTopic<'_>) {
    let admin = admin(rig);
    let created = admin.create_topics([topic], &AdminOptions::new()).await;
    assert!(created.expect("an answer")[0].is_ok(), "the topic is made");
    eventually(DEADLINE, "the broker knows the topic", || async {
        is_known(&admin, topic.name)?.then_some(())
    })
    .await;
}

/// Deletes a topic, and waits until the broker knows of it.
pub(super) async fn delete(rig: &Rig, topic: &str) {
    let admin = admin(rig);
    let deleted = admin.delete_topics(&[topic], &AdminOptions::new()).await;
    assert!(deleted.expect("an answer")[0].is_ok(), "{topic} is deleted");
    eventually(DEADLINE, "the broker knows that the topic is gone", || async {
        (!is_known(&admin, topic)?).then_some(())
    })
    .await;
}

/// Whether the broker knows partitions of the topic. The broker hears of a deletion a moment after the controller has answered.
fn is_known(admin: &AdminClient<DefaultClientContext>, topic: &str) -> Option<bool> {
    let known = admin.inner().fetch_metadata(None, DEADLINE).ok()?;
    Some(known.topics().iter().any(|known| known.name() == topic))
}

/// Deletes a topic and makes it anew.
async fn make_anew(rig: &Rig, topic: &str, partitions: i32) {
    delete(rig, topic).await;
    create(
        rig,
        &NewTopic::new(topic, partitions, TopicReplication::Fixed(1)).set("cleanup.policy", "compact"),
    )
    .await;
}

async fn set(rig: &Rig, topic: &str, settings: &[(&str, &str)]) {
    let servers = rig.servers.kafka.bootstrap_servers();
    let set = rig::topic_settings::set(&servers, topic, settings).await;
    set.unwrap_or_else(|err| panic!("{err:#}"));
}

/// Runs `outbox-relay check`. Asserts that it finds a problem and says `says`.
async fn assert_check_says(rig: &Rig, says: &str) {
    let logged = rig.relay.log_text().len();
    let status = rig.relay.run_for_status(&["check"]).await.expect("a check");
    let log = rig.relay.log_text()[logged..].to_owned();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains(says), "it says `{says}`: {log}");
}

fn topic_ids(checkpoint: &rig::Record) -> serde_json::Value {
    let value = checkpoint.value.as_deref().expect("a value");
    let checkpoint: serde_json::Value = serde_json::from_slice(value).expect("JSON");
    checkpoint["lineage"]["topicIds"].clone()
}

#[tokio::test]
async fn a_topic_that_was_made_anew_stops_the_relay_and_recover_publishes_what_it_lacks() {
    let rig = published_and_stopped("topic_anew").await;
    make_anew(&rig, &rig.topic(), PARTITIONS).await;
    rig.insert_each(2).await;
    let says = [
        "was deleted and made anew",
        "outbox-relay recover",
        "--accept-topic-recreated",
    ];
    rig.assert_stops(relay_exit::TOPIC_DELETED, &says).await;
    assert_check_says(&rig, "was deleted and made anew").await;
    run_recover(&rig, &[]).await;
    assert_goes_on(&rig).await;
}

#[tokio::test]
async fn a_relay_that_knows_topics_by_their_names_goes_on_without_what_is_gone() {
    let rig = published_and_stopped("topic_by_name").await;
    make_anew(&rig, &rig.topic(), PARTITIONS).await;
    let before = ids(&rig).await;
    let relay = rig
        .relay
        .with_binary("outbox-relay-faults")
        .env("OUTBOX_RELAY_BUG", "KnowTopicsByName");
    relay.start().expect("a start");
    rig.insert_each(1).await;
    let ids = ids(&rig).await;
    let expected: Vec<usize> = ids.iter().map(|id| usize::from(!before.contains(id))).collect();
    assert_eq!(times_published(&rig, &ids, &ids[before.len()..]).await, expected);
    relay.kill_hard().await;
    rig.finish().await.expect("an end");
}

#[tokio::test]
async fn a_topic_that_was_deleted_stops_the_relay_and_recover_makes_it_and_publishes_what_it_had() {
    let rig = published_and_stopped("data_topic_deleted").await;
    delete(&rig, &rig.topic()).await;
    rig.insert_each(2).await;
    rig.assert_stops(relay_exit::TOPIC_DELETED, &["was deleted", "outbox-relay recover"])
        .await;
    run_recover(&rig, &[]).await;
    assert_goes_on(&rig).await;
}

#[tokio::test]
async fn a_topic_that_is_made_anew_while_the_relay_runs_stops_it_and_is_accepted_as_it_is() {
    let rig = Rig::initialised("topic_anew_live").await;
    rig.start().await;
    rig.insert_each(5).await;
    rig.assert_exactly_once().await;
    make_anew(&rig, &rig.topic(), PARTITIONS).await;
    rig.insert_each(3).await;
    assert_ends(&rig, relay_exit::TOPIC_DELETED, &["was deleted and made anew"]).await;
    rig.wait_until_slot_is_free().await;
    accept(&rig, &["--accept-topic-recreated"]).await;
    rig.start().await;
    let ids = ids(&rig).await;
    assert_eq!(times_published(&rig, &ids, &ids[5..]).await, [0, 0, 0, 0, 0, 1, 1, 1]);
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_relay_that_looks_at_its_topics_only_at_its_start_goes_on() {
    let wrong = Rig::initialised("topic_unwatched").await;
    let relay = wrong
        .relay
        .with_binary("outbox-relay-faults")
        .env("OUTBOX_RELAY_BUG", "LookAtTopicsOnlyAtStart");
    relay.start().expect("a start");
    wrong.insert_each(5).await;
    wrong.assert_exactly_once().await;
    wait_until_confirmed(&wrong).await;
    make_anew(&wrong, &wrong.topic(), PARTITIONS).await;
    // The right relay starts after that. By the end its watch has found the change, and the watch of the other relay would have found it as well.
    let right = Rig::initialised("topic_watched").await;
    right.start().await;
    make_anew(&right, &right.topic(), PARTITIONS).await;
    assert_ends(&right, relay_exit::TOPIC_DELETED, &["was deleted and made anew"]).await;
    let process = relay.process().expect("it was started");
    assert!(process.exit_status().is_none(), "{}", relay.log_tail(5));
    relay.kill_hard().await;
    for rig in [right, wrong] {
        kill_and_drop_slot(&rig).await;
    }
}

/// It does not matter whether brokers create topics that a client asks for. What was written meanwhile is confirmed only if it is published. So
/// `recover` finds everything that is missing.
async fn a_deleted_topic_stops_the_relay(rig: &Rig) {
    rig.init(&[]).await;
    rig.start().await;
    rig.insert_each(5).await;
    rig.assert_exactly_once().await;
    wait_until_confirmed(rig).await;
    delete(rig, &rig.topic()).await;
    let client = rig.connect().await;
    let insert = rig.insert_statement(1, 7);
    let writes = async {
        loop {
            client.batch_execute(&insert).await.expect("a row");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = assert_ends(rig, relay_exit::TOPIC_DELETED, &["was deleted", "outbox-relay recover"]) => {}
        () = writes => {}
    }
    rig.wait_until_slot_is_free().await;
    run_recover(rig, &[]).await;
    assert_goes_on(rig).await;
}

#[tokio::test]
async fn a_topic_that_is_deleted_while_rows_come_stops_the_relay_and_recover_publishes_what_it_had() {
    a_deleted_topic_stops_the_relay(&Rig::new("topic_deleted_writes").await).await;
    let options = kafka_options().setting("auto.create.topics.enable", "true");
    let servers = Servers::start(postgres_options(), options).await.expect("servers");
    a_deleted_topic_stops_the_relay(&Rig::on(Arc::new(servers), "topic_deleted_auto").await).await;
}

#[tokio::test]
async fn a_checkpoint_topic_that_is_made_anew_while_the_relay_runs_stops_it() {
    let rig = Rig::initialised("checkpoints_anew_live").await;
    rig.start().await;
    rig.insert_each(5).await;
    rig.assert_exactly_once().await;
    wait_until_confirmed(&rig).await;
    make_anew(&rig, &rig.checkpoint_topic(), 1).await;
    assert_ends(
        &rig,
        relay_exit::TOPIC_DELETED,
        &["was deleted and made anew", "--accept-checkpoint-loss"],
    )
    .await;
    rig.wait_until_slot_is_free().await;
    accept(&rig, &["--accept-checkpoint-loss"]).await;
    rig.start().await;
    rig.insert_each(5).await;
    rig.assert_exactly_once().await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn partitions_that_are_added_while_the_relay_runs_stop_it() {
    let rig = Rig::initialised("partitions_live").await;
    rig.start().await;
    rig.insert_each(5).await;
    rig.assert_exactly_once().await;
    let topic = rig.topic();
    let more = NewPartitions::new(&topic, 6);
    let added = admin(&rig).create_partitions([&more], &AdminOptions::new()).await;
    assert!(added.expect("an answer")[0].is_ok(), "partitions are added");
    assert_ends(
        &rig,
        relay_exit::PARTITIONS_CHANGED,
        &["has 6 partitions and had 4", "--accept-partitions"],
    )
    .await;
    rig.wait_until_slot_is_free().await;
    accept(&rig, &["--accept-partitions"]).await;
    rig.start().await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_checkpoint_without_topic_ids_is_gone_on_from_and_has_them_from_then_on() {
    let rig = published_and_stopped("topic_ids_absent").await;
    let last = checkpoints(&rig).await.pop().expect("a checkpoint");
    let ids = topic_ids(&last);
    for topic in [rig.topic(), rig.checkpoint_topic()] {
        assert_eq!(
            ids[&topic].as_str().map(str::len),
            Some(TOPIC_ID_CHARS),
            "{topic} is pinned by its id: {ids}"
        );
    }
    let mut earlier: serde_json::Value = serde_json::from_slice(last.value.as_deref().expect("a value")).expect("JSON");
    let lineage = earlier["lineage"].as_object_mut().expect("a lineage");
    lineage.remove("topicIds").expect("ids");
    write_checkpoint(&rig, Some(earlier.to_string().into_bytes())).await;
    rig.start().await;
    rig.insert_each(2).await;
    rig.assert_exactly_once().await;
    assert_eq!(topic_ids(&checkpoints(&rig).await.pop().expect("a checkpoint")), ids);
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_checkpoint_topic_that_deletes_is_refused_by_init_told_by_check_and_warned_of_by_run() {
    let rig = Rig::new("checkpoints_deleted").await;
    let topic = rig.checkpoint_topic();
    let deletes = [("cleanup.policy", "delete"), ("retention.ms", "60000")];
    let short_lived = NewTopic::new(&topic, 1, TopicReplication::Fixed(1))
        .set(deletes[0].0, deletes[0].1)
        .set(deletes[1].0, deletes[1].1);
    create(&rig, &short_lived).await;
    let cure = format!("--entity-type topics --entity-name {topic} --add-config cleanup.policy=compact");
    rig.insert_each(3).await;
    assert_refused(&rig, &[], relay_exit::TOPIC_UNSAFE, &cure).await;
    rig.insert_each(2).await;
    set(&rig, &topic, &[("cleanup.policy", "compact")]).await;
    rig.init(&[]).await;
    rig.insert_each(2).await;
    set(&rig, &topic, &deletes).await;
    assert_check_says(&rig, &cure).await;
    rig.start().await;
    eventually(Duration::from_secs(30), "the relay warns", || async {
        let is_unsafe = metric(&rig, "relay_checkpoint_topic_unsafe").await == Some(1.0);
        (is_unsafe && rig.relay.log_text().contains("may lose the last checkpoint")).then_some(())
    })
    .await;
    rig.insert_each(2).await;
    let ledger = rig.assert_exactly_once().await;
    assert_eq!(ledger.rows, 9);
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn replicas_that_can_never_be_in_sync_are_warned_of_at_the_start_and_while_the_relay_runs() {
    const SETTINGS_ARE_LOOKED_AT: Duration = Duration::from_secs(90);
    let rig = published_and_stopped("topic_insync").await;
    rig.start().await;
    let servers = rig.servers.kafka.bootstrap_servers();
    let set = rig::topic_settings::set(&servers, &rig.topic(), &[("min.insync.replicas", "2")]).await;
    set.unwrap_or_else(|err| panic!("{err:#}"));
    for start in 0..2 {
        if start > 0 {
            rig.relay.stop().await.expect("a clean end");
            rig.start().await;
        }
        eventually(SETTINGS_ARE_LOOKED_AT, "the relay warns", || async {
            let warned = rig.relay.log_text().matches("min.insync.replicas is 2").count();
            (warned > start && metric(&rig, "relay_topic_dangers").await? >= 1.0).then_some(())
        })
        .await;
    }
    rig.finish().await.expect("a clean end");
}
