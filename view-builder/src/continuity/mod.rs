//! Whether a position goes on where it stands: what Kafka tells of partitions, held against what Postgres has. [`start`] decides and is pure.

pub mod offsets;
pub mod start;
pub mod topic_ids;
