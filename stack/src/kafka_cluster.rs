//! A cluster of real Apache Kafka. Each node is a broker and a controller, so both need a majority of the nodes.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use futures_util::future::try_join_all;

use crate::kafka::{Kafka, KafkaOptions, Layout};
use crate::{eventually_ok, metadata};

const TOGETHER_DEADLINE: Duration = Duration::from_secs(60);
/// After this time without a sign of life, a broker counts as dead, and its partitions get other leaders. Kafka's own default is 9 s.
const SESSION_TIMEOUT_MS: &str = "3000";
const HEARTBEAT_INTERVAL_MS: &str = "500";

/// A running cluster. By default each topic has three replicas, Kafka's own topics too, and two of them must have a record (`min.insync.replicas`).
#[derive(Debug)]
pub struct KafkaCluster {
    nodes: Vec<Arc<Kafka>>,
}

impl KafkaCluster {
    /// Starts `node_count` nodes at once, all with these options. Waits until they know each other.
    ///
    /// # Errors
    /// As [`Kafka::start`]. Or the options have a port or a directory, which the nodes cannot share.
    pub async fn start(node_count: usize, options: KafkaOptions) -> anyhow::Result<Self> {
        ensure!(
            options.port == 0 && options.data.is_none(),
            "the nodes of a cluster cannot share a port or a directory"
        );
        let layout = Layout::new(&vec![0; node_count])?;
        let mut settings = vec![
            ("broker.session.timeout.ms".to_owned(), SESSION_TIMEOUT_MS.to_owned()),
            (
                "broker.heartbeat.interval.ms".to_owned(),
                HEARTBEAT_INTERVAL_MS.to_owned(),
            ),
        ];
        settings.extend(options.settings.iter().cloned());
        let options = KafkaOptions { settings, ..options };
        let formatted = (1..=node_count).map(|id| Kafka::format_in(layout.clone(), id, options.clone()));
        let nodes = try_join_all(formatted).await?;
        // No node answers before a majority of them runs.
        try_join_all(nodes.iter().map(Kafka::start_again)).await?;
        let cluster = Self {
            nodes: nodes.into_iter().map(Arc::new).collect(),
        };
        cluster.wait_until_whole().await?;
        Ok(cluster)
    }

    /// The node with this id. Ids count from 1.
    ///
    /// # Panics
    /// There is no such node.
    #[must_use]
    pub fn node(&self, id: i32) -> &Arc<Kafka> {
        let index = usize::try_from(id - 1).ok();
        let node = index.and_then(|index| self.nodes.get(index));
        node.unwrap_or_else(|| panic!("there is no node {id}"))
    }

    /// The ids of all nodes.
    #[must_use]
    pub fn ids(&self) -> Vec<i32> {
        (1..).take(self.nodes.len()).collect()
    }

    /// Waits until each node knows all nodes as brokers.
    ///
    /// # Errors
    /// They do not come together within a minute.
    pub async fn wait_until_whole(&self) -> anyhow::Result<()> {
        for node in &self.nodes {
            eventually_ok(TOGETHER_DEADLINE, "the brokers know each other", || async {
                let brokers = metadata::brokers(&node.address()).await?;
                ensure!(brokers == self.nodes.len(), "{} knows {brokers}", node.address());
                Ok(())
            })
            .await?;
        }
        Ok(())
    }
}
