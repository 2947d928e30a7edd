//! With `--since`, `recover` need not read the topics from their beginning.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rig::rig::PARTITIONS;
use rig::{Isolation, Rig, relay_exit};

use crate::relay::tampering::wait_until_confirmed;
use crate::relay::ways_out::run_recover;

const OLD_RECORDS: usize = 40;

/// Writes records that are older than any row.
async fn write_old_records(rig: &Rig, age: Duration) {
    let (servers, topic) = (rig.servers.kafka.bootstrap_servers(), rig.topic());
    let written_at = std::time::SystemTime::now() - age;
    let written_ms = written_at
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970")
        .as_millis();
    let written_ms = i64::try_from(written_ms).expect("a time");
    tokio::task::spawn_blocking(move || {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", servers)
            .create()
            .expect("a producer");
        for number in 0..OLD_RECORDS {
            let partition = i32::try_from(number).expect("a number") % PARTITIONS;
            let record = BaseRecord::to(&topic)
                .partition(partition)
                .key("old")
                .payload("{}")
                .timestamp(written_ms);
            producer.send(record).expect("a record");
        }
        producer.flush(Duration::from_secs(10)).expect("acknowledged");
    })
    .await
    .expect("the producer's thread");
}

/// As `publish_and_stop`, in a topic that has other records, too.
async fn publish_five_and_stop(rig: &Rig) {
    rig.start().await;
    rig.insert_each(5).await;
    wait_until_confirmed(rig).await;
    rig.relay.stop().await.expect("a clean end");
}

/// How many records of the topic `recover` has read, by its plan. A partition without a young record is read from its end.
fn records_read(plan: &str) -> usize {
    let line = plan.lines().find(|line| line.starts_with("topics"));
    let count = line.and_then(|line| line.split('(').nth(1)?.split(' ').next()?.parse().ok());
    count.unwrap_or_else(|| panic!("no topic's records: {plan}"))
}

/// Runs `recover` without an answer. Returns its plan.
async fn plan(rig: &Rig, arguments: &[&str]) -> String {
    let logged = rig.relay.log_text().len();
    let all: Vec<&str> = ["recover"].iter().chain(arguments).copied().collect();
    let status = rig.relay.run_for_status(&all).await.expect("recover runs");
    let said = rig.relay.log_text()[logged..].to_owned();
    assert_eq!(status.code(), Some(relay_exit::NOT_CONFIRMED), "{said}");
    said
}

#[tokio::test]
async fn topics_are_read_from_before_the_oldest_row_and_wholly_where_a_row_claims_to_be_from_the_future() {
    let rig = Rig::initialised("since_default").await;
    write_old_records(&rig, Duration::from_secs(2 * 24 * 60 * 60)).await;
    publish_five_and_stop(&rig).await;
    rig.drop_slot().await;
    rig.insert_each(2).await;
    let said = plan(&rig, &[]).await;
    assert!(records_read(&said) < OLD_RECORDS + 5, "{said}");
    assert!(said.contains("2 rows that are in no topic"), "{said}");
    rig.sql("update outbox set created_at = now() + interval '1 hour' where payload ->> 'n' = '7'")
        .await;
    let said = plan(&rig, &[]).await;
    assert_eq!(records_read(&said), OLD_RECORDS + 5, "{said}");
    run_recover(&rig, &[]).await;
    rig.start().await;
    rig.insert_each(1).await;
    let ledger = rig
        .wait_until_published(rig::rig::ARRIVAL_DEADLINE)
        .await
        .expect("all rows");
    // The old records have no id, and nothing else is there twice.
    assert_eq!((ledger.rows, ledger.records), (8, OLD_RECORDS + 8), "{ledger}");
    assert_eq!(ledger.duplicates, ["(none)"], "{ledger}");
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn rows_from_before_since_count_as_published_and_all_others_are_compared() {
    let rig = Rig::new("since_told").await;
    // These rows could be another system's, which published them to a topic that is gone.
    rig.insert_each(3).await;
    rig.sql("update outbox set created_at = created_at - interval '3 hours'")
        .await;
    rig.init(&["--existing-rows", "skip"]).await;
    write_old_records(&rig, Duration::from_secs(2 * 60 * 60)).await;
    publish_five_and_stop(&rig).await;
    rig.drop_slot().await;
    rig.insert_each(2).await;
    let said = plan(&rig, &[]).await;
    assert!(said.contains("5 rows that are in no topic"), "{said}");
    let since = rig.value("select (now() - interval '1 hour')::text").await;
    let said = plan(&rig, &["--since", &since]).await;
    assert!(said.contains("2 rows that are in no topic"), "{said}");
    assert!(records_read(&said) < OLD_RECORDS + 5, "{said}");
    for (wrong, says) in [
        ("neverday", "expected a moment like"),
        ("tomorrow", "it is in the future"),
    ] {
        let arguments = ["recover", "--since", wrong];
        let status = rig.relay.run_for_status(&arguments).await.expect("recover runs");
        assert_eq!(
            status.code(),
            Some(relay_exit::WRONG_SETTING),
            "{}",
            rig.relay.log_tail(2)
        );
        assert!(rig.relay.log_tail(2).contains(says), "{}", rig.relay.log_tail(2));
    }
    run_recover(&rig, &["--since", &since]).await;
    assert_goes_on_without_duplicates(&rig).await;
}

/// Asserts that each row younger than the old records, and a row that is written now, is published once.
async fn assert_goes_on_without_duplicates(rig: &Rig) {
    rig.sql("delete from outbox where created_at < now() - interval '1 hour'")
        .await;
    rig.start().await;
    rig.insert_each(1).await;
    let ledger = rig
        .wait_until_published(rig::rig::ARRIVAL_DEADLINE)
        .await
        .expect("all rows");
    // The old records have no id, and nothing else is there twice.
    assert_eq!((ledger.rows, ledger.records), (8, OLD_RECORDS + 8), "{ledger}");
    assert_eq!(ledger.duplicates, ["(none)"], "{ledger}");
    rig.finish().await.expect("a clean end");
}

/// The header `position` of the record whose row has the number `n`.
async fn position_of(rig: &Rig, n: &str) -> String {
    let id = rig
        .value(&format!("select id from outbox where payload ->> 'n' = '{n}'"))
        .await;
    let records = rig.records(Isolation::Committed).await.expect("records");
    let record = records.iter().find(|record| record.header("id") == Some(&id));
    let position = record.and_then(|record| record.header("position"));
    position.unwrap_or_else(|| panic!("row {n} has no record")).to_owned()
}

#[tokio::test]
async fn rows_from_before_a_records_commit_count_as_published_and_all_others_are_compared() {
    let rig = Rig::new("since_position").await;
    rig.insert_each(3).await;
    rig.sql("update outbox set created_at = created_at - interval '3 hours'")
        .await;
    rig.init(&["--existing-rows", "skip"]).await;
    write_old_records(&rig, Duration::from_secs(2 * 60 * 60)).await;
    publish_five_and_stop(&rig).await;
    rig.drop_slot().await;
    rig.insert_each(2).await;
    let since = position_of(&rig, "4").await;
    let said = plan(&rig, &["--since-position", &since]).await;
    assert!(
        said.contains("7, those that were created since the commit at"),
        "{said}"
    );
    assert!(said.contains("2 rows that are in no topic"), "{said}");
    assert!(records_read(&said) < OLD_RECORDS + 5, "{said}");
    let (_, committed_at) = since.rsplit_once(':').expect("three parts");
    for (wrong, says) in [
        ("16/B374D848".to_owned(), "expected LSN:INDEX:MICROSECONDS"),
        (
            format!("FFFF/0:0:{committed_at}"),
            "above all that is known to be published",
        ),
        (format!("{since}000"), "in the future"),
    ] {
        let arguments = ["recover", "--yes", "--since-position", &wrong];
        let status = rig.relay.run_for_status(&arguments).await.expect("recover runs");
        assert_eq!(
            status.code(),
            Some(relay_exit::WRONG_SETTING),
            "{}",
            rig.relay.log_tail(2)
        );
        assert!(rig.relay.log_tail(6).contains(says), "{}", rig.relay.log_tail(6));
    }
    run_recover(&rig, &["--since-position", &since]).await;
    assert_goes_on_without_duplicates(&rig).await;
}
