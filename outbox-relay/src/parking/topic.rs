//! Creates the parking topic when it is first needed, and says how large an entry may be in it.

use super::log::has_several_partitions;
use crate::kafka::{NewTopic, TopicRules, partition_counts, retention_danger};
use crate::process::stop::RelayError;
use crate::settings::Config;
use crate::topics::{compaction, destination};
use anyhow::Context as _;

/// Used as `max.message.bytes` if the broker does not tell it.
const BATCH_BYTES_DEFAULT: u64 = 1_048_588;
/// librdkafka's default of `message.max.bytes`.
const MESSAGE_BYTES_DEFAULT: u64 = 1_000_000;
/// More than a batch and a record have around key and value.
const FRAMING_BYTES: u64 = 256;

/// Creates the parking topic if it is missing.
///
/// # Errors
/// Kafka does not answer or refuses, the topic has several partitions, or its settings would remove parked rows.
pub(crate) async fn create(config: &Config) -> Result<(), RelayError> {
    let topic = &config.sink.parking_topic;
    for name in destination::create_topics(config, &[NewTopic::compacted(topic)]).await? {
        tracing::info!(topic = name, "created the parking topic");
    }
    let (settings, names) = (config.sink.kafka.clone(), [topic.to_string()]);
    let counts = tokio::task::spawn_blocking(move || partition_counts(&settings, &names));
    match counts.await.context("metadata task")??.get(topic.as_str()) {
        Some(1) => {}
        Some(partitions) => return Err(has_several_partitions(topic, *partitions).into()),
        None => return Err(anyhow::anyhow!("topic `{topic}` is not there yet").into()),
    }
    match retention_danger(&config.sink.kafka, topic, "whether the parking topic keeps parked rows").await {
        Some(what) => Err(compaction::parking_topic_unsafe(config, what).into()),
        None => Ok(()),
    }
}

/// How many bytes an entry's key and value may have together. Both the topic (before compression) and librdkafka have a limit.
pub(crate) async fn entry_bytes_max(config: &Config) -> Result<usize, RelayError> {
    let rules = TopicRules::ask(&config.sink.kafka, &config.sink.parking_topic).await;
    let topic_max = rules.batch_bytes_max.unwrap_or(BATCH_BYTES_DEFAULT);
    if config.sink.kafka.limit_batches(topic_max) {
        return Err(anyhow::anyhow!(
            "topic `{}` takes batches of {topic_max} bytes at most: new producers that make no larger ones replace these",
            config.sink.parking_topic
        )
        .into());
    }
    let client = config.sink.kafka.producer(config.sink.delivery, "");
    let client_max = client.get("message.max.bytes").and_then(|text| text.parse().ok());
    let bytes = topic_max.min(client_max.unwrap_or(MESSAGE_BYTES_DEFAULT));
    Ok(usize::try_from(bytes.saturating_sub(FRAMING_BYTES)).unwrap_or(usize::MAX))
}
