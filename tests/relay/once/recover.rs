//! `recover`: the slot is lost, and the outbox is there.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rig::rig::{PARTITIONS, READY_DEADLINE};
use rig::servers::postgres_options;
use rig::{Isolation, Rig, Servers};
use stack::{KafkaOptions, eventually_ok};

use super::ways_out::kill_recover_before_its_end;

/// Exit codes of `outbox-relay`.
const SLOT_GONE: i32 = 10;
const SLOT_INVALIDATED: i32 = 11;
const NOTHING_TO_RECOVER: i32 = 40;
const NOT_CONFIRMED: i32 = 41;
const UNFINISHED: i32 = 42;

/// Publishes so many rows, kills the relay, writes so many more, and drops the slot.
async fn lose_the_slot(rig: &Rig, published: u32, pending: u32) {
    rig.start().await;
    rig.insert_each(published).await;
    rig.wait_until_published(READY_DEADLINE)
        .await
        .expect("the first rows are published");
    rig.relay.kill_hard().await;
    rig.insert_together(pending).await;
    rig.drop_slot().await;
}

async fn recover_code(rig: &Rig, arguments: &[&str]) -> i32 {
    let all: Vec<&str> = ["recover"].iter().chain(arguments).copied().collect();
    let status = rig.relay.run_for_status(&all).await.expect("recover runs");
    status.code().expect("recover ends by itself")
}

async fn slots(rig: &Rig) -> Vec<Vec<Option<String>>> {
    let sql = format!(
        "select slot_name from pg_replication_slots where slot_name = '{}'",
        rig.name()
    );
    rig.sql(&sql).await
}

#[tokio::test]
async fn a_dropped_slot_with_a_backlog_and_writers_loses_nothing_and_repeats_nothing() {
    let rig = Arc::new(Rig::initialised("recover_dropped").await);
    lose_the_slot(&rig, 100, 7_000).await;
    rig.assert_stops(SLOT_GONE, &["outbox-relay recover"]).await;
    let writer = Arc::clone(&rig);
    let writing = tokio::spawn(async move { writer.insert_each(3_000).await });
    assert_eq!(recover_code(&rig, &["--yes"]).await, 0, "{}", rig.relay.log_tail(20));
    let said = rig.relay.log_text();
    assert!(
        said.contains("rows to compare") && said.contains("to be published"),
        "{said}"
    );
    rig.start().await;
    writing.await.expect("the writer ends");
    rig.insert_together(100).await;
    let ledger = rig.assert_exactly_once().await;
    assert_eq!(ledger.rows, 10_200);
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn without_an_answer_or_a_loss_nothing_is_changed() {
    let rig = Rig::initialised("recover_asks").await;
    assert_eq!(recover_code(&rig, &["--yes"]).await, NOTHING_TO_RECOVER);
    lose_the_slot(&rig, 20, 30).await;
    let before = rig.records(Isolation::Uncommitted).await.expect("records");
    assert_eq!(recover_code(&rig, &[]).await, NOT_CONFIRMED);
    let said = rig.relay.log_text();
    assert!(
        said.contains("30 rows that are in no topic") && said.contains("--yes"),
        "{said}"
    );
    assert!(slots(&rig).await.is_empty(), "no slot was made");
    assert_eq!(rig.records(Isolation::Uncommitted).await.expect("records"), before);
    rig.assert_stops(SLOT_GONE, &["recover"]).await;
    assert_eq!(recover_code(&rig, &["--yes"]).await, 0, "{}", rig.relay.log_tail(20));
    rig.start().await;
    rig.assert_exactly_once().await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn on_a_terminal_it_asks_and_anything_but_yes_changes_nothing() {
    let rig = Rig::initialised("recover_terminal").await;
    lose_the_slot(&rig, 20, 30).await;
    let recover = async |typed: &str| {
        let ran = rig.relay.run_on_a_terminal(&["recover"], typed).await;
        let (status, screen) = ran.expect("recover runs");
        (status.code().expect("recover ends by itself"), screen)
    };
    for typed in ["no\n", "y\n", "\n"] {
        let (code, screen) = recover(typed).await;
        assert_eq!(code, NOT_CONFIRMED, "{screen}");
        let asked = screen.find("carry this out?");
        let told = screen.find("30 rows that are in no topic");
        assert!(
            told.is_some() && told < asked,
            "it says first what it will do: {screen}"
        );
        assert!(slots(&rig).await.is_empty(), "no slot was made");
    }
    let (code, screen) = recover("yes\n").await;
    assert_eq!(code, 0, "{screen}");
    rig.start().await;
    rig.insert_each(10).await;
    let ledger = rig.assert_exactly_once().await;
    assert_eq!(ledger.rows, 60);
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_recover_that_is_killed_at_any_moment_can_be_run_again() {
    let rig = Rig::initialised("recover_killed").await;
    lose_the_slot(&rig, 50, 25_000).await;
    let (mut killed, mut unfinished) = (0, 0);
    for kill_after_ms in [150, 400, 700, 1_000, 1_300, 1_600, 2_000, 2_500] {
        let recover = rig.relay.command_of("recover", &["recover", "--yes"]);
        recover.start().expect("a start");
        let ended = recover.exited(Duration::from_millis(kill_after_ms)).await;
        recover.kill_hard().await;
        if ended.is_ok() {
            break;
        }
        if recover.log_text().contains("recovered") {
            break;
        }
        killed += 1;
        // The sessions of the killed command end, and a slot that was not finished goes with them.
        rig.wait_until_slot_is_free().await;
        // No relay goes on from an unfinished slot.
        if !slots(&rig).await.is_empty() {
            rig.assert_stops(UNFINISHED, &["outbox-relay recover"]).await;
            unfinished += 1;
        }
    }
    assert!(killed > 0, "at least one was killed");
    kill_recover_before_its_end(&rig, "dies", &["--compare-anyway"]).await;
    rig.assert_stops(UNFINISHED, &["outbox-relay recover"]).await;
    let code = recover_code(&rig, &["--yes"]).await;
    assert_eq!(code, 0, "{}", rig.relay.log_tail(20));
    rig.start().await;
    rig.insert_each(50).await;
    rig.assert_exactly_once().await;
    println!("{killed} killed, {unfinished} of them with a slot made");
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_slot_that_postgres_invalidated_loses_nothing_while_the_rows_are_there() {
    let postgres = postgres_options()
        .setting("max_slot_wal_keep_size", "1MB")
        .setting("min_wal_size", "32MB")
        .setting("max_wal_size", "32MB");
    let servers = Servers::start(postgres, KafkaOptions::default())
        .await
        .expect("servers");
    let rig = Rig::on(Arc::new(servers), "recover_invalidated").await;
    rig.init(&[]).await;
    rig.start().await;
    rig.insert_each(50).await;
    rig.wait_until_published(READY_DEADLINE)
        .await
        .expect("the first rows are published");
    rig.relay.kill_hard().await;
    rig.insert_each(500).await;
    rig.sql("create table noise (filler text)").await;
    eventually_ok(Duration::from_secs(60), "the slot is lost", || async {
        rig.sql("insert into noise select repeat('x', 1000) from generate_series(1, 20000)")
            .await;
        rig.sql("select pg_switch_wal()").await;
        rig.sql("checkpoint").await;
        let status = rig.sql("select wal_status from pg_replication_slots").await;
        anyhow::ensure!(status[0][0].as_deref() == Some("lost"), "{status:?}");
        Ok(())
    })
    .await
    .expect("postgres gives the slot up");
    rig.assert_stops(SLOT_INVALIDATED, &["outbox-relay recover"]).await;
    assert_eq!(recover_code(&rig, &["--yes"]).await, 0, "{}", rig.relay.log_tail(20));
    rig.start().await;
    rig.insert_each(50).await;
    let ledger = rig.assert_exactly_once().await;
    assert_eq!(ledger.rows, 600);
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn what_compaction_removed_is_not_published_again() {
    let rig = Rig::new("recover_compacted").await;
    let topic_config = "cleanup.policy=compact\nmin.compaction.lag.ms=0\nsegment.ms=100\nmin.cleanable.dirty.ratio=0.001\nmax.compaction.lag.ms=1000";
    let relay = rig.relay.with_env("TOPIC_CONFIG", topic_config);
    let topic = format!("{}:{PARTITIONS}", rig.topic());
    relay.run(&["init", "--topic", &topic]).await.expect("init");
    rig.start().await;
    rig.insert_each(300).await;
    rig.wait_until_published(READY_DEADLINE)
        .await
        .expect("the first rows are published");
    let cleaned = eventually_ok(Duration::from_secs(90), "the topic is compacted", || async {
        // Kafka begins a new segment only when a record comes.
        roll_segments(&rig).await;
        let ids = rig.records(Isolation::Committed).await?.into_iter();
        let left = ids.filter(|record| record.header("id").is_some()).count();
        anyhow::ensure!(left < 100, "{left} records are left");
        Ok(left)
    })
    .await
    .expect("kafka compacts");
    assert_recovers_only_what_is_missing(&rig, cleaned).await;
}

#[tokio::test]
async fn what_retention_removed_is_not_published_again() {
    let rig = pruned_by_retention("recover_pruned").await;
    let left = rig.records(Isolation::Committed).await.expect("records").len();
    assert_recovers_only_what_is_missing(&rig, left).await;
}

/// A rig whose relay runs and has published 300 rows. The first half of each partition's records are removed.
async fn pruned_by_retention(name: &str) -> Rig {
    let rig = Rig::new(name).await;
    let relay = rig.relay.with_env("TOPIC_CONFIG", "cleanup.policy=delete");
    let topic = format!("{}:{PARTITIONS}", rig.topic());
    relay.run(&["init", "--topic", &topic]).await.expect("init");
    rig.start().await;
    rig.insert_each(300).await;
    rig.wait_until_published(READY_DEADLINE)
        .await
        .expect("the first rows are published");
    let before = rig.records(Isolation::Committed).await.expect("records");
    for partition in 0..PARTITIONS {
        let mut records = before.iter().filter(|record| record.partition == partition);
        let Some(last) = records.next_back() else { continue };
        let half = last.offset / 2;
        let deleted = rig.servers.kafka.delete_records(&rig.topic(), partition, half).await;
        deleted.expect("kafka deletes them");
    }
    let left = rig.records(Isolation::Committed).await.expect("records").len();
    assert!(left < 200, "{left} of {} records are left", before.len());
    // The rows are much older than the first records that are left, as with any real retention.
    rig.sql("alter table outbox alter created_at set default clock_timestamp() + interval '1 minute'")
        .await;
    rig
}

/// With a former number of partitions, the records of the first rows were in partitions that have removed records. The partitions of the current
/// number have removed nothing.
#[tokio::test]
async fn what_retention_removed_before_partitions_were_added_is_not_published_again() {
    let rig = pruned_by_retention("recover_pruned_added").await;
    rig.relay.kill_hard().await;
    let alter = ["--alter", "--topic", &rig.topic(), "--partitions", "6"];
    let altered = rig.servers.kafka.topic_tool(&alter).await;
    altered.expect("more partitions");
    rig.insert_each(40).await;
    rig.drop_slot().await;
    let is_told = |log: &str| log.contains("to be published     40 rows that are in no topic");
    let forgets = rig
        .relay
        .with_binary("outbox-relay-faults")
        .env("OUTBOX_RELAY_BUG", "ForgetFormerPartitions")
        .command_of("forgets", &["recover", "--accept-partitions"]);
    forgets.start().expect("a start");
    let status = forgets.exited(READY_DEADLINE).await.expect("an end");
    assert_eq!(status.code(), Some(NOT_CONFIRMED), "{}", forgets.log_tail(20));
    assert!(
        !is_told(&forgets.log_text()),
        "it goes unnoticed: {}",
        forgets.log_text()
    );
    assert_eq!(recover_code(&rig, &["--accept-partitions"]).await, NOT_CONFIRMED);
    assert!(is_told(&rig.relay.log_text()), "{}", rig.relay.log_text());
    assert_eq!(recover_code(&rig, &["--accept-partitions", "--yes"]).await, 0);
    // This is the next `recover`, long after the partitions were accepted.
    rig.drop_slot().await;
    assert_eq!(recover_code(&rig, &["--yes"]).await, 0);
    let said = rig.relay.log_text();
    assert!(
        said.contains("to be published     0 rows that are in no topic"),
        "{said}"
    );
    assert_goes_on(&rig).await;
}

/// Loses the slot with 40 rows that no topic has. The topic has only `left` of the earlier records. Asserts that `recover` publishes exactly those 40
/// rows.
async fn assert_recovers_only_what_is_missing(rig: &Rig, left: usize) {
    rig.relay.kill_hard().await;
    rig.insert_each(40).await;
    rig.drop_slot().await;
    assert_eq!(recover_code(rig, &["--yes"]).await, 0, "{}", rig.relay.log_tail(20));
    let said = rig.relay.log_text();
    assert!(
        said.contains("40 rows that are in no topic"),
        "{left} were left; {said}"
    );
    assert_goes_on(rig).await;
}

/// Asserts that the relay publishes a new row, and that no event of the topic is there twice.
async fn assert_goes_on(rig: &Rig) {
    rig.start().await;
    rig.insert_each(10).await;
    let arrived = eventually_ok(READY_DEADLINE, "the relay goes on", || async {
        let records = rig.records(Isolation::Committed).await?;
        let mut ids: Vec<&str> = records.iter().filter_map(|record| record.header("id")).collect();
        let count = ids.len();
        ids.sort_unstable();
        ids.dedup();
        anyhow::ensure!(ids.len() == count, "an event came twice");
        let newest = rig
            .value("select id from outbox order by created_at desc limit 1")
            .await;
        anyhow::ensure!(ids.contains(&newest.as_str()), "the newest row is missing");
        Ok(())
    });
    arrived.await.unwrap_or_else(|err| panic!("{err:#}"));
    rig.finish().await.expect("a clean end");
}

/// Writes a record without an id into each partition.
async fn roll_segments(rig: &Rig) {
    let (servers, topic) = (rig.servers.kafka.bootstrap_servers(), rig.topic());
    tokio::task::spawn_blocking(move || {
        use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", servers)
            .create()
            .expect("a producer");
        for partition in 0..PARTITIONS {
            let record = BaseRecord::to(&topic).partition(partition).key("roll").payload("{}");
            producer.send(record).expect("a record");
        }
        producer.flush(Duration::from_secs(10)).expect("acknowledged");
    })
    .await
    .expect("the producer's thread");
    tokio::time::sleep(Duration::from_millis(500)).await;
}

/// These rows have no age. Nothing tells whether a topic has removed a row's record or never had it. The operator decides.
#[tokio::test]
async fn rows_of_which_nothing_is_known_are_the_operators_to_decide() {
    for (answer, published) in [("publish", 340), ("skip", 0)] {
        let rig = Rig::new(&format!("recover_undecided_{answer}")).await;
        rig.sql("alter table outbox drop column created_at").await;
        let relay = rig.relay.with_env("TOPIC_CONFIG", "cleanup.policy=delete");
        let topic = format!("{}:{PARTITIONS}", rig.topic());
        relay.run(&["init", "--topic", &topic]).await.expect("init");
        rig.start().await;
        rig.insert_each(300).await;
        rig.wait_until_published(READY_DEADLINE)
            .await
            .expect("the first rows are published");
        rig.relay.kill_hard().await;
        for partition in 0..PARTITIONS {
            let deleted = rig.servers.kafka.delete_records(&rig.topic(), partition, -1).await;
            deleted.expect("kafka deletes them");
        }
        rig.insert_each(40).await;
        rig.drop_slot().await;
        let code = recover_code(&rig, &["--yes"]).await;
        assert_eq!(code, NOT_CONFIRMED, "{}", rig.relay.log_tail(20));
        let said = rig.relay.log_text();
        for flag in ["--undecided publish", "--undecided skip"] {
            assert!(said.contains(flag), "{said}");
        }
        assert_eq!(recover_code(&rig, &["--yes", "--undecided", answer]).await, 0);
        let records = rig.records(Isolation::Committed).await.expect("records");
        assert_eq!(records.len(), published, "{}", rig.relay.log_tail(20));
        rig.start().await;
        rig.insert_each(10).await;
        let arrived = eventually_ok(READY_DEADLINE, "the relay goes on", || async {
            let records = rig.records(Isolation::Committed).await?;
            anyhow::ensure!(records.len() == published + 10, "{}", records.len());
            Ok(())
        });
        arrived.await.unwrap_or_else(|err| panic!("{err:#}"));
        rig.finish().await.expect("a clean end");
    }
}
