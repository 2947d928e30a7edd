//! What is asked of the sink, which is Kafka: where it is, what readers are promised, and which topics are used.

use std::time::Duration;

use clap::Args;

use crate::kafka::{Delivery, InvalidProperty, KafkaSettings, NewTopic};
use crate::process::stop::Stop;

#[derive(Clone, Debug, Args)]
pub struct SinkSettings {
    /// Kafka's bootstrap servers, HOST:PORT separated by commas.
    #[arg(long = "kafka", env = "KAFKA_BOOTSTRAP_SERVERS", default_value = "localhost:9092")]
    pub kafka: String,
    /// Topic of the checkpoints: compacted, one partition; several relays may share it.
    #[arg(long, env = "CHECKPOINT_TOPIC", default_value = "outbox-relay-checkpoints")]
    pub checkpoint_topic: String,
    /// Topic of parked rows: compacted, one partition; several relays may share it.
    #[arg(long, env = "PARKING_TOPIC", default_value = "outbox-relay-parked")]
    pub parking_topic: String,
    /// librdkafka property, NAME=VALUE, repeatable; in the environment one a line. For TLS, SASL, compression, message.max.bytes …
    #[arg(
        long = "kafka-property",
        env = "KAFKA_PROPERTIES",
        value_name = "NAME=VALUE",
        value_delimiter = '\n',
        hide_env_values = true
    )]
    pub kafka_properties: Vec<String>,
    /// librdkafka property whose value is in a file, NAME=PATH, repeatable; in the environment one a line. For passwords.
    #[arg(
        long = "kafka-property-file",
        env = "KAFKA_PROPERTY_FILES",
        value_name = "NAME=PATH",
        value_delimiter = '\n'
    )]
    pub kafka_property_files: Vec<String>,
    /// File of the JWT for SASL OAUTHBEARER (sasl.mechanism=OAUTHBEARER); read again for each refresh, so whatever issues tokens may write there.
    #[arg(long, env = "KAFKA_OAUTH_TOKEN_FILE", value_name = "PATH")]
    pub kafka_oauth_token_file: Option<std::path::PathBuf>,
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
    pub checkpoint_topic: String,
    pub parking_topic: String,
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
        check_topic_name("--checkpoint-topic", &self.checkpoint_topic)?;
        check_topic_name("--parking-topic", &self.parking_topic)?;
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
        let mut kafka =
            KafkaSettings::new(&self.kafka, &self.kafka_properties)?.with_property_files(&self.kafka_property_files)?;
        kafka.oauth_token_file.clone_from(&self.kafka_oauth_token_file);
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

/// Kafka's rule for topic names.
pub(crate) fn check_topic_name(flag: &str, name: &str) -> Result<(), Stop> {
    let is_valid = (1..=249).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
        && name != "."
        && name != "..";
    if is_valid {
        return Ok(());
    }
    Err(Stop::Config {
        what: format!("{flag} `{name}`: a topic's name is 1 to 249 of a-z, A-Z, 0-9, dot, _ and -"),
    })
}
