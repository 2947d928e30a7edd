//! Compares the positions of a lane with the ends of their topics.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::lane::Lane;

const TIMEOUT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(100);

/// A partition, as Postgres and Kafka know it.
pub(crate) struct PartitionState {
    pub topic: String,
    pub partition: i32,
    /// The offset of the next event to apply.
    pub position: i64,
    /// The end of the partition: one after its last offset.
    pub end: i64,
}

/// All partitions that have a position.
///
/// # Errors
/// There are none yet, or a server does not answer.
pub(crate) async fn read_partition_states(lane: &Lane) -> anyhow::Result<Vec<PartitionState>> {
    let positions = positions(lane).await?;
    let (servers, group) = (lane.bootstrap(), lane.name.clone());
    tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = outsider(&servers, &group).create()?;
        let state = |(topic, partition, position): (String, i32, i64)| {
            let (_, end) = consumer.fetch_watermarks(&topic, partition, TIMEOUT)?;
            Ok(PartitionState {
                topic,
                partition,
                position,
                end,
            })
        };
        positions.into_iter().map(state).collect()
    })
    .await
    .context("asking kafka")?
}

/// Whether a consumer that begins at the positions gets nothing. Offsets alone do not show this, because transactions leave markers after the last
/// event.
///
/// # Errors
/// As [`read_partition_states`].
pub(crate) async fn is_all_applied(lane: &Lane) -> anyhow::Result<bool> {
    let positions = positions(lane).await?;
    let (servers, group) = (lane.bootstrap(), lane.name.clone());
    tokio::task::spawn_blocking(move || {
        // Kafka's client reports the end of a partition without the name of its topic. So this asks for one topic after the other.
        let mut topics: BTreeMap<&str, TopicPartitionList> = BTreeMap::new();
        for (topic, partition, position) in &positions {
            let list = topics.entry(topic).or_default();
            list.add_partition_offset(topic, *partition, Offset::Offset(*position))?;
        }
        for list in topics.values() {
            let mut config = outsider(&servers, &group);
            config
                .set("enable.partition.eof", "true")
                .set("isolation.level", "read_committed");
            let consumer: BaseConsumer = config.create()?;
            consumer.assign(list)?;
            if !is_at_end(&consumer, list.count())? {
                return Ok(false);
            }
        }
        Ok(true)
    })
    .await
    .context("asking kafka")?
}

/// Whether no event comes from any of the assigned `partitions`.
fn is_at_end(consumer: &BaseConsumer, partitions: usize) -> anyhow::Result<bool> {
    let (start, mut ended) = (Instant::now(), BTreeSet::new());
    while ended.len() < partitions {
        ensure!(
            start.elapsed() < TIMEOUT,
            "{} of {partitions} partitions answered",
            ended.len()
        );
        match consumer.poll(POLL) {
            None => {}
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(ended.insert(partition)),
            Some(Ok(_)) => return Ok(false),
            Some(Err(err)) => bail!(err),
        }
    }
    Ok(true)
}

/// Topic, partition and next offset of all partitions that have a position.
async fn positions(lane: &Lane) -> anyhow::Result<Vec<(String, i32, i64)>> {
    let rows = lane
        .query("select topic, partition, next_offset from view_positions")
        .await?;
    ensure!(!rows.is_empty(), "no partition was claimed");
    let position = |row: Vec<Option<String>>| {
        let [Some(topic), Some(partition), Some(position)] = <[_; 3]>::try_from(row).unwrap_or_default() else {
            bail!("a partition without position");
        };
        Ok((topic, partition.parse()?, position.parse()?))
    };
    rows.into_iter().map(position).collect()
}

/// The configuration of a consumer that uses the group's name but is not a member of the group.
pub(crate) fn outsider(servers: &str, group: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", servers)
        .set("group.id", group)
        .set("enable.auto.commit", "false");
    config
}
