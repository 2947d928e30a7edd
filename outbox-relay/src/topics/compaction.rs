//! Topics that have to be compacted and nothing else: the checkpoints' and the parked rows'.

use crate::process::stop::Stop;
use crate::settings::Config;

/// [`Stop::CheckpointTopicUnsafe`], because of `what`.
pub(crate) fn checkpoint_topic_unsafe(config: &Config, what: String) -> Stop {
    Stop::CheckpointTopicUnsafe {
        topic: config.checkpoint_topic.clone(),
        what,
        command: compact_command(config, &config.checkpoint_topic),
    }
}

/// [`Stop::ParkingTopicUnsafe`], because of `what`.
pub(crate) fn parking_topic_unsafe(config: &Config, what: String) -> Stop {
    Stop::ParkingTopicUnsafe {
        topic: config.parking_topic.clone(),
        what,
        command: compact_command(config, &config.parking_topic),
    }
}

/// Kafka's command that has a topic compacted and nothing else.
pub(crate) fn compact_command(config: &Config, topic: &str) -> String {
    format!(
        "kafka-configs --bootstrap-server {} --alter --entity-type topics --entity-name {topic} --add-config cleanup.policy=compact",
        config.kafka.client.bootstrap_servers
    )
}
