//! An EndTxn that arrives late ends nothing, because the relay replaces a producer whose connection broke, and the new one has another epoch.
//! (KIP-890 describes the case. librdkafka has no client side of it.)

use std::sync::Arc;
use std::time::Duration;

use rig::kafka_proxy::{Held, KafkaProxy};
use rig::{Ledger, Rig, Servers, servers};
use stack::{Isolation, KafkaOptions, eventually, port};

const DEADLINE: Duration = Duration::from_secs(60);
/// By then a relay without the bug has published everything. What a relay with the bug has lost never comes.
const LOST_AFTER: Duration = Duration::from_secs(15);

/// Lets an EndTxn arrive late, at most `times` times, until it does harm. Returns the broker's error code for the last one, and the records of the
/// topic. It waits for all rows, but at most `wait_for_rows`.
async fn with_late_end_txns(name: &str, bug: &str, times: usize, wait_for_rows: Duration) -> (i16, Ledger) {
    let (own, proxied) = (port::free().expect("a port"), port::free().expect("a port"));
    let mut options = KafkaOptions {
        port: own,
        ..servers::kafka_options()
    };
    // Clients connect to the address that the broker advertises.
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
    rig.wait_until_published(DEADLINE).await.expect("the relay publishes");
    let mut last = late_end_txn(&rig, &proxy, wait_for_rows).await;
    for _ in 1..times {
        if !last.1.is_exact() {
            break;
        }
        last = late_end_txn(&rig, &proxy, wait_for_rows).await;
    }
    relay.stop().await.expect("a clean end");
    last
}

async fn late_end_txn(rig: &Rig, proxy: &KafkaProxy, wait_for_rows: Duration) -> (i16, Ledger) {
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
    let ledger = match rig.wait_until_published(wait_for_rows).await {
        Ok(ledger) => ledger,
        Err(_) => rig.ledger(Isolation::Committed).await.expect("a ledger"),
    };
    (arrived, ledger)
}

#[tokio::test]
async fn an_end_txn_that_arrives_late_is_refused_and_ends_nothing() {
    let (error_code, ledger) = with_late_end_txns("late_end_txn", "", 1, DEADLINE).await;
    assert_ne!(
        error_code, 0,
        "the broker takes no EndTxn of a producer that was replaced"
    );
    assert!(ledger.is_exact(), "{ledger}");
}

/// The late EndTxn ends the next transaction. Sometimes it commits half of a transaction, which the relay then sends again. Sometimes it aborts a
/// transaction that the relay takes for committed. About one in forty arrives between two partitions whose records do not overlap. Then one
/// transaction becomes two, and both commit.
#[tokio::test]
async fn reusing_a_producer_after_a_disturbed_commit_is_caught() {
    let (error_code, ledger) = with_late_end_txns("late_end_txn_reused", "ReuseProducer", 5, LOST_AFTER).await;
    assert!(
        error_code == 0 && !ledger.is_exact(),
        "ReuseProducer goes unnoticed: the late EndTxn was answered {error_code}; {ledger}"
    );
}
