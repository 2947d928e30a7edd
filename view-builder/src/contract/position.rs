//! Offsets of claimed partitions.

use super::place::TopicPartition;

/// An offset of a claimed partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    pub place: TopicPartition,
    pub epoch: i64,
    pub next_offset: i64,
}

/// Where a partition stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position<'a> {
    pub place: &'a TopicPartition,
    pub epoch: i64,
    /// The position in Postgres.
    pub next_offset: i64,
    /// All that was read is applied.
    pub settled: bool,
    /// When the source committed the oldest event that is not applied, microseconds since 1970; none where it has not been read, or
    /// there is none.
    pub oldest_us: Option<i64>,
}
