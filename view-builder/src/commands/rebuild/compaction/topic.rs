//! Asks Kafka which topics are compacted, and looks in a topic for events of given keys.

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

/// The topics that are not compacted. A topic of which Kafka does not tell is not among them.
pub(super) async fn list_uncompacted_topics(servers: &Kafka, topics: &[String]) -> anyhow::Result<BTreeSet<String>> {
    let admin = kafka::admin(servers)?;
    let resources: Vec<ResourceSpecifier<'_>> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
    let options = AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT));
    let mut uncompacted = BTreeSet::new();
    for (topic, answer) in topics.iter().zip(admin.describe_configs(&resources, &options).await?) {
        let Ok(resource) = answer else { continue };
        let policy = resource.get("cleanup.policy").and_then(|entry| entry.value.as_deref());
        if policy.is_some_and(|policy| !policy.contains("compact")) {
            uncompacted.insert(topic.clone());
        }
    }
    Ok(uncompacted)
}

/// The keys of which the topics have no applied event before the fill's position. Blocks.
pub(super) fn keys_without_event(fill: &Fill, keys: Vec<Key>) -> anyhow::Result<Vec<Key>> {
    let mut by_topic: BTreeMap<String, Vec<Key>> = BTreeMap::new();
    for key in keys {
        by_topic.entry(key.place.topic.to_string()).or_default().push(key);
    }
    let mut without_event = Vec::new();
    for (topic, keys) in by_topic {
        let not_found = look_for_keys(fill, &topic, &keys)?;
        let is_without_event = |key: &Key| {
            not_found
                .get(&key.place.partition)
                .is_some_and(|in_partition| in_partition.contains(&*key.key))
        };
        without_event.extend(keys.iter().filter(|key| is_without_event(key)).cloned());
    }
    Ok(without_event)
}

/// Reads the topic up to the fill's positions. Returns the keys of which it has no applied event, by partition.
fn look_for_keys<'k>(fill: &Fill, topic: &str, keys: &'k [Key]) -> anyhow::Result<BTreeMap<i32, HashSet<&'k [u8]>>> {
    let consumer: &Observer = fill.consumer(topic).context("no client reads this topic")?;
    let mut not_found: BTreeMap<i32, HashSet<&[u8]>> = BTreeMap::new();
    for key in keys {
        not_found.entry(key.place.partition).or_default().insert(&key.key);
    }
    // The partitions that are still read, with the offset to read up to.
    let mut unread_up_to: BTreeMap<i32, i64> = BTreeMap::new();
    let mut beginnings = Vec::with_capacity(not_found.len());
    for partition in not_found.keys() {
        let Some(filled) = fill.partitions.get(&place(topic, *partition)) else {
            // The partition is gone. So its keys are not found, and the rebuild is refused.
            continue;
        };
        let (beginning, _) = consumer
            .fetch_watermarks(topic, *partition, REQUEST_TIMEOUT)
            .with_context(|| format!("kafka does not tell the beginning of {topic}/{partition}"))?;
        beginnings.push((*partition, beginning));
        unread_up_to.insert(*partition, filled.next);
    }
    let reader = TopicReader::start(consumer, topic, &beginnings)?;
    while !unread_up_to.is_empty() {
        match reader.next(POLL_TIMEOUT)? {
            // A broker that lags behind may name an end that is too early. Then a key is not found, and the rebuild is refused this time.
            Next::End { partition, .. } => {
                unread_up_to.remove(&partition);
            }
            Next::Nothing => {}
            Next::Record(record) => {
                let partition = record.partition();
                let (Some(keys), Some(end)) = (not_found.get_mut(&partition), unread_up_to.get(&partition)) else {
                    // This partition is read up to its limit already, and Kafka still sends later records.
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
                    unread_up_to.remove(&partition);
                }
            }
        }
    }
    drop(reader);
    consumer.unassign().context("partitions cannot be given back")?;
    Ok(not_found)
}
