//! The broker refuses a record although its settings did not exclude it. The relay finds the row that is to blame. Everything before it is published
//! once, and nothing from it on is.

use rig::rig::READY_DEADLINE;
use rig::{Rig, relay_exit};
use stack::{Program, eventually};

use super::topic_settings::{
    assert_each_once, assert_ends, assert_published_before, assert_stops, insert_keyless, limit_record_bytes,
    set_topic, wait_until_older_than,
};

const COMPACTED: [(&str, &str); 1] = [("cleanup.policy", "compact")];
const NOT_COMPACTED: [(&str, &str); 1] = [("cleanup.policy", "delete")];

/// The relay, changed so that it may not read the settings of its topics.
fn relay_without_topic_settings(rig: &Rig) -> Program {
    relay_with_bug(rig, "AskNoSettings")
}

fn relay_with_bug(rig: &Rig, bug: &str) -> Program {
    let relay = rig.relay.with_binary("outbox-relay-faults");
    relay.env("OUTBOX_RELAY_BUG", bug)
}

#[tokio::test]
async fn a_row_that_the_broker_refuses_in_the_middle_of_a_batch_is_named_and_goes_once_it_is_taken() {
    let rig = Rig::initialised("refused_middle").await;
    let relay = relay_without_topic_settings(&rig);
    // All rows are in one Kafka transaction, and those of a partition are in one batch.
    rig.insert_together(40).await;
    let id = insert_keyless(&rig).await;
    rig.insert_together(40).await;
    let says = [id.as_str(), "the broker refused it", "failed to validate record"];
    let log = assert_stops(&relay, relay_exit::ROW_REFUSED, &says).await;
    assert!(!log.contains("Erroneous state"), "the first cause is said: {log}");
    assert_published_before(&rig, 40).await;
    assert_stops(&relay, relay_exit::ROW_REFUSED, &says).await;
    assert_published_before(&rig, 40).await;

    set_topic(&rig, &NOT_COMPACTED).await;
    relay.start().expect("a start");
    assert_each_once(&rig, &relay).await;
    relay.stop().await.expect("a clean end");
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_relay_that_forgets_what_was_refused_is_caught() {
    let rig = Rig::initialised("planted_forget_refused").await;
    let relay = relay_with_bug(&rig, "ForgetRefused");
    let id = insert_keyless(&rig).await;
    relay.start().expect("a start");
    eventually(READY_DEADLINE, "it is refused again and again", || async {
        let log = relay.log_text();
        (log.matches(&format!("refused the record with id `{id}`")).count() >= 4).then_some(())
    })
    .await;
    relay.kill_hard().await;
    rig.finish().await.expect("an end");
}

#[tokio::test]
async fn several_rows_that_the_broker_refuses_are_told_from_those_beside_them() {
    let rig = Rig::initialised("refused_several").await;
    let relay = relay_without_topic_settings(&rig);
    rig.insert_together(10).await;
    let first = insert_keyless(&rig).await;
    rig.insert_together(10).await;
    insert_keyless(&rig).await;
    insert_keyless(&rig).await;
    assert_stops(&relay, relay_exit::ROW_REFUSED, &[&first]).await;
    assert_published_before(&rig, 10).await;
    relay.kill_hard().await;
    rig.finish().await.expect("an end");
}

#[tokio::test]
async fn settings_that_change_while_the_relay_runs_are_noticed_and_the_row_named() {
    let rig = Rig::initialised("refused_changed").await;
    set_topic(&rig, &NOT_COMPACTED).await;
    rig.start().await;
    insert_keyless(&rig).await;
    assert_each_once(&rig, &rig.relay).await;
    set_topic(&rig, &COMPACTED).await;
    let logged = rig.relay.log_text().len();
    rig.insert_together(10).await;
    let id = insert_keyless(&rig).await;
    rig.insert_together(10).await;
    let log = assert_ends(&rig.relay, logged, relay_exit::ROW_REFUSED, &[&id, "cleanup.policy"]).await;
    assert!(!log.contains("Erroneous state"), "the first cause is said: {log}");
    assert_published_before(&rig, 11).await;
    set_topic(&rig, &NOT_COMPACTED).await;
    rig.start().await;
    assert_each_once(&rig, &rig.relay).await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn rows_that_have_become_too_old_for_the_broker_are_named() {
    let rig = Rig::initialised("refused_old").await;
    rig.insert_together(3).await;
    wait_until_older_than(&rig, 1_000).await;
    set_topic(&rig, &[("message.timestamp.before.max.ms", "1000")]).await;
    let id = rig
        .value("select id from outbox order by (payload ->> 'n')::int limit 1")
        .await;
    let relay = relay_without_topic_settings(&rig);
    assert_stops(&relay, relay_exit::ROW_REFUSED, &[&id, "the broker refused it"]).await;
    set_topic(&rig, &[("message.timestamp.before.max.ms", "3600000")]).await;
    relay.start().expect("a start");
    rig.assert_exactly_once().await;
    relay.stop().await.expect("a clean end");
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_limit_that_is_not_told_is_found_and_only_a_row_that_is_too_large_alone_is_named() {
    let rig = Rig::initialised("refused_size").await;
    limit_record_bytes(&rig, 5_000).await;
    let relay = relay_without_topic_settings(&rig);
    rig.insert_together(300).await;
    let topic = rig.topic();
    let id = rig
        .value(&format!(
            "insert into outbox (aggregatetype, aggregateid, type, payload)
             values ('{topic}', 'k1', 'Large', jsonb_build_object('n', nextval('numbers'), 'pad', repeat('x', 9000))) returning id"
        ))
        .await;
    rig.insert_together(10).await;
    assert_stops(
        &relay,
        relay_exit::RECORD_TOO_LARGE,
        &[&id, "max.message.bytes of the topic"],
    )
    .await;
    assert_published_before(&rig, 300).await;
    limit_record_bytes(&rig, 20_000).await;
    relay.start().expect("a start");
    rig.assert_exactly_once().await;
    relay.stop().await.expect("a clean end");
    rig.finish().await.expect("a clean end");
}
