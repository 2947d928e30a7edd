//! An EndTxn that arrives late ends nothing: the producer whose connection broke is replaced, and its epoch with it (KIP-890 tells of the
//! case; librdkafka has no client side of that).

use std::sync::Arc;
use std::time::Duration;

use rig::kafka_proxy::{Held, KafkaProxy};
use rig::{Ledger, Rig, Servers, servers};
use stack::{Isolation, KafkaOptions, eventually, port};

const DEADLINE: Duration = Duration::from_secs(60);
/// A relay that works has long published all by then; what one with the bug lost never comes.
const LOST_AFTER: Duration = Duration::from_secs(15);

/// The broker's error code for the late EndTxn, and what is in the topic afterwards: `wait_for_rows` at most until all is there.
async fn with_a_late_end_txn(name: &str, bug: &str, wait_for_rows: Duration) -> (i16, Ledger) {
    let (own, proxied) = (port::free().expect("a port"), port::free().expect("a port"));
    let mut options = KafkaOptions {
        port: own,
        ..servers::kafka_options()
    };
    // Clients go where the broker says it is.
    let advertised = format!("PLAINTEXT://127.0.0.1:{proxied}");
    options.settings.push(("advertised.listeners".to_owned(), advertised));
    let proxy = KafkaProxy::start(proxied, own).await.expect("a proxy");
    let servers = Servers::start(servers::postgres_options(), options)
        .await
        .expect("servers");
    let rig = Rig::on(Arc::new(servers), name).await;
    rig.init(&[]).await;
    let relay = rig
        .relay
        .with_binary("outbox-relay-faults")
        .env("KAFKA_BOOTSTRAP_SERVERS", &format!("127.0.0.1:{proxied}"))
        .env("OUTBOX_RELAY_BUG", bug);
    relay.start().expect("a relay");
    rig.insert_each(20).await;
    rig.settled(DEADLINE).await.expect("the relay publishes");
    proxy.hold_next_end_txn();
    let arrived = eventually(DEADLINE, "the late EndTxn arrives", || async {
        rig.insert_together(2_000).await;
        match proxy.held() {
            Held::Arrived(code) => Some(code),
            _ => None,
        }
    })
    .await;
    rig.insert_each(20).await;
    let ledger = match rig.settled(wait_for_rows).await {
        Ok(ledger) => ledger,
        Err(_) => rig.ledger(Isolation::Committed).await.expect("a ledger"),
    };
    relay.stop().await.expect("a clean end");
    (arrived, ledger)
}

#[tokio::test]
async fn an_end_txn_that_arrives_late_is_refused_and_ends_nothing() {
    let (error_code, ledger) = with_a_late_end_txn("late_end_txn", "", DEADLINE).await;
    assert_ne!(
        error_code, 0,
        "the broker takes no EndTxn of a producer that was replaced"
    );
    assert!(ledger.is_exact(), "{ledger}");
}

/// What the late EndTxn ends is the next transaction: sometimes it commits half of one that is then sent again, sometimes it aborts one
/// that the relay takes for committed.
#[tokio::test]
async fn reusing_a_producer_after_a_disturbed_commit_is_caught() {
    let (error_code, ledger) = with_a_late_end_txn("late_end_txn_reused", "ReuseProducer", LOST_AFTER).await;
    assert!(
        error_code == 0 && !ledger.is_exact(),
        "ReuseProducer goes unnoticed: {ledger}"
    );
}
