//! The parking topic: created when it is first needed, and how large an entry may be in it.

use super::log::has_several_partitions;
use crate::kafka::{NewTopic, TopicRules, partition_counts, retention_danger};
use crate::process::stop::RelayError;
use crate::settings::Config;
use crate::topics::{compaction, destination};
use anyhow::Context as _;

/// `max.message.bytes` of a broker that does not tell.
const BATCH_BYTES_DEFAULT: u64 = 1_048_588;
/// librdkafka's default of `message.max.bytes`.
const MESSAGE_BYTES_DEFAULT: u64 = 1_000_000;
/// What a batch and a record have around key and value, more than enough.
const FRAMING_BYTES: u64 = 256;

/// Creates the parking topic where it is missing.
///
/// # Errors
/// Kafka does not answer or refuses, or the topic has several partitions, or would lose what is parked there.
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

/// Most bytes of an entry's key and value: what the topic takes, uncompressed, and what librdkafka does.
pub(crate) async fn entry_bytes_max(config: &Config) -> Result<usize, RelayError> {
    let rules = TopicRules::ask(&config.sink.kafka, &config.sink.parking_topic).await;
    let topic_max = rules.batch_bytes_max.unwrap_or(BATCH_BYTES_DEFAULT);
    if config.sink.kafka.limit_batches(topic_max) {
        return Err(anyhow::anyhow!(
            "topic `{}` takes batches of {topic_max} bytes: the producers are replaced by such",
            config.sink.parking_topic
        )
        .into());
    }
    let client = config.sink.kafka.producer(config.sink.delivery, "");
    let client_max = client.get("message.max.bytes").and_then(|text| text.parse().ok());
    let bytes = topic_max.min(client_max.unwrap_or(MESSAGE_BYTES_DEFAULT));
    Ok(usize::try_from(bytes.saturating_sub(FRAMING_BYTES)).unwrap_or(usize::MAX))
}
