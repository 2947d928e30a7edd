//! What Kafka tells of compacted topics: which ones they are, and of which keys there is an event.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use anyhow::Context as _;
use kafka_client::{Next, TopicReader};
use rdkafka::admin::{AdminOptions, ResourceSpecifier};
use rdkafka::consumer::Consumer as _;

use super::keys::Key;
use crate::commands::rebuild::fill::Fill;
use crate::commands::rebuild::reading;
use crate::contract::letter::Fate;
use crate::contract::place::place;
use crate::kafka::servers::Kafka;
use crate::kafka::{self, Observer, REQUEST_TIMEOUT};

/// How long one poll waits for a record.
const POLL_TIMEOUT: Duration = Duration::from_millis(50);

/// Those of the topics that Kafka says are not compacted.
pub(super) async fn not_compacted(servers: &Kafka, topics: &[String]) -> anyhow::Result<BTreeSet<String>> {
    let admin = kafka::admin(servers)?;
    let asked: Vec<ResourceSpecifier<'_>> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
    let options = AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT));
    let mut plain = BTreeSet::new();
    for (topic, answer) in topics.iter().zip(admin.describe_configs(&asked, &options).await?) {
        let Ok(resource) = answer else { continue };
        let policy = resource.get("cleanup.policy").and_then(|entry| entry.value.as_deref());
        if policy.is_some_and(|policy| !policy.contains("compact")) {
            plain.insert(topic.clone());
        }
    }
    Ok(plain)
}

/// Without the keys of which the topics have an event that is applied, below where the fill is. Blocks.
pub(super) fn without_those_found(fill: &Fill, keys: Vec<Key>) -> anyhow::Result<Vec<Key>> {
    let mut by_topic: BTreeMap<String, Vec<Key>> = BTreeMap::new();
    for key in keys {
        by_topic.entry(key.place.topic.to_string()).or_default().push(key);
    }
    let mut doubtful = Vec::new();
    for (topic, keys) in by_topic {
        let missing = missing(fill, &topic, &keys)?;
        let is_missing = |key: &Key| {
            missing
                .get(&key.place.partition)
                .is_some_and(|missing| missing.contains(&*key.key))
        };
        doubtful.extend(keys.iter().filter(|key| is_missing(key)).cloned());
    }
    Ok(doubtful)
}

/// The keys of which the topic has no event that is applied, by partition. Reads up to where the fill is.
fn missing<'k>(fill: &Fill, topic: &str, keys: &'k [Key]) -> anyhow::Result<BTreeMap<i32, HashSet<&'k [u8]>>> {
    let consumer: &Observer = fill.consumer(topic).context("no client reads this topic")?;
    let mut missing: BTreeMap<i32, HashSet<&[u8]>> = BTreeMap::new();
    for key in keys {
        missing.entry(key.place.partition).or_default().insert(&key.key);
    }
    // Where each partition is read to.
    let mut open: BTreeMap<i32, i64> = BTreeMap::new();
    let mut from = Vec::with_capacity(missing.len());
    for partition in missing.keys() {
        let Some(filled) = fill.partitions.get(&place(topic, *partition)) else {
            // The partition is gone, so that its keys stay missing, and the rebuild is refused.
            continue;
        };
        let (beginning, _) = consumer
            .fetch_watermarks(topic, *partition, REQUEST_TIMEOUT)
            .with_context(|| format!("kafka does not tell the beginning of {topic}/{partition}"))?;
        from.push((*partition, beginning));
        open.insert(*partition, filled.next);
    }
    let reader = TopicReader::start(consumer, topic, &from)?;
    while !open.is_empty() {
        match reader.next(POLL_TIMEOUT)? {
            // A broker that lags behind ends too early: then a key is not found, and the rebuild refused for now.
            Next::End { partition, .. } => {
                open.remove(&partition);
            }
            Next::Nothing => {}
            Next::Record(record) => {
                let partition = record.partition();
                let (Some(keys), Some(end)) = (missing.get_mut(&partition), open.get(&partition)) else {
                    // All of this partition was read already, and Kafka still sends what lies behind.
                    continue;
                };
                let at = place(topic, partition);
                if let Some(key) = record.key().filter(|key| keys.contains(*key))
                    && record.offset() < *end
                    && fill.letters.fate(&at, record.offset(), Some(key)) == Fate::Applied
                    && reading::event(&fill.contracts, topic, &record).is_some()
                {
                    keys.remove(key);
                }
                if keys.is_empty() || record.offset() + 1 >= *end {
                    open.remove(&partition);
                }
            }
        }
    }
    drop(reader);
    consumer.unassign().context("partitions cannot be given back")?;
    Ok(missing)
}
