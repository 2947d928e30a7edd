//! What is asked of the sink, which is Kafka: where it is, what readers are promised, and which topics are used.

use std::time::Duration;

use clap::Args;
use kafka_client::{ClientArgs, InvalidProperty};

use super::names::TopicName;
use super::planted;
use crate::kafka::{Delivery, KafkaSettings, NewTopic, RESERVED};
use crate::process::stop::Stop;

#[derive(Clone, Debug, Args)]
pub struct SinkSettings {
    #[command(flatten)]
    pub kafka: ClientArgs,
    /// Topic of the checkpoints: compacted, one partition; several relays may share it.
    #[arg(long, env = "CHECKPOINT_TOPIC", default_value = "outbox-relay-checkpoints")]
    pub checkpoint_topic: TopicName,
    /// Topic of parked rows: compacted, one partition; several relays may share it.
    #[arg(long, env = "PARKING_TOPIC", default_value = "outbox-relay-parked")]
    pub parking_topic: TopicName,
    /// The brokers' transaction.max.timeout.ms, in milliseconds (1000 to 86400000). A transaction that is open for longer has lost its end,
    /// and hides what lies behind it for ever: the relay then stops with exit code 36 (docs/exit-codes.md). No transaction of the relay's is
    /// allowed a longer time.
    #[arg(long, env = "KAFKA_TRANSACTION_MAX_TIMEOUT_MS", value_name = "MS", default_value_t = crate::kafka::TRANSACTION_MAX_TIMEOUT_MS, value_parser = clap::value_parser!(u64).range(1_000..=86_400_000))]
    pub kafka_transaction_max_timeout_ms: u64,
    /// What readers of the topics are promised.
    #[arg(long, env = "DELIVERY", value_enum, default_value_t = Delivery::ExactlyOnce)]
    pub delivery: Delivery,
    /// Name of the record header that carries commit LSN, index in the transaction and commit time; empty for none.
    #[arg(long, env = "POSITION_HEADER", default_value = events::POSITION_HEADER)]
    pub position_header: String,
    /// Create a topic when the first record for it comes, with --topic-partitions and --topic-config. Otherwise the relay stops there.
    #[arg(long, env = "CREATE_TOPICS", default_value_t = true, action = clap::ArgAction::Set)]
    pub create_topics: bool,
    /// Partitions of a topic that the relay creates (1 to 10000).
    #[arg(long, env = "TOPIC_PARTITIONS", default_value_t = 8, value_parser = clap::value_parser!(i32).range(1..=10_000))]
    pub topic_partitions: i32,
    /// Setting of a topic that the relay creates, NAME=VALUE, repeatable; in the environment one a line.
    #[arg(
        long = "topic-config",
        env = "TOPIC_CONFIG",
        value_name = "NAME=VALUE",
        value_delimiter = '\n',
        default_value = "cleanup.policy=compact\nmin.compaction.lag.ms=604800000"
    )]
    pub topic_config: Vec<String>,
}

/// [`SinkSettings`], checked.
#[derive(Clone, Debug)]
pub struct SinkConfig {
    pub kafka: KafkaSettings,
    pub checkpoint_topic: TopicName,
    pub parking_topic: TopicName,
    pub delivery: Delivery,
    /// `None`: no such header.
    pub position_header: Option<String>,
    pub create_topics: bool,
    /// For topics that the relay creates; the name is filled in.
    pub topic_template: NewTopic,
}

impl SinkSettings {
    /// Checks every setting.
    ///
    /// # Errors
    /// [`Stop::Config`] names the setting that is wrong, and what would be right.
    pub fn check(&self) -> Result<SinkConfig, Stop> {
        if self.parking_topic == self.checkpoint_topic {
            return Err(Stop::Config {
                what: "--parking-topic and --checkpoint-topic are the same; give another one".to_owned(),
            });
        }
        Ok(SinkConfig {
            kafka: self
                .kafka_settings()
                .map_err(|err| Stop::Config { what: err.to_string() })?,
            checkpoint_topic: self.checkpoint_topic.clone(),
            parking_topic: self.parking_topic.clone(),
            delivery: self.delivery,
            position_header: (!self.position_header.is_empty()).then(|| self.position_header.clone()),
            create_topics: self.create_topics,
            topic_template: NewTopic {
                name: String::new(),
                partitions: self.topic_partitions,
                settings: self.topic_settings()?,
            },
        })
    }

    fn kafka_settings(&self) -> Result<KafkaSettings, InvalidProperty> {
        let mut client = self.kafka.check(&RESERVED)?;
        planted::spoil_client(&mut client);
        let mut kafka = KafkaSettings::from(client);
        kafka.transaction_max_timeout = Duration::from_millis(self.kafka_transaction_max_timeout_ms);
        Ok(kafka)
    }

    /// Names and values of `--topic-config`.
    fn topic_settings(&self) -> Result<Vec<(String, String)>, Stop> {
        let given = self.topic_config.iter().filter(|setting| !setting.trim().is_empty());
        given
            .map(|setting| {
                let (name, value) = setting.split_once('=').ok_or_else(|| Stop::Config {
                    what: format!("--topic-config `{setting}`: expected NAME=VALUE"),
                })?;
                Ok((name.trim().to_owned(), value.trim().to_owned()))
            })
            .collect()
    }
}
