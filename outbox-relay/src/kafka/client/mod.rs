//! Clients of Kafka: what they are made with, what they report, and a cluster that refuses them.

mod accepted;
mod ask;
mod clients;
mod health;
mod refused_records;
mod settings;

pub(in crate::kafka) use ask::ask;
pub(in crate::kafka) use health::Failures;
pub use health::{Failure, Health};
pub use kafka_client::{ReaderContext, Refused};
pub use refused_records::{RefusedRecord, RefusedRecords};
pub(crate) use settings::RESERVED;
pub use settings::{Delivery, KafkaSettings, TRANSACTION_MAX_TIMEOUT_MS};
