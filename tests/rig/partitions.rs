//! The partitions of topics, from the cluster's metadata.

use std::time::Duration;

use anyhow::Context;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// A partition and the nodes that have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    pub topic: String,
    pub id: i32,
    /// The broker that leads the partition; -1 if none does.
    pub leader: i32,
    /// In their order of preference.
    pub replicas: Vec<i32>,
    pub in_sync: Vec<i32>,
}

/// The partitions of `topics`. This call blocks its thread.
///
/// # Errors
/// The cluster does not answer.
pub fn partitions(bootstrap_servers: &str, topics: &[&str]) -> anyhow::Result<Vec<Partition>> {
    let client: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap_servers)
        .create()?;
    let mut found = Vec::new();
    for topic in topics {
        let metadata = client.fetch_metadata(Some(topic), REQUEST_DEADLINE)?;
        let described = metadata.topics().first().context("metadata without the topic")?;
        found.extend(described.partitions().iter().map(|partition| Partition {
            topic: (*topic).to_owned(),
            id: partition.id(),
            leader: partition.leader(),
            replicas: partition.replicas().to_vec(),
            in_sync: partition.isr().to_vec(),
        }));
    }
    Ok(found)
}
