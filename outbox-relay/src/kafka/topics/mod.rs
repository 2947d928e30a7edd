//! What Kafka knows of topics: where their partitions are, their ids, their settings, and which transactions are open in them.

mod destination;
mod destinations;
mod open_transactions;
mod topic_facts;
mod topic_rules;
mod topic_settings;

pub use destination::{Amount, Destination};
pub use destinations::{
    KnownRoutes, NewTopic, NoDestination, TopicError, create_missing, find_or_create, partition_counts,
};
pub(crate) use open_transactions::{StillHidden, partition_has_key};
pub(in crate::kafka) use open_transactions::{wait_until_committed, wait_until_nothing_is_open};
pub use topic_facts::{TopicAsker, topic_facts};
pub use topic_rules::{Breach, TopicRules};
pub(in crate::kafka) use topic_settings::describe_topic;
pub use topic_settings::{TopicSettings, topic_settings};
pub(crate) use topic_settings::{retention_danger, settings_of_topics};
