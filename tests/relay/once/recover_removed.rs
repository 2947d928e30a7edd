//! `recover` when a topic has removed records, by compaction or retention: a row whose record was removed is not published again.

use std::time::Duration;

use rdkafka::config::ClientConfig;
use rig::rig::{PARTITIONS, READY_DEADLINE};
use rig::{Isolation, Rig, relay_exit};
use stack::eventually_ok;

use super::recover::recover_code;

#[tokio::test]
async fn what_compaction_removed_is_not_published_again() {
    let rig = Rig::new("recover_compacted").await;
    let topic_config = "cleanup.policy=compact\nmin.compaction.lag.ms=0\nsegment.ms=100\nmin.cleanable.dirty.ratio=0.001\nmax.compaction.lag.ms=1000";
    publish_first_rows(&rig, topic_config).await;
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
    let rig = rig_pruned_by_retention("recover_pruned").await;
    let left = rig.records(Isolation::Committed).await.expect("records").len();
    assert_recovers_only_what_is_missing(&rig, left).await;
}

/// With a former number of partitions, the records of the first rows were in partitions that have removed records. The partitions of the current
/// number have removed nothing.
#[tokio::test]
async fn what_retention_removed_before_partitions_were_added_is_not_published_again() {
    let rig = rig_pruned_by_retention("recover_pruned_added").await;
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
    assert_eq!(
        status.code(),
        Some(relay_exit::NOT_CONFIRMED),
        "{}",
        forgets.log_tail(20)
    );
    assert!(
        !is_told(&forgets.log_text()),
        "it goes unnoticed: {}",
        forgets.log_text()
    );
    assert_eq!(
        recover_code(&rig, &["--accept-partitions"]).await,
        relay_exit::NOT_CONFIRMED
    );
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

/// With `now()`, the row that was created first may commit last: its transaction has waited for another one. Then `created_at` does not tell that the row
/// was published before the other one, and compacted away.
#[tokio::test]
async fn a_row_that_was_created_before_a_published_one_and_committed_after_it_is_not_taken_for_published() {
    let rig = Rig::new("recover_started_first").await;
    rig.sql("alter table outbox alter created_at set default now()").await;
    publish_first_rows(&rig, "cleanup.policy=compact\nmin.compaction.lag.ms=0").await;
    let started_first = rig.connect().await;
    started_first
        .batch_execute("begin; select now()")
        .await
        .expect("a transaction");
    rig.sql(&rig.insert_statement(7, 7)).await;
    rig.wait_until_published(READY_DEADLINE).await.expect("the later rows");
    rig.relay.kill_hard().await;
    started_first
        .batch_execute(&rig.insert_statement(7, 7))
        .await
        .expect("rows");
    started_first.batch_execute("commit").await.expect("a commit");
    rig.drop_slot().await;
    let code = recover_code(&rig, &["--yes"]).await;
    let said = rig.relay.log_text();
    assert_eq!(code, relay_exit::NOT_CONFIRMED, "{said}");
    assert!(said.contains("7 rows may have been published"), "{said}");
    assert_eq!(recover_code(&rig, &["--yes", "--undecided", "publish"]).await, 0);
    let ledger = rig.wait_until_published(READY_DEADLINE).await.expect("all rows");
    assert_eq!((ledger.rows, ledger.lost.len()), (314, 0), "{ledger}");
    assert_goes_on(&rig).await;
    let check = rig.relay.run_for_status(&["check"]).await.expect("an end");
    let warns = "created_at of table public.outbox is not set by clock_timestamp()";
    assert!(
        rig.relay.log_tail(40).contains(warns),
        "{check}: {}",
        rig.relay.log_tail(40)
    );
}

/// These rows have no age. Nothing tells whether a topic has removed a row's record or never had it. The operator decides.
#[tokio::test]
async fn rows_of_which_nothing_is_known_are_the_operators_to_decide() {
    for (answer, published) in [("publish", 340), ("skip", 0)] {
        let rig = Rig::new(&format!("recover_undecided_{answer}")).await;
        rig.sql("alter table outbox drop column created_at").await;
        publish_first_rows(&rig, "cleanup.policy=delete").await;
        rig.relay.kill_hard().await;
        for partition in 0..PARTITIONS {
            let deleted = rig.servers.kafka.delete_records(&rig.topic(), partition, -1).await;
            deleted.expect("kafka deletes them");
        }
        rig.insert_each(40).await;
        rig.drop_slot().await;
        let code = recover_code(&rig, &["--yes"]).await;
        assert_eq!(code, relay_exit::NOT_CONFIRMED, "{}", rig.relay.log_tail(20));
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

/// Makes the topic with these settings, starts the relay, and has it publish 300 rows.
async fn publish_first_rows(rig: &Rig, topic_config: &str) {
    let relay = rig.relay.with_env("TOPIC_CONFIG", topic_config);
    let topic = format!("{}:{PARTITIONS}", rig.topic());
    relay.run(&["init", "--topic", &topic]).await.expect("init");
    rig.start().await;
    rig.insert_each(300).await;
    rig.wait_until_published(READY_DEADLINE)
        .await
        .expect("the first rows are published");
}

/// A rig whose relay runs and has published 300 rows. The first half of each partition's records are removed.
async fn rig_pruned_by_retention(name: &str) -> Rig {
    let rig = Rig::new(name).await;
    publish_first_rows(&rig, "cleanup.policy=delete").await;
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
