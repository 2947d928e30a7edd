//! Clients of Kafka: what they are made with, what they report, and a cluster that refuses them.

mod ask;
mod clients;
mod health;
mod oauth;
mod property_files;
mod refusal;
mod refused_records;
mod settings;

pub(in crate::kafka) use ask::ask;
pub(in crate::kafka) use health::Failures;
pub use health::{Failure, Health, ReaderContext};
pub use property_files::InvalidProperty;
pub use refusal::Refused;
pub use refused_records::{RefusedRecord, RefusedRecords};
pub use settings::{Delivery, KafkaSettings, TRANSACTION_MAX_TIMEOUT_MS};
