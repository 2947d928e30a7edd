//! A cluster of three brokers that loses some of them, and moves leaders and coordinators, while the relay publishes.

use std::sync::Arc;
use std::time::Duration;

use rig::Rig;
use rig::cluster::Cluster;
use rustix::process::Signal;
use stack::eventually;
use stack::program::Readiness;

use crate::relay::load::{DEADLINE, Load, metric, wait_until_publishes};

/// Kafka's own topic that holds the state of transactions.
const TRANSACTION_STATE: &str = "__transaction_state";
/// By then a relay must say that it cannot publish.
const NOT_READY_DEADLINE: Duration = Duration::from_secs(20);
/// For so long a test watches that nothing is published while too few brokers run.
const STANDSTILL: Duration = Duration::from_secs(4);
/// The relay commits so many Kafka transactions before a failpoint freezes it, so that it is in the middle of its work.
const COMMITS_BEFORE_FREEZE: u32 = 40;

/// A rig on the cluster. `init` was not run.
async fn rig_on(cluster: &Cluster, name: &str) -> Rig {
    let mut rig = Rig::on(Arc::clone(&cluster.servers), name).await;
    // Large transactions of the outbox become several Kafka transactions.
    rig.relay = rig.relay.env("TRANSACTION_BYTES", "65536");
    rig
}

/// Asks Kafka's own tool which brokers coordinate the open transactions of the rig's relay.
async fn coordinators_of_open_transactions(cluster: &Cluster, rig: &Rig) -> Vec<i32> {
    let transactions = cluster.servers.kafka.transactions().await.expect("transactions");
    let ours = transactions
        .iter()
        .filter(|transaction| transaction.transactional_id.contains(rig.name()) && transaction.state == "Ongoing");
    ours.map(|transaction| transaction.coordinator).collect()
}

/// Ends the load. Asserts that every row is in the topic once, and in order.
async fn assert_nothing_lost_or_doubled(rig: &Rig, load: Load) {
    rig.insert_together(900).await;
    load.stop().await;
    let ledger = rig.assert_exactly_once().await;
    assert!(ledger.rows > 1_000, "{ledger}");
    rig.finish().await.expect("a clean end");
}

/// Starts the relay and clients that write. Returns once the relay is frozen just before it commits a Kafka transaction.
async fn freeze_relay_in_a_transaction(rig: &mut Rig) -> Load {
    rig.init(&[]).await;
    let hits = rig.logs().join("hits");
    rig.relay = rig
        .relay
        .with_binary("outbox-relay-faults")
        .env(
            "OUTBOX_RELAY_FAILPOINT",
            &format!("commit.before=freeze@{COMMITS_BEFORE_FREEZE}"),
        )
        .env("OUTBOX_RELAY_FAILPOINT_HITS", &hits.to_string_lossy());
    rig.start().await;
    let load = Load::start_on(rig);
    rig.insert_together(900).await;
    let stat = format!("/proc/{}/stat", rig.relay.process().expect("a relay").id());
    eventually(DEADLINE, "the relay stands still", || async {
        std::fs::read_to_string(&stat).ok()?.contains(") T ").then_some(())
    })
    .await;
    load
}

fn wake_relay(rig: &Rig) {
    rig.relay.process().expect("a relay").signal(Signal::CONT);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_all_brokers_loses_and_repeats_nothing() {
    let cluster = Cluster::take_turn().await;
    let rig = rig_on(&cluster, "rolling").await;
    rig.init(&[]).await;
    rig.start().await;
    let load = Load::start_on(&rig);
    let topics = [rig.topic(), rig.checkpoint_topic(), TRANSACTION_STATE.to_owned()];
    let topics = topics.each_ref().map(String::as_str);
    for id in cluster.nodes.ids() {
        rig.insert_together(900).await;
        wait_until_publishes(&rig.relay, 100.0).await;
        cluster.nodes.node(id).stop().await.expect("a clean end");
        cluster.start_again(id).await;
        cluster.wait_until_in_sync(&topics).await;
    }
    wait_until_publishes(&rig.relay, 100.0).await;
    assert_nothing_lost_or_doubled(&rig, load).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_coordinator_of_an_open_transaction_is_killed_and_another_broker_ends_it() {
    let cluster = Cluster::take_turn().await;
    let mut rig = rig_on(&cluster, "coordinator").await;
    let load = freeze_relay_in_a_transaction(&mut rig).await;
    let coordinators = coordinators_of_open_transactions(&cluster, &rig).await;
    let coordinator = *coordinators.first().expect("an open transaction");
    cluster.nodes.node(coordinator).kill_hard().await;
    wake_relay(&rig);
    wait_until_publishes(&rig.relay, 1_000.0).await;
    cluster.start_again(coordinator).await;
    wait_until_publishes(&rig.relay, 100.0).await;
    assert_nothing_lost_or_doubled(&rig, load).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_that_move_in_the_middle_of_a_transaction_lose_and_repeat_nothing() {
    let cluster = Cluster::take_turn().await;
    let mut rig = rig_on(&cluster, "leaders").await;
    let load = freeze_relay_in_a_transaction(&mut rig).await;
    cluster.move_leaders(&[&rig.topic(), &rig.checkpoint_topic()]).await;
    let coordinators = coordinators_of_open_transactions(&cluster, &rig).await;
    assert!(
        !coordinators.is_empty(),
        "the transaction ended before the leaders moved"
    );
    wake_relay(&rig);
    wait_until_publishes(&rig.relay, 1_000.0).await;
    assert_nothing_lost_or_doubled(&rig, load).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_one_broker_killed_the_relay_goes_on_and_another_is_initialised_and_recovers() {
    let cluster = Cluster::take_turn().await;
    let running = rig_on(&cluster, "one_down").await;
    running.init(&[]).await;
    running.start().await;
    let load = Load::start_on(&running);
    wait_until_publishes(&running.relay, 100.0).await;
    let topic = running.topic();
    let leader = cluster.partitions(&[&topic]).await.expect("partitions")[0].leader;
    cluster.nodes.node(leader).kill_hard().await;
    wait_until_publishes(&running.relay, 1_000.0).await;
    let rig = rig_on(&cluster, "one_down_from_the_start").await;
    rig.insert_each(20).await;
    rig.init(&[]).await;
    rig.start().await;
    rig.insert_together(900).await;
    rig.assert_exactly_once().await;
    rig.relay.stop().await.expect("a clean end");
    rig.drop_slot().await;
    rig.insert_each(5).await;
    let recovered = rig.relay.run(&["recover", "--yes"]).await;
    recovered.unwrap_or_else(|err| panic!("{err:#}"));
    rig.start().await;
    rig.insert_each(5).await;
    rig.assert_exactly_once().await;
    rig.finish().await.expect("a clean end");
    assert_nothing_lost_or_doubled(&running, load).await;
    cluster.start_again(leader).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_two_brokers_killed_nothing_commits_and_the_relay_says_so_and_goes_on_once_one_is_back() {
    let cluster = Cluster::take_turn().await;
    let rig = rig_on(&cluster, "two_down").await;
    rig.init(&[]).await;
    rig.start().await;
    let load = Load::start_on(&rig);
    wait_until_publishes(&rig.relay, 100.0).await;
    for id in [2, 3] {
        cluster.nodes.node(id).kill_hard().await;
    }
    let client = reqwest::Client::new();
    eventually(NOT_READY_DEADLINE, "the relay says that it cannot publish", || async {
        match rig.relay.readiness(&client).await {
            Ok(Readiness::NotReady(reasons)) if reasons.contains("kafka") => Some(()),
            _ => None,
        }
    })
    .await;
    let published = || async {
        let published = metric(&rig.relay, "relay_published_records_total").await;
        published.expect("a running relay")
    };
    let (before, confirmed) = (published().await, rig.confirmed_lsn().await);
    load.wait_for_more_rows(100).await;
    tokio::time::sleep(STANDSTILL).await;
    assert!(
        (published().await - before).abs() < 0.5,
        "published with one replica of three"
    );
    assert_eq!(rig.confirmed_lsn().await, confirmed);
    let readiness = rig.relay.readiness(&client).await.expect("an answer");
    assert!(matches!(readiness, Readiness::NotReady(_)), "ready while it waits");
    cluster.start_again(3).await;
    rig.relay
        .wait_ready(DEADLINE)
        .await
        .unwrap_or_else(|err| panic!("{err:#}"));
    wait_until_publishes(&rig.relay, 100.0).await;
    cluster.start_again(2).await;
    assert_nothing_lost_or_doubled(&rig, load).await;
}
