//! Rows that the settings of their topic exclude. The relay names them before it sends them, and what it says to do helps.

use rig::{Isolation, Rig, relay_exit};

use super::parking::{assert_published_in_order, wait_until_parked};
use super::topic_settings::{
    assert_each_once, assert_published_before, assert_stops, insert_keyless, set_topic, wait_until_older_than,
};

#[tokio::test]
async fn a_row_without_a_key_is_named_where_its_topic_is_compacted_and_goes_where_it_is_not() {
    let rig = Rig::initialised("poison_keyless").await;
    rig.insert_each(20).await;
    let id = insert_keyless(&rig).await;
    rig.insert_each(10).await;
    let says = [
        id.as_str(),
        "column `aggregateid` is null",
        "set the topic's cleanup.policy to delete",
        "`outbox-relay park ",
    ];
    let said = assert_stops(&rig.relay, relay_exit::ROW_REFUSED, &says).await;
    assert_stops(&rig.relay, relay_exit::ROW_REFUSED, &says).await;
    assert_published_before(&rig, 20).await;

    set_topic(&rig, &[("cleanup.policy", "delete")]).await;
    rig.start().await;
    assert_each_once(&rig, &rig.relay).await;
    // Now the row is published. The position in its record is where the row stood.
    let records = rig.records(Isolation::Committed).await.expect("the topic");
    let record = records.iter().find(|record| record.header("id") == Some(&id));
    let position = record.and_then(|record| record.header("position")).expect("a position");
    let (place, _) = position.rsplit_once(':').expect("a time at the end");
    assert!(said.contains(&format!("outbox-relay park {place}`")), "{place}: {said}");
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_row_without_a_key_goes_to_a_compacted_topic_by_a_column_that_has_a_value() {
    let rig = Rig::initialised("poison_other_key").await;
    let id = insert_keyless(&rig).await;
    assert_stops(
        &rig.relay,
        relay_exit::ROW_REFUSED,
        &[&id, "--set table.field.event.key=COLUMN"],
    )
    .await;
    let options = "route.topic.replacement=${routedByValue}\ntable.field.event.key=type";
    let relay = rig.relay.with_env("ROUTER_OPTIONS", options);
    relay.start().expect("a start");
    assert_each_once(&rig, &relay).await;
    relay.stop().await.expect("a clean end");
    rig.relay.kill_hard().await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn rows_older_than_their_topic_takes_are_named_and_go_once_it_takes_them() {
    let rig = Rig::initialised("poison_old").await;
    rig.insert_each(5).await;
    let id = rig
        .value("select id from outbox order by (payload ->> 'n')::int limit 1")
        .await;
    wait_until_older_than(&rig, 1_000).await;
    let compact = ("cleanup.policy", "compact");
    set_topic(&rig, &[compact, ("message.timestamp.before.max.ms", "1000")]).await;
    let says = [id.as_str(), "raise the topic's message.timestamp.before.max.ms"];
    assert_stops(&rig.relay, relay_exit::ROW_REFUSED, &says).await;
    assert_published_before(&rig, 0).await;
    set_topic(&rig, &[compact, ("message.timestamp.before.max.ms", "3600000")]).await;
    rig.start().await;
    rig.insert_each(5).await;
    rig.assert_exactly_once().await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn old_rows_go_to_a_topic_whose_time_stamps_are_the_brokers() {
    let rig = Rig::initialised("poison_append_time").await;
    rig.insert_each(5).await;
    wait_until_older_than(&rig, 10).await;
    let settings = [
        ("message.timestamp.type", "LogAppendTime"),
        ("message.timestamp.before.max.ms", "10"),
    ];
    set_topic(&rig, &settings).await;
    rig.start().await;
    rig.assert_exactly_once().await;
    rig.finish().await.expect("a clean end");
}

/// Writes a row whose transaction's commit time is an hour ahead, as if it came by logical replication from a server with a wrong clock. Returns its
/// id.
async fn insert_from_the_future(rig: &Rig) -> String {
    let (client, topic, name) = (rig.connect().await, rig.topic(), rig.name());
    let sql = format!(
        "select pg_replication_origin_create('{name}');
         select pg_replication_origin_session_setup('{name}');
         begin;
         select pg_replication_origin_xact_setup('0/1', now() + interval '1 hour');
         insert into outbox (aggregatetype, aggregateid, type, payload)
         values ('{topic}', 'k1', 'Ahead', jsonb_build_object('n', nextval('numbers')));
         commit;
         select pg_replication_origin_session_reset();
         select pg_replication_origin_drop('{name}')"
    );
    for statement in sql.split(';') {
        client.batch_execute(statement).await.expect("an origin's row");
    }
    rig.value("select id from outbox where type = 'Ahead'").await
}

/// The broker refuses the record. The relay does not judge the row by its own clock, which may be behind.
#[tokio::test]
async fn a_row_newer_than_its_topic_takes_is_named_and_goes_once_it_takes_it() {
    let rig = Rig::initialised("poison_new").await;
    let compact = ("cleanup.policy", "compact");
    set_topic(&rig, &[compact, ("message.timestamp.after.max.ms", "60000")]).await;
    rig.insert_each(5).await;
    let id = insert_from_the_future(&rig).await;
    rig.insert_each(5).await;
    let says = [
        id.as_str(),
        "ahead of this machine's clock",
        "raise the topic's message.timestamp.after.max.ms",
        "`outbox-relay park ",
    ];
    assert_stops(&rig.relay, relay_exit::ROW_REFUSED, &says).await;
    assert_published_before(&rig, 5).await;
    assert_stops(&rig.relay, relay_exit::ROW_REFUSED, &says).await;
    assert_published_before(&rig, 5).await;
    set_topic(&rig, &[compact, ("message.timestamp.after.max.ms", "7200000")]).await;
    rig.start().await;
    rig.assert_exactly_once().await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_row_newer_than_its_topic_takes_is_parked_where_poison_is() {
    let mut rig = Rig::initialised("poison_new_parked").await;
    rig.relay = rig.relay.with_env("OUTBOX_POISON", "park");
    let compact = ("cleanup.policy", "compact");
    set_topic(&rig, &[compact, ("message.timestamp.after.max.ms", "60000")]).await;
    rig.insert_together(5).await;
    let id = insert_from_the_future(&rig).await;
    rig.sql(&rig.insert_statement(5, 7).replace("'k' ||", "'other' ||"))
        .await;
    rig.start().await;
    let known = wait_until_parked(&rig, 1).await;
    assert_eq!(known[&id].because, "poison");
    assert_published_in_order(&rig, 10).await;
    rig.finish().await.expect("a clean end");
}
