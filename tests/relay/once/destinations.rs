//! Where rows may go, and where not: the relay's own topics, Kafka's, and topics that cannot be.

use rig::{Isolation, Rig, topic};
use stack::{Program, eventually};

use super::super::tampering::{DEADLINE, assert_refused, checkpoints, retire};
use super::topic_settings::{ROW, assert_published_before, assert_stops};

/// Exit codes of `outbox-relay`.
const TOPIC_MISSING: i32 = 32;
const TOPIC_REFUSED: i32 = 34;

/// Writes a row that routes to `topic`, and looks like this relay's checkpoint there; its id.
async fn insert_for(rig: &Rig, topic: &str) -> String {
    let key = format!("{0}/{0}", rig.name());
    rig.value(&format!(
        "insert into outbox (aggregatetype, aggregateid, type, payload)
         values ('{topic}', '{key}', 'Forged', jsonb_build_object('n', nextval('numbers'))) returning id"
    ))
    .await
}

async fn has_forged(rig: &Rig) -> bool {
    checkpoints(rig)
        .await
        .iter()
        .any(|record| record.header("id").is_some())
}

#[tokio::test]
async fn no_row_goes_to_the_checkpoint_topic() {
    let rig = Rig::initialised("destination_own").await;
    rig.insert_each(10).await;
    let topic = rig.checkpoint_topic();
    let id = insert_for(&rig, &topic).await;
    rig.insert_each(10).await;
    let column = format!("column `aggregatetype` is `{topic}`");
    let says = [id.as_str(), &column, "the relay's own topic", "`outbox-relay park "];
    assert_stops(&rig.relay, ROW, &says).await;
    assert_stops(&rig.relay, ROW, &says).await;
    assert_published_before(&rig, 10).await;
    assert!(!has_forged(&rig).await, "a row is in the checkpoint topic");
    retire(&rig).await;
}

#[tokio::test]
async fn a_relay_that_publishes_anywhere_is_caught() {
    let rig = Rig::initialised("planted_anywhere").await;
    let bug = rig.relay.with_binary("outbox-relay-faults");
    let bug = bug.env("OUTBOX_RELAY_BUG", "PublishAnywhere");
    insert_for(&rig, &rig.checkpoint_topic()).await;
    bug.start().expect("a start");
    eventually(DEADLINE, "the row has become a checkpoint", || async {
        has_forged(&rig).await.then_some(())
    })
    .await;
    bug.kill_hard().await;
    rig.finish().await.expect("an end");
}

#[tokio::test]
async fn no_row_goes_to_kafkas_topics_or_the_relays_by_any_command() {
    let rig = Rig::new("destination_internal").await;
    for topic in [
        "__consumer_offsets",
        "__transaction_state",
        "__of_somebody",
        &rig.checkpoint_topic(),
    ] {
        let id = insert_for(&rig, topic).await;
        assert_refused(&rig, &[], ROW, &format!("column `aggregatetype` is `{topic}`")).await;
        let refused = format!("--topic `{topic}`");
        assert_refused(&rig, &["--topic", topic], 2, &refused).await;
        rig.sql(&format!("delete from outbox where id = '{id}'")).await;
    }
    rig.init(&[]).await;
    assert!(!has_forged(&rig).await, "a row is in the checkpoint topic");
    rig.drop_slot().await;
    let id = insert_for(&rig, "__consumer_offsets").await;
    let status = rig.relay.run_for_status(&["recover", "--yes"]).await.expect("recover");
    assert_eq!(status.code(), Some(ROW), "{}", rig.relay.log_tail(5));
    rig.sql(&format!("delete from outbox where id = '{id}'")).await;
    rig.relay
        .run(&["recover", "--yes"])
        .await
        .unwrap_or_else(|err| panic!("{err:#}"));
    rig.insert_each(3).await;
    rig.start().await;
    rig.assert_exactly_once().await;
    rig.finish().await.expect("an end");
}

/// The values of `n` in a topic.
async fn numbers_in(rig: &Rig, name: &str) -> usize {
    let (servers, name) = (rig.servers.kafka.bootstrap_servers(), name.to_owned());
    let records = tokio::task::spawn_blocking(move || topic::read(&servers, &name, Isolation::Committed));
    records.await.expect("a reader").map_or(0, |records| records.len())
}

#[tokio::test]
async fn a_name_that_collides_with_another_topics_is_the_rows_fault_and_said() {
    let rig = Rig::initialised("destination_collides").await;
    let (there, collides) = ("destination_collides.a_b", "destination_collides.a.b");
    insert_for(&rig, there).await;
    let id = insert_for(&rig, collides).await;
    let column = format!("column `aggregatetype` is `{collides}`");
    let says = [
        id.as_str(),
        &column,
        "differs in dots and underscores alone",
        "`outbox-relay park ",
    ];
    assert_stops(&rig.relay, ROW, &says).await;
    assert_eq!(
        numbers_in(&rig, there).await,
        1,
        "what stands before the row is published"
    );
    retire(&rig).await;
}

#[tokio::test]
async fn a_topic_that_cannot_be_created_is_said_and_created_once_it_can_be() {
    let rig = Rig::initialised("destination_refused").await;
    let new = "destination_refused-new";
    rig.insert_each(5).await;
    let id = insert_for(&rig, new).await;
    let refused = rig.relay.with_env("TOPIC_CONFIG", "cleanup.policy=nonsense");
    assert_stops(&refused, TOPIC_REFUSED, &[new, &id, "correct --topic-config"]).await;
    let missing = rig.relay.with_env("CREATE_TOPICS", "false");
    assert_stops(
        &missing,
        TOPIC_MISSING,
        &[new, &id, "create it and `outbox-relay run` goes on"],
    )
    .await;
    assert_published_before(&rig, 5).await;
    let init: &[&str] = &["init", "--topic", "destination_refused-other"];
    let status = refused.run_for_status(init).await.expect("init");
    assert_eq!(status.code(), Some(TOPIC_REFUSED), "{}", refused.log_tail(5));
    let relay: &Program = &rig.relay;
    rig.start().await;
    eventually(DEADLINE, "the row is in its topic", || async {
        (numbers_in(&rig, new).await == 1).then_some(())
    })
    .await;
    relay.stop().await.expect("a clean end");
    rig.finish().await.expect("an end");
}
