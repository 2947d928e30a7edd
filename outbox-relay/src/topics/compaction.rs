//! Topics that have to be compacted and nothing else: the checkpoints' and the parked rows'.

use crate::kafka::retention_danger;
use crate::process::stop::Stop;
use crate::settings::Config;

/// Fails for a checkpoint topic that deletes records by their age or size: no first checkpoint may be written to it.
///
/// # Errors
/// [`Stop::CheckpointTopicUnsafe`].
pub(crate) async fn ensure_checkpoint_topic_keeps_its_last_record(config: &Config) -> Result<(), Stop> {
    let asked_for = "whether the checkpoint topic keeps its last record";
    match retention_danger(&config.sink.kafka, &config.sink.checkpoint_topic, asked_for).await {
        Some(what) => Err(checkpoint_topic_unsafe(config, what)),
        None => Ok(()),
    }
}

/// [`Stop::CheckpointTopicUnsafe`], because of `what`.
pub(crate) fn checkpoint_topic_unsafe(config: &Config, what: String) -> Stop {
    Stop::CheckpointTopicUnsafe {
        topic: config.sink.checkpoint_topic.to_string(),
        what,
        command: compact_command(config, &config.sink.checkpoint_topic),
    }
}

/// [`Stop::ParkingTopicUnsafe`], because of `what`.
pub(crate) fn parking_topic_unsafe(config: &Config, what: String) -> Stop {
    Stop::ParkingTopicUnsafe {
        topic: config.sink.parking_topic.to_string(),
        what,
        command: compact_command(config, &config.sink.parking_topic),
    }
}

/// Kafka's command that has a topic compacted and nothing else.
pub(crate) fn compact_command(config: &Config, topic: &str) -> String {
    format!(
        "kafka-configs --bootstrap-server {} --alter --entity-type topics --entity-name {topic} --add-config cleanup.policy=compact",
        config.sink.kafka.client.bootstrap_servers
    )
}
