//! A cluster of three brokers. One test after the other breaks it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use stack::{KafkaCluster, eventually_ok};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

use crate::partitions::{Partition, partitions};
use crate::servers::{Servers, kafka_options, postgres_options};

pub const BROKERS: usize = 3;
/// By then the cluster must be in the state that a test waits for.
const DEADLINE: Duration = Duration::from_secs(90);

/// The cluster. Only the test that has this value may break it.
pub struct Cluster {
    pub servers: Arc<Servers>,
    pub nodes: MutexGuard<'static, KafkaCluster>,
}

impl Cluster {
    /// Waits until no other test has the cluster. Starts the brokers that an earlier test has left stopped.
    ///
    /// # Panics
    /// The servers do not start.
    pub async fn take_turn() -> Self {
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

    /// Starts a broker that is stopped or dead.
    ///
    /// # Panics
    /// It does not start.
    pub async fn start_again(&self, id: i32) {
        let started = self.nodes.node(id).start_again().await;
        started.unwrap_or_else(|err| panic!("broker {id}: {err:#}"));
    }

    /// The partitions of the topics, with their leaders and replicas.
    ///
    /// # Errors
    /// The cluster does not answer.
    pub async fn partitions(&self, topics: &[&str]) -> anyhow::Result<Vec<Partition>> {
        let bootstrap_servers = self.servers.kafka.bootstrap_servers();
        let topics: Vec<String> = topics.iter().map(|&topic| topic.to_owned()).collect();
        let asked = tokio::task::spawn_blocking(move || {
            let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
            partitions(&bootstrap_servers, &topics)
        });
        asked.await?
    }

    /// Waits until every broker has every record of these topics, so that the next broker may be stopped.
    ///
    /// # Panics
    /// That takes too long.
    pub async fn wait_until_in_sync(&self, topics: &[&str]) {
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

    /// Makes another broker the leader of each partition of these topics, and waits until it leads.
    ///
    /// # Panics
    /// That takes too long.
    pub async fn move_leaders(&self, topics: &[&str]) {
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
}
