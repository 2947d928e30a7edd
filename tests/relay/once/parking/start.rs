//! What a start has to know about the parking topic.

use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rig::Rig;
use rig::rig::{ARRIVAL_DEADLINE, READY_DEADLINE};
use stack::eventually;

const TIMEOUT: Duration = Duration::from_secs(10);

/// A producer that has a transaction open in the topic.
fn open_transaction(bootstrap_servers: &str, topic: &str) -> BaseProducer {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap_servers)
        .set("transactional.id", format!("{topic}-stranger"))
        .create()
        .expect("a producer");
    producer.init_transactions(TIMEOUT).expect("a producer of transactions");
    producer.begin_transaction().expect("a transaction");
    let record = BaseRecord::to(topic).key("stranger").payload("{}");
    producer.send(record).expect("a record");
    producer.flush(TIMEOUT).expect("acknowledged");
    producer
}

/// Kafka does not answer the start's question for the parking topic at first. The start asks again, and then waits for the transaction.
#[tokio::test]
async fn a_start_that_gets_no_answer_about_the_parking_topic_does_not_go_on_behind_an_open_transaction_in_it() {
    let mut rig = Rig::new("parking_unanswered").await;
    rig.relay = rig.relay.with_env("OUTBOX_POISON", "park");
    rig.init(&[]).await;
    let (servers, topic) = (rig.servers.kafka.bootstrap_servers(), rig.parking_topic());
    let opening = tokio::task::spawn_blocking(move || open_transaction(&servers, &topic));
    let stranger = opening.await.expect("a thread");
    rig.relay = rig
        .relay
        .with_binary("outbox-relay-faults")
        .env("OUTBOX_RELAY_FAILPOINT", "start.parking-topic=error@1")
        .env(
            "OUTBOX_RELAY_FAILPOINT_HITS",
            &rig.logs().join("hits").to_string_lossy(),
        );
    rig.relay.start().expect("a start");
    let log = eventually(ARRIVAL_DEADLINE, "it waits or streams", || async {
        let log = rig.relay.log_text();
        (log.contains("open transaction") || log.contains("streaming from the checkpoint")).then_some(log)
    })
    .await;
    assert!(!log.contains("streaming from the checkpoint"), "{log}");
    let aborting = tokio::task::spawn_blocking(move || stranger.abort_transaction(TIMEOUT));
    aborting.await.expect("a thread").expect("an abort");
    rig.relay
        .wait_ready(READY_DEADLINE)
        .await
        .unwrap_or_else(|err| panic!("{err:#}"));
    rig.insert_each(3).await;
    rig.assert_exactly_once().await;
    rig.finish().await.expect("a clean end");
}
