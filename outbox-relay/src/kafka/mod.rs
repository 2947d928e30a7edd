//! The relay's side of Kafka: settings, the transactional publisher, the checkpoint's topic, the topics of records.

mod checkpoint_log;
mod clients;
mod files;
mod flush;
mod health;
mod keyed_log;
mod lane;
mod oauth;
mod open_transactions;
mod pause_log;
mod published_ids;
mod publisher;
mod record_limit;
mod refusal;
mod refused_records;
mod settings;
mod topic_facts;
mod topic_rules;
mod topic_settings;
mod topics;
mod turn;
mod undelivered;

pub use checkpoint_log::{CheckpointLog, Found, Readers, Reading};
pub use health::{Failure, Health, Quiet};
pub use kafka_client::{Ends, TopicFacts};
pub use keyed_log::KeyedLog;
pub use open_transactions::TRANSACTION_MAX_TIMEOUT_MS;
pub(crate) use open_transactions::holds_key;
pub use pause_log::PauseLog;
pub use published_ids::{Cleanup, TopicRead, TopicToRead, cleanup, read_ids};
pub use publisher::{Abandon, Committed, HeaderText, Outgoing, Publisher, Sent, with_header};
pub use record_limit::batch_bytes;
pub use refusal::Refused;
pub use refused_records::{RefusedRecord, RefusedRecords};
pub use settings::{Delivery, InvalidProperty, KafkaSettings};
pub use topic_facts::{TopicAsker, topic_facts};
pub use topic_rules::{Breach, TopicRules};
pub use topic_settings::{TopicSettings, topic_settings};
pub(crate) use topic_settings::{retention_danger, settings_of_topics};
pub use topics::{
    Destination, NewTopic, NoDestination, TopicError, Topics, create_missing, find_or_create, partition_counts,
};
