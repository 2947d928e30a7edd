//! Where rows may go and where not: not to the relay's own topics, not to Kafka's, and not to topics that cannot exist.

use rig::{Isolation, Rig, relay_exit, topic};
use stack::{Program, eventually};

use super::super::tampering::{DEADLINE, assert_refused, kill_and_drop_slot, wait_until_confirmed};
use super::parking::{assert_command, assert_published_in_order, assert_retry_of_all, stop_relay, wait_until_parked};
use super::topic_settings::{assert_published_before, assert_stops};

/// Writes a row that routes to `topic` and has the key of this relay's checkpoint. Returns its id.
async fn insert_row_for_topic(rig: &Rig, topic: &str) -> String {
    let key = format!("{0}/{0}", rig.name());
    rig.value(&format!(
        "insert into outbox (aggregatetype, aggregateid, type, payload)
         values ('{topic}', '{key}', 'Forged', jsonb_build_object('n', nextval('numbers'))) returning id"
    ))
    .await
}

/// The topics that no row may go to, and whose topics they are.
fn forbidden_topics(rig: &Rig) -> [(String, &'static str); 5] {
    const OWN: &str = "the relay's own topic";
    const INTERNAL: &str = "one of Kafka's internal topics";
    [
        (rig.checkpoint_topic(), OWN),
        (rig.parking_topic(), OWN),
        ("__consumer_offsets".to_owned(), INTERNAL),
        ("__transaction_state".to_owned(), INTERNAL),
        ("__of_somebody".to_owned(), INTERNAL),
    ]
}

/// Asserts that none of these topics has a record of a row.
async fn assert_none_forged(rig: &Rig) {
    for (topic, _) in forbidden_topics(rig) {
        assert!(!has_forged(rig, &topic).await, "a row is in {topic}");
    }
}

/// Whether a topic has a record of one of the rig's rows. The topic need not exist.
async fn has_forged(rig: &Rig, name: &str) -> bool {
    let (servers, topic) = (rig.servers.kafka.bootstrap_servers(), name.to_owned());
    let records = tokio::task::spawn_blocking(move || topic::read(&servers, &topic, Isolation::Committed)).await;
    let key = format!("{0}/{0}", rig.name());
    let mut records = records.expect("a reader").unwrap_or_default().into_iter();
    records.any(|record| record.header("id").is_some() && record.key_text() == Some(&key))
}

#[tokio::test]
async fn a_row_for_the_relays_own_topics_or_kafkas_stops_the_relay_and_is_parked_by_hand() {
    let rig = Rig::initialised("destination_own").await;
    rig.insert_each(10).await;
    let mut parked = Vec::new();
    for (topic, whose) in forbidden_topics(&rig) {
        parked.push((insert_row_for_topic(&rig, &topic).await, topic, whose));
    }
    rig.insert_each(10).await;
    for (id, topic, whose) in &parked {
        let column = format!("column `aggregatetype` is `{topic}`");
        let says = [id.as_str(), &column, whose, "`outbox-relay park "];
        let said = assert_stops(&rig.relay, relay_exit::ROW_REFUSED, &says).await;
        rig.wait_until_slot_is_free().await;
        let (_, rest) = said.rsplit_once("`outbox-relay park ").expect("what to do");
        let position = rest.split('`').next().expect("a position");
        assert_command(&rig.relay, &["park", position], 0, &["parks the row at"]).await;
        assert_published_before(&rig, 10).await;
    }
    rig.start().await;
    assert_published_in_order(&rig, 20).await;
    let known = wait_until_parked(&rig, parked.len()).await;
    assert!(parked.iter().all(|(id, ..)| known.contains_key(id)), "{known:?}");
    wait_until_confirmed(&rig).await;
    stop_relay(&rig).await;
    // A retry of parked rows does not bring them there either.
    let stays = ["0 rows are published, 5 stay parked"];
    assert_retry_of_all(&rig.relay, 1, &stays).await;
    assert_none_forged(&rig).await;
    rig.finish().await.expect("an end");
}

#[tokio::test]
async fn rows_for_the_relays_own_topics_and_kafkas_are_parked_where_poison_is() {
    let mut rig = Rig::initialised("destination_parked").await;
    rig.relay = rig.relay.with_env("OUTBOX_POISON", "park");
    rig.insert_each(5).await;
    let mut ids = Vec::new();
    for (topic, _) in forbidden_topics(&rig) {
        ids.push(insert_row_for_topic(&rig, &topic).await);
    }
    rig.insert_each(5).await;
    rig.start().await;
    assert_published_in_order(&rig, 10).await;
    let known = wait_until_parked(&rig, ids.len()).await;
    assert!(ids.iter().all(|id| known[id].because == "poison"), "{known:?}");
    assert_none_forged(&rig).await;
    rig.finish().await.expect("an end");
}

#[tokio::test]
async fn a_relay_that_publishes_anywhere_is_caught() {
    let rig = Rig::initialised("planted_anywhere").await;
    let relay_with_bug = rig.relay.with_binary("outbox-relay-faults");
    let relay_with_bug = relay_with_bug.env("OUTBOX_RELAY_BUG", "PublishAnywhere");
    for topic in [rig.parking_topic(), rig.checkpoint_topic()] {
        insert_row_for_topic(&rig, &topic).await;
    }
    relay_with_bug.start().expect("a start");
    for (topic, becomes) in [
        (rig.parking_topic(), "the row is among the parked ones"),
        (rig.checkpoint_topic(), "the row has become a checkpoint"),
    ] {
        eventually(DEADLINE, becomes, || async {
            has_forged(&rig, &topic).await.then_some(())
        })
        .await;
    }
    relay_with_bug.kill_hard().await;
    rig.finish().await.expect("an end");
}

#[tokio::test]
async fn neither_init_nor_recover_publishes_a_row_in_the_relays_own_topics_or_kafkas() {
    let rig = Rig::new("destination_internal").await;
    for (topic, whose) in forbidden_topics(&rig) {
        let id = insert_row_for_topic(&rig, &topic).await;
        assert_refused(
            &rig,
            &[],
            relay_exit::ROW_REFUSED,
            &format!("column `aggregatetype` is `{topic}`"),
        )
        .await;
        assert_refused(
            &rig,
            &["--topic", &topic],
            relay_exit::WRONG_SETTING,
            &format!("--topic `{topic}`"),
        )
        .await;
        assert_refused(&rig, &["--topic", &topic], relay_exit::WRONG_SETTING, whose).await;
        rig.sql(&format!("delete from outbox where id = '{id}'")).await;
    }
    rig.init(&[]).await;
    rig.drop_slot().await;
    for (topic, whose) in forbidden_topics(&rig) {
        let id = insert_row_for_topic(&rig, &topic).await;
        assert_command(
            &rig.relay,
            &["recover", "--yes"],
            relay_exit::ROW_REFUSED,
            &[&topic, whose],
        )
        .await;
        rig.sql(&format!("delete from outbox where id = '{id}'")).await;
    }
    assert_command(&rig.relay, &["recover", "--yes"], 0, &[]).await;
    assert_none_forged(&rig).await;
    rig.insert_each(3).await;
    rig.start().await;
    rig.assert_exactly_once().await;
    rig.finish().await.expect("an end");
}

/// How many records a topic has. It is 0 if there is no such topic.
async fn count_records(rig: &Rig, name: &str) -> usize {
    let (servers, name) = (rig.servers.kafka.bootstrap_servers(), name.to_owned());
    let records = tokio::task::spawn_blocking(move || topic::read(&servers, &name, Isolation::Committed));
    records.await.expect("a reader").map_or(0, |records| records.len())
}

#[tokio::test]
async fn a_name_that_collides_with_another_topics_is_the_rows_fault_and_said() {
    let rig = Rig::initialised("destination_collides").await;
    let (there, collides) = ("destination_collides.a_b", "destination_collides.a.b");
    insert_row_for_topic(&rig, there).await;
    let id = insert_row_for_topic(&rig, collides).await;
    let column = format!("column `aggregatetype` is `{collides}`");
    let says = [
        id.as_str(),
        &column,
        "differs in dots and underscores alone",
        "`outbox-relay park ",
    ];
    assert_stops(&rig.relay, relay_exit::ROW_REFUSED, &says).await;
    assert_eq!(
        count_records(&rig, there).await,
        1,
        "what stands before the row is published"
    );
    kill_and_drop_slot(&rig).await;
}

#[tokio::test]
async fn a_topic_that_cannot_be_created_is_said_and_created_once_it_can_be() {
    let rig = Rig::initialised("destination_refused").await;
    let new = "destination_refused-new";
    rig.insert_each(5).await;
    let id = insert_row_for_topic(&rig, new).await;
    let refused = rig.relay.with_env("TOPIC_CONFIG", "cleanup.policy=nonsense");
    assert_stops(
        &refused,
        relay_exit::TOPIC_REFUSED,
        &[new, &id, "correct --topic-config"],
    )
    .await;
    let missing = rig.relay.with_env("CREATE_TOPICS", "false");
    assert_stops(
        &missing,
        relay_exit::TOPIC_MISSING,
        &[new, &id, "create it and `outbox-relay run` goes on"],
    )
    .await;
    assert_published_before(&rig, 5).await;
    let init: &[&str] = &["init", "--topic", "destination_refused-other"];
    let status = refused.run_for_status(init).await.expect("init");
    assert_eq!(
        status.code(),
        Some(relay_exit::TOPIC_REFUSED),
        "{}",
        refused.log_tail(5)
    );
    let relay: &Program = &rig.relay;
    rig.start().await;
    eventually(DEADLINE, "the row is in its topic", || async {
        (count_records(&rig, new).await == 1).then_some(())
    })
    .await;
    relay.stop().await.expect("a clean end");
    rig.finish().await.expect("an end");
}
