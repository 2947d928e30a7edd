//! Obtains, starts and ends PostgreSQL, Apache Kafka, and the pipeline's own programs, all as child processes.
//!
//! The quick start, the end-to-end tests and the benchmarks run on what this crate starts. Nothing that it starts outlives the process that asked for
//! it: see [`warden`].

pub mod cache;
pub mod checkout;
pub mod consumer;
mod departments;
pub mod eventually;
pub mod kafka;
pub mod kafka_cluster;
pub mod maven;
pub mod metadata;
pub mod narration;
pub mod pipeline;
pub mod port;
pub mod postgres;
pub mod postgres_binaries;
pub mod process;
pub mod program;
pub mod random;
pub mod scratch;
pub mod unprivileged;
pub mod warden;

pub use consumer::{Consumer, Isolation, Record};
pub use departments::DEPARTMENTS;
pub use eventually::{eventually, eventually_ok};
pub use kafka::{Kafka, KafkaOptions};
pub use kafka_cluster::KafkaCluster;
pub use pipeline::{Pipeline, PipelineBuilder};
pub use postgres::{Postgres, PostgresOptions};
pub use process::Process;
pub use program::Program;
