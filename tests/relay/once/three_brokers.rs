//! A cluster of three brokers that loses some of them, and moves leaders and coordinators, while the relay publishes.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use rig::partitions::{Partition, partitions};
use rig::servers::{kafka_options, postgres_options};
use rig::{Rig, Servers};
use rustix::process::Signal;
use stack::program::Readiness;
use stack::{KafkaCluster, eventually, eventually_ok};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

use crate::relay::load::{DEADLINE, Load, metric, publishes};

const BROKERS: usize = 3;
/// Kafka's own topic that holds the state of transactions.
const TRANSACTION_STATE: &str = "__transaction_state";
/// Until a relay must say that it cannot publish.
const SAYS_SO_WITHIN: Duration = Duration::from_secs(20);
/// Nothing may be published for so long while too few brokers are there.
const STANDSTILL: Duration = Duration::from_secs(4);
/// The relay commits that often before a failpoint stops it, so that it is in the middle of its work.
const COMMITS_BEFORE_FREEZE: u32 = 40;

/// The cluster, which one test at a time may break.
struct Cluster {
    servers: Arc<Servers>,
    nodes: MutexGuard<'static, KafkaCluster>,
}

impl Cluster {
    /// Waits for its turn; whatever an earlier test left broken is whole again then.
    async fn take() -> Self {
        static CLUSTER: OnceCell<(Arc<Servers>, Mutex<KafkaCluster>)> = OnceCell::const_new();
        let (servers, nodes) = CLUSTER
            .get_or_init(|| async {
                let started = Servers::start_with_cluster(postgres_options(), BROKERS, kafka_options()).await;
                let (servers, nodes) = started.unwrap_or_else(|err| panic!("the servers do not start: {err:#}"));
                (Arc::new(servers), Mutex::new(nodes))
            })
            .await;
        let cluster = Self {
            servers: Arc::clone(servers),
            nodes: nodes.lock().await,
        };
        for id in cluster.nodes.ids() {
            if cluster.nodes.node(id).process().is_none() {
                cluster.start_again(id).await;
            }
        }
        cluster.nodes.wait_until_whole().await.expect("a whole cluster");
        cluster
    }

    /// An outbox, its relay and their topics; the relay is not initialised.
    async fn rig(&self, name: &str) -> Rig {
        let mut rig = Rig::on(Arc::clone(&self.servers), name).await;
        // Large transactions of the outbox become several Kafka transactions.
        rig.relay = rig.relay.env("TRANSACTION_BYTES", "65536");
        rig
    }

    async fn start_again(&self, id: i32) {
        let started = self.nodes.node(id).start_again().await;
        started.unwrap_or_else(|err| panic!("broker {id}: {err:#}"));
    }

    async fn partitions(&self, topics: &[&str]) -> anyhow::Result<Vec<Partition>> {
        let bootstrap_servers = self.servers.kafka.bootstrap_servers();
        let topics: Vec<String> = topics.iter().map(|&topic| topic.to_owned()).collect();
        let asked = tokio::task::spawn_blocking(move || {
            let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
            partitions(&bootstrap_servers, &topics)
        });
        asked.await?
    }

    /// Waits until every broker has every record of these topics, so that the next broker may go.
    async fn wait_until_in_sync(&self, topics: &[&str]) {
        let in_sync = eventually_ok(DEADLINE, "all replicas are in sync", || async {
            for partition in self.partitions(topics).await? {
                ensure!(
                    partition.in_sync.len() == BROKERS && partition.leader > 0,
                    "{partition:?}"
                );
            }
            Ok(())
        });
        in_sync.await.unwrap_or_else(|err| panic!("{err:#}"));
    }

    /// Has another broker lead each partition of these topics, and waits until it does.
    async fn move_leaders(&self, topics: &[&str]) {
        let before = self.partitions(topics).await.expect("partitions");
        let wanted = before.iter().map(|partition| {
            let mut replicas = partition.replicas.clone();
            let leader = replicas.iter().position(|&node| node == partition.leader);
            replicas.rotate_left(leader.expect("the leader is a replica") + 1);
            (partition.topic.clone(), partition.id, replicas)
        });
        let wanted: Vec<_> = wanted.collect();
        let elected = self.servers.kafka.elect_leaders(&wanted).await;
        elected.unwrap_or_else(|err| panic!("{err:#}"));
        let moved = eventually_ok(DEADLINE, "other brokers lead", || async {
            let after = self.partitions(topics).await?;
            for ((_, _, replicas), partition) in wanted.iter().zip(&after) {
                ensure!(replicas.first() == Some(&partition.leader), "{partition:?}");
            }
            Ok(())
        });
        moved.await.unwrap_or_else(|err| panic!("{err:#}"));
        assert!(before.len() > topics.len(), "{before:?}");
    }

    /// The brokers that coordinate the transactions of `rig` that are open now, by Kafka's own tool.
    async fn coordinators_of_open_transactions(&self, rig: &Rig) -> Vec<i32> {
        let known = self.servers.kafka.transactions().await.expect("transactions");
        let ours = known
            .iter()
            .filter(|known| known.transactional_id.contains(rig.name()) && known.state == "Ongoing");
        ours.map(|known| known.coordinator).collect()
    }
}

/// Ends the load; every row must be in the topic once, and in order.
async fn assert_nothing_lost_or_doubled(rig: &Rig, load: Load) {
    rig.insert_together(900).await;
    load.stop().await;
    let ledger = rig.assert_exactly_once().await;
    assert!(ledger.rows > 1_000, "{ledger}");
    rig.finish().await.expect("a clean end");
}

/// A relay that stands still just before it commits a Kafka transaction, while rows flow.
async fn frozen_in_a_transaction(rig: &mut Rig) -> Load {
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
    let load = Load::on(rig);
    rig.insert_together(900).await;
    let stat = format!("/proc/{}/stat", rig.relay.process().expect("a relay").id());
    eventually(DEADLINE, "the relay stands still", || async {
        std::fs::read_to_string(&stat).ok()?.contains(") T ").then_some(())
    })
    .await;
    load
}

fn wake(rig: &Rig) {
    rig.relay.process().expect("a relay").signal(Signal::CONT);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_all_brokers_loses_and_repeats_nothing() {
    let cluster = Cluster::take().await;
    let rig = cluster.rig("rolling").await;
    rig.init(&[]).await;
    rig.start().await;
    let load = Load::on(&rig);
    let topics = [rig.topic(), rig.checkpoint_topic(), TRANSACTION_STATE.to_owned()];
    let topics = topics.each_ref().map(String::as_str);
    for id in cluster.nodes.ids() {
        rig.insert_together(900).await;
        publishes(&rig.relay, 100.0).await;
        cluster.nodes.node(id).stop().await.expect("a clean end");
        cluster.start_again(id).await;
        cluster.wait_until_in_sync(&topics).await;
    }
    publishes(&rig.relay, 100.0).await;
    assert_nothing_lost_or_doubled(&rig, load).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_coordinator_of_an_open_transaction_is_killed_and_another_broker_ends_it() {
    let cluster = Cluster::take().await;
    let mut rig = cluster.rig("coordinator").await;
    let load = frozen_in_a_transaction(&mut rig).await;
    let coordinators = cluster.coordinators_of_open_transactions(&rig).await;
    let coordinator = *coordinators.first().expect("an open transaction");
    cluster.nodes.node(coordinator).kill_hard().await;
    wake(&rig);
    publishes(&rig.relay, 1_000.0).await;
    cluster.start_again(coordinator).await;
    publishes(&rig.relay, 100.0).await;
    assert_nothing_lost_or_doubled(&rig, load).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_that_move_in_the_middle_of_a_transaction_lose_and_repeat_nothing() {
    let cluster = Cluster::take().await;
    let mut rig = cluster.rig("leaders").await;
    let load = frozen_in_a_transaction(&mut rig).await;
    cluster.move_leaders(&[&rig.topic(), &rig.checkpoint_topic()]).await;
    let open = cluster.coordinators_of_open_transactions(&rig).await;
    assert!(!open.is_empty(), "the transaction ended before the leaders moved");
    wake(&rig);
    publishes(&rig.relay, 1_000.0).await;
    assert_nothing_lost_or_doubled(&rig, load).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_one_broker_killed_the_relay_goes_on_and_another_is_initialised_and_recovers() {
    let cluster = Cluster::take().await;
    let running = cluster.rig("one_down").await;
    running.init(&[]).await;
    running.start().await;
    let load = Load::on(&running);
    publishes(&running.relay, 100.0).await;
    let topic = running.topic();
    let leader = cluster.partitions(&[&topic]).await.expect("partitions")[0].leader;
    cluster.nodes.node(leader).kill_hard().await;
    publishes(&running.relay, 1_000.0).await;
    let rig = cluster.rig("one_down_from_the_start").await;
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
    let cluster = Cluster::take().await;
    let rig = cluster.rig("two_down").await;
    rig.init(&[]).await;
    rig.start().await;
    let load = Load::on(&rig);
    publishes(&rig.relay, 100.0).await;
    for id in [2, 3] {
        cluster.nodes.node(id).kill_hard().await;
    }
    let client = reqwest::Client::new();
    eventually(SAYS_SO_WITHIN, "the relay says that it cannot publish", || async {
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
    let (before, confirmed) = (published().await, rig.confirmed().await);
    load.goes_on(100).await;
    tokio::time::sleep(STANDSTILL).await;
    assert!(
        (published().await - before).abs() < 0.5,
        "published with one replica of three"
    );
    assert_eq!(rig.confirmed().await, confirmed);
    let readiness = rig.relay.readiness(&client).await.expect("an answer");
    assert!(matches!(readiness, Readiness::NotReady(_)), "ready while it waits");
    cluster.start_again(3).await;
    rig.relay
        .wait_ready(DEADLINE)
        .await
        .unwrap_or_else(|err| panic!("{err:#}"));
    publishes(&rig.relay, 100.0).await;
    cluster.start_again(2).await;
    assert_nothing_lost_or_doubled(&rig, load).await;
}
