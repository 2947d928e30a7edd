//! What happens to parked rows when their topic, the outbox table or the database changes.

use std::sync::Arc;
use std::time::Duration;

use rig::rig::ARRIVAL_DEADLINE;
use rig::{Rig, Servers, relay_exit, servers};
use stack::{KafkaOptions, eventually};

use super::parking::{
    LARGE_BYTES, assert_command, assert_published_in_order, assert_retry_of_all, committed_records, insert_row,
    read_parked, rig_that_parks, running_with_two_parked, stop_relay, stopped_with_two_parked, wait_until_parked,
};
use super::topic_identity::delete;
use super::topic_settings::limit_record_bytes;
use crate::relay::lineage::restore_from_before;
use crate::relay::tampering::{accept, ids, publish_and_stop, times_published, wait_until_confirmed};

/// For so long nothing may be removed. Maintenance runs once a second.
const ROUNDS: Duration = Duration::from_secs(4);

/// A rig whose relay was stopped with two parked rows. Then the parking topic was deleted.
async fn emptied(name: &str) -> Rig {
    let rig = stopped_with_two_parked(name).await;
    delete(&rig, &rig.parking_topic()).await;
    rig
}

#[tokio::test]
async fn a_parking_topic_that_was_deleted_stops_the_relay_and_recover_publishes_what_was_parked() {
    let rig = emptied("parked_deleted").await;
    let says = [
        "has 0 of 2 parked rows",
        "`outbox-relay recover`",
        "--accept-parked-loss",
    ];
    rig.assert_stops(relay_exit::PARKED_ROWS_MISSING, &says).await;
    assert_retry_of_all(&rig.relay, relay_exit::PARKED_ROWS_MISSING, &says).await;
    limit_record_bytes(&rig, 60_000).await;
    assert_command(&rig.relay, &["recover", "--yes"], 0, &["has 0 of 2 parked rows"]).await;
    rig.start().await;
    rig.insert_each(7).await;
    assert_published_in_order(&rig, 15).await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn where_what_was_parked_is_given_up_the_relay_goes_on_without_it() {
    let rig = emptied("parked_given_up").await;
    accept(&rig, &["--accept-parked-loss"]).await;
    rig.start().await;
    rig.insert_each(7).await;
    assert_published_in_order(&rig, 13).await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn another_parking_topic_stops_the_relay_and_one_that_does_not_count_lets_rows_overtake() {
    let rig = stopped_with_two_parked("parked_elsewhere").await;
    let mistyped = rig.another_relay("mistyped").env("PARKING_TOPIC", "mistyped");
    let status = mistyped.run_for_status(&["run"]).await.expect("an end");
    assert_eq!(
        status.code(),
        Some(relay_exit::PARKED_ROWS_MISSING),
        "{}",
        mistyped.log_tail(5)
    );
    assert!(mistyped.log_text().contains("give that --parking-topic"));

    let careless = rig
        .another_relay("careless")
        .with_binary("outbox-relay-faults")
        .env("PARKING_TOPIC", "mistyped")
        .env("OUTBOX_RELAY_BUG", "MissParkedRows");
    careless.start().expect("a start");
    let overtakes = insert_row(&rig, "k1", 10).await;
    assert!(assert_published_in_order(&rig, 7).await.contains(&overtakes));
    careless.stop().await.expect("a clean end");
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_parking_topic_that_deletes_is_refused_and_its_line_mends_it() {
    let rig = rig_that_parks("parked_unsafe").await;
    let topic = rig.parking_topic();
    let create = ["--create", "--topic", &topic, "--partitions", "1"];
    rig.servers.kafka.topic_tool(&create).await.expect("a topic");
    insert_row(&rig, "k1", LARGE_BYTES).await;
    let says = ["may lose parked rows", "cleanup.policy=compact"];
    rig.assert_stops(relay_exit::TOPIC_UNSAFE, &says).await;
    let servers = rig.servers.kafka.bootstrap_servers();
    rig::topic_settings::set(&servers, &topic, &[("cleanup.policy", "compact")])
        .await
        .unwrap_or_else(|err| panic!("{err:#}"));
    rig.start().await;
    wait_until_parked(&rig, 1).await;
    // Six of these rows have other keys and are published. One is parked behind the parked row.
    rig.insert_each(7).await;
    assert_published_in_order(&rig, 6).await;
    wait_until_parked(&rig, 2).await;
    wait_until_confirmed(&rig).await;
    stop_relay(&rig).await;
    limit_record_bytes(&rig, 60_000).await;
    assert_retry_of_all(&rig.relay, 0, &["2 rows are published"]).await;
    let published = assert_published_in_order(&rig, 8).await;
    assert_eq!(published.len(), 8, "each row once");
    rig.finish().await.expect("a clean end");
}

/// A rig whose relay removes old rows from the table, and has parked a row whose payload only the table has.
async fn needing_the_table(name: &str, bug: &str) -> (Rig, String) {
    let mut rig = rig_that_parks(name).await;
    limit_record_bytes(&rig, 1_100_000).await;
    for (name, value) in [
        ("OUTBOX_RETAIN", "7"),
        ("OUTBOX_PURGE_ROWS", "true"),
        ("OUTBOX_MAINTENANCE_INTERVAL", "1"),
        ("OUTBOX_RELAY_BUG", bug),
    ] {
        rig.relay = rig.relay.with_env(name, value);
    }
    rig.relay = rig.relay.with_binary("outbox-relay-faults");
    let large = insert_row(&rig, "k1", 1_010_000).await;
    rig.insert_each(2).await;
    rig.sql("update outbox set created_at = now() - interval '30 days'")
        .await;
    rig.start().await;
    wait_until_parked(&rig, 1).await;
    wait_until_confirmed(&rig).await;
    (rig, large)
}

async fn rows_in_the_table(rig: &Rig) -> u64 {
    rig.value("select count(*) from outbox")
        .await
        .parse()
        .expect("a number")
}

async fn wait_until_removed(rig: &Rig) {
    eventually(ARRIVAL_DEADLINE, "old rows are removed", || async {
        (rows_in_the_table(rig).await == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn nothing_is_removed_from_the_table_while_a_parked_row_needs_it() {
    let (mut rig, large) = needing_the_table("parked_needs", "").await;
    eventually(ARRIVAL_DEADLINE, "it says so", || async {
        let log = rig.relay.log_text();
        log.contains("nothing is removed from the outbox table").then_some(())
    })
    .await;
    tokio::time::sleep(ROUNDS).await;
    assert_eq!(rows_in_the_table(&rig).await, 3);
    stop_relay(&rig).await;
    rig.start().await;
    tokio::time::sleep(ROUNDS).await;
    assert_eq!(rows_in_the_table(&rig).await, 3, "also after a restart");
    stop_relay(&rig).await;
    rig.relay = rig.relay.with_env("KAFKA_PROPERTIES", "message.max.bytes=1040000");
    assert_retry_of_all(&rig.relay, 0, &["1 rows are published"]).await;
    assert!(assert_published_in_order(&rig, 3).await.contains(&large));
    rig.start().await;
    wait_until_removed(&rig).await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn removing_what_a_parked_row_needs_is_caught() {
    let (rig, _) = needing_the_table("parked_needs_bug", "RemoveParkedRows").await;
    wait_until_removed(&rig).await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn parked_rows_are_not_replayed() {
    let rig = running_with_two_parked("parked_replay").await;
    let says = [
        "2 of the chosen rows are parked and left out",
        "6 rows are published again",
    ];
    assert_command(&rig.relay, &["replay", "--from", "2000-01-01", "--yes"], 0, &says).await;
    assert_eq!(committed_records(&rig).await.len(), 12);
    assert_eq!(read_parked(&rig).await.len(), 2);
    rig.finish().await.expect("a clean end");
}

/// A parked row is not looked up: its entry in the parking topic says what becomes of it. Any other row without a route is named.
#[tokio::test]
async fn recover_leaves_parked_rows_alone_that_lead_nowhere_and_names_a_row_that_is_not_parked() {
    let rig = rig_that_parks("parked_routeless").await;
    rig.sql("alter table outbox alter aggregatetype drop not null").await;
    let insert_into = async |route: &str| {
        rig.sql(&format!(
            "insert into outbox (aggregatetype, aggregateid, type, payload) values ({route}, 'k2', 'Poison', '{{}}')"
        ))
        .await;
    };
    insert_into("null").await;
    // No row may go into the topic of the checkpoints.
    insert_into(&format!("'{}'", rig.checkpoint_topic())).await;
    rig.start().await;
    wait_until_parked(&rig, 2).await;
    wait_until_confirmed(&rig).await;
    stop_relay(&rig).await;
    rig.drop_slot().await;
    insert_row(&rig, "k1", 10).await;
    insert_into("null").await;
    let newest = "select id from outbox order by created_at desc limit 1";
    let id = rig.value(newest).await;
    let says = ["column `aggregatetype` is null", &id, "delete or mend the row"];
    assert_command(&rig.relay, &["recover", "--yes"], relay_exit::ROW_REFUSED, &says).await;
    rig.sql(&format!("delete from outbox where id = '{id}'")).await;
    assert_command(&rig.relay, &["recover", "--yes"], 0, &[]).await;
    assert_published_in_order(&rig, 1).await;
    assert_eq!(read_parked(&rig).await.len(), 2);
    // Also where the rows are looked at one by one, since the topic may have removed records.
    rig.drop_slot().await;
    rig::topic_settings::set(
        &rig.servers.kafka.bootstrap_servers(),
        &rig.topic(),
        &[("cleanup.policy", "compact"), ("min.compaction.lag.ms", "0")],
    )
    .await
    .unwrap_or_else(|err| panic!("{err:#}"));
    insert_row(&rig, "k3", 10).await;
    assert_command(&rig.relay, &["recover", "--yes"], 0, &[]).await;
    assert_published_in_order(&rig, 2).await;
    rig.finish().await.expect("a clean end");
}

/// The server's positions go back. A later row of a parked key is parked all the same.
#[tokio::test]
async fn after_a_restore_rows_of_a_parked_key_stay_behind_it() {
    let started = Servers::start(servers::postgres_options(), KafkaOptions::default()).await;
    let mut rig = Rig::on(Arc::new(started.expect("servers")), "parked_restored").await;
    rig.init(&[]).await;
    limit_record_bytes(&rig, 20_000).await;
    rig.relay = rig.relay.with_env("OUTBOX_POISON", "park");
    publish_and_stop(&rig).await;
    let newer = async {
        rig.sql(
            "create table filler (t text); insert into filler select repeat('x', 1000) from generate_series(1, 5000)",
        )
        .await;
        rig.start().await;
        insert_row(&rig, "parked", LARGE_BYTES).await;
        insert_row(&rig, "parked", 10).await;
        wait_until_parked(&rig, 2).await;
        wait_until_confirmed(&rig).await;
        stop_relay(&rig).await;
    };
    restore_from_before(&rig, newer).await;
    rig.assert_stops(relay_exit::SERVER_BEHIND, &["`outbox-relay recover`"])
        .await;
    assert_command(&rig.relay, &["recover", "--yes"], 0, &[]).await;
    rig.start().await;
    let after = insert_row(&rig, "parked", 10).await;
    let known = wait_until_parked(&rig, 3).await;
    assert_eq!(known[&after].because, "behind");
    stop_relay(&rig).await;
    limit_record_bytes(&rig, 60_000).await;
    let says = ["3 rows are published, 0 stay parked"];
    assert_retry_of_all(&rig.relay, 0, &says).await;
    let retried = committed_records(&rig).await;
    let retried: Vec<_> = retried
        .iter()
        .filter(|record| record.header("parked").is_some())
        .collect();
    assert_eq!(retried.len(), 3);
    assert_eq!(retried[2].header("id"), Some(after.as_str()), "the last of its key");
    rig.finish().await.expect("a clean end");
}

/// Publishes the parked rows, now that the topic takes them. Asserts that all `rows` are there in order.
async fn assert_retried_in_order(rig: &Rig, rows: usize) {
    limit_record_bytes(rig, 60_000).await;
    assert_retry_of_all(&rig.relay, 0, &[]).await;
    assert_published_in_order(rig, rows).await;
    rig.start().await;
    insert_row(rig, "k1", 10).await;
    assert_published_in_order(rig, rows + 1).await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn recover_parks_what_it_finds_missing_behind_a_parked_row_and_publishes_the_rest() {
    let rig = stopped_with_two_parked("parked_recover").await;
    rig.drop_slot().await;
    insert_row(&rig, "k1", 10).await;
    insert_row(&rig, "another", 10).await;
    let says = ["1 rows that were missing are published, and 1 are parked behind parked rows"];
    assert_command(&rig.relay, &["recover", "--yes"], 0, &says).await;
    rig.start().await;
    insert_row(&rig, "k1", 10).await;
    wait_until_parked(&rig, 4).await;
    assert_published_in_order(&rig, 7).await;
    stop_relay(&rig).await;
    assert_retried_in_order(&rig, 11).await;

    let rig = stopped_with_two_parked("parked_recover_skips").await;
    rig.drop_slot().await;
    let overtakes = insert_row(&rig, "k1", 10).await;
    let says = ["1 rows that were missing are published;"];
    assert_command(&rig.relay, &["recover", "--yes", "--poison-order", "skip"], 0, &says).await;
    assert!(assert_published_in_order(&rig, 7).await.contains(&overtakes));
    assert_eq!(read_parked(&rig).await.len(), 2);
    rig.finish().await.expect("a clean end");
}

/// `recover` finds no room for a row behind a parked row. And no room can be made before `recover` is done.
#[tokio::test]
async fn where_no_more_rows_may_be_parked_each_line_names_what_makes_room_or_does_without() {
    let mut rig = stopped_with_two_parked("parked_full").await;
    rig.relay = rig
        .relay
        .with_binary("outbox-relay-faults")
        .with_env("OUTBOX_RELAY_BUG", "RoomForTwoParkedRows");
    rig.drop_slot().await;
    let overtakes = insert_row(&rig, "k1", 10).await;
    insert_row(&rig, "another", 10).await;
    let says = ["2 rows are parked", "`outbox-relay recover --poison-order skip`"];
    assert_command(&rig.relay, &["recover", "--yes"], relay_exit::TOO_MANY_PARKED, &says).await;
    let unfinished = ["`outbox-relay recover` of slot"];
    assert_retry_of_all(&rig.relay, relay_exit::RECOVERY_UNFINISHED, &unfinished).await;
    assert_command(&rig.relay, &["recover", "--yes", "--poison-order", "skip"], 0, &[]).await;
    assert!(assert_published_in_order(&rig, 8).await.contains(&overtakes));
    insert_row(&rig, "k1", 10).await;
    let says = ["`outbox-relay parked retry --all`", "`outbox-relay parked discard`"];
    rig.assert_stops(relay_exit::TOO_MANY_PARKED, &says).await;
    limit_record_bytes(&rig, 1_000_000).await;
    assert_retry_of_all(&rig.relay, 0, &["2 rows are published, 0 stay parked"]).await;
    rig.start().await;
    let ids = ids(&rig).await;
    assert_eq!(times_published(&rig, &ids, &ids).await, [1; 11]);
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn recover_publishes_again_what_stood_before_a_parked_row_and_is_gone_with_its_topic() {
    let rig = rig_that_parks("parked_topic_gone").await;
    rig.start().await;
    insert_row(&rig, "k1", 10).await;
    insert_row(&rig, "k1", LARGE_BYTES).await;
    insert_row(&rig, "k1", 10).await;
    wait_until_parked(&rig, 2).await;
    wait_until_confirmed(&rig).await;
    stop_relay(&rig).await;
    delete(&rig, &rig.topic()).await;
    rig.assert_stops(relay_exit::TOPIC_DELETED, &["outbox-relay recover"])
        .await;
    let says = ["1 rows that were missing are published;"];
    assert_command(&rig.relay, &["recover", "--yes"], 0, &says).await;
    assert_published_in_order(&rig, 1).await;
    assert_retried_in_order(&rig, 3).await;
}
