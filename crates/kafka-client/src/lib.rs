//! For programs that must not lose a record: what they need from Kafka beyond rdkafka, the safe wrapper of librdkafka.
//!
//! **Settings.** [`ClientSettings`] say where the cluster is and how to log in there: librdkafka's properties as an operator gives them, with secrets
//! in files that are read again for each client, TLS that trusts what the system trusts, and the tokens of SASL OAUTHBEARER from a file ([`Tokens`]).
//! With the feature `args` they are flags and environment variables for clap, the same in every program (`ClientArgs`). [`Reasons`] tells a cluster
//! that refuses a client from a cluster that cannot be reached.
//!
//! **Questions** that the safe wrapper lacks: topics by their ids ([`facts_by`]), where partitions begin and end at both isolation levels
//! ([`bounds_by`], [`ends_by`]), whether a log still has what was read of it ([`first_offsets_behind`]), and the offset at which a broker says that a
//! partition ends ([`TopicReader`]). They use a client that the caller has already, with any context, and block. No `unsafe` is needed outside of
//! this crate.
//!
//! ```no_run
//! use kafka_client::ClientSettings;
//!
//! # fn main() -> anyhow::Result<()> {
//! let settings = ClientSettings::new("broker-1:9093,broker-2:9093")
//!     .with_properties(&["security.protocol=SASL_SSL", "sasl.mechanism=SCRAM-SHA-512", "sasl.username=shop"], &[])?
//!     .with_property_files(&["sasl.password=/run/secrets/kafka"], &[])?;
//! let mut config = settings.begin("topic-ends");
//! config.set("group.id", "topic-ends");
//! settings.add_consumers_properties(&mut config);
//! let client = settings.open_reader(&config)?;
//!
//! for (topic, facts) in kafka_client::facts_by(&client, &["orders".to_owned()])? {
//!     let partitions = (0..facts.partitions).map(|partition| (topic.as_str(), partition));
//!     for ends in kafka_client::ends_by(&client, partitions)? {
//!         println!("{topic}/{} ends at {}, and at {} for a reader that sees open transactions", ends.partition, ends.stable, ends.all);
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod admin_request;
mod assign;
#[cfg(feature = "args")]
mod client_args;
mod client_settings;
mod list_offsets;
mod log_parting;
mod open;
mod partition_bounds;
mod partition_ends;
mod property;
mod reader_context;
mod record_headers;
mod refusal;
mod tokens;
mod topic_facts;
mod topic_name;
mod topic_reader;

pub use assign::assign;
#[cfg(feature = "args")]
pub use client_args::{ClientArgs, PropertyLine};
pub use client_settings::ClientSettings;
pub use list_offsets::Reader;
pub use log_parting::{ReadUpTo, first_offsets_behind, leader_epoch};
pub use open::OpenError;
pub use partition_bounds::{PartitionBounds, bounds_by, leaders_by};
pub use partition_ends::{Ends, ends_by};
pub use property::InvalidProperty;
pub use reader_context::ReaderContext;
pub use record_headers::{RecordHeader, RecordHeaders, headers_of};
pub use refusal::{Reasons, Refused};
pub use tokens::Tokens;
pub use topic_facts::{TopicFacts, facts_by};
pub use topic_name::is_topic_name;
pub use topic_reader::{Next, Record, TopicReader};
