//! How far a lane's positions are from the ends of their topics.

use std::time::Duration;

use anyhow::Context;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::lane::Lane;

const TIMEOUT: Duration = Duration::from_secs(20);

/// A partition, as Postgres and Kafka have it.
pub(crate) struct Place {
    pub topic: String,
    pub partition: i32,
    /// The next offset to apply.
    pub position: i64,
    /// One past the last offset.
    pub end: i64,
}

impl Place {
    /// Behind the last event there may be the marker of its transaction.
    pub(crate) fn is_at_end(&self) -> bool {
        self.position + 1 >= self.end
    }
}

/// All partitions that have a position.
///
/// # Errors
/// There are none yet, or a server does not answer.
pub(crate) async fn places(lane: &Lane) -> anyhow::Result<Vec<Place>> {
    let rows = lane
        .query("select topic, partition, next_offset from view_positions")
        .await?;
    anyhow::ensure!(!rows.is_empty(), "no partition was claimed");
    let (servers, group) = (lane.bootstrap(), lane.name.clone());
    tokio::task::spawn_blocking(move || {
        let consumer = outsider(&servers, &group)?;
        let place = |row: Vec<Option<String>>| {
            let [Some(topic), Some(partition), Some(position)] = <[_; 3]>::try_from(row).unwrap_or_default() else {
                anyhow::bail!("a partition without position");
            };
            let (partition, position) = (partition.parse()?, position.parse()?);
            let (_, end) = consumer.fetch_watermarks(&topic, partition, TIMEOUT)?;
            Ok(Place {
                topic,
                partition,
                position,
                end,
            })
        };
        rows.into_iter().map(place).collect()
    })
    .await
    .context("asking kafka")?
}

/// A consumer that bears the group's name and is no member of it.
///
/// # Errors
/// librdkafka refuses.
pub(crate) fn outsider(servers: &str, group: &str) -> anyhow::Result<BaseConsumer> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", servers).set("group.id", group);
    Ok(config.set("enable.auto.commit", "false").create()?)
}
