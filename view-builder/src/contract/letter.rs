//! A record that cannot be applied, and what becomes of records.

use bytes::Bytes;

/// A record that waits in `view_dead_letters`, as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    pub offset: i64,
    pub key: Option<Bytes>,
    pub value: Bytes,
    pub headers: Vec<(String, Option<Bytes>)>,
    /// The record's own time, microseconds since 1970.
    pub record_time_us: Option<i64>,
    /// Why it cannot be applied, without values; none: nothing is wrong with it, it is parked behind an earlier one of its key.
    pub reason: Option<String>,
}

impl Letter {
    /// Bytes that it occupies while it waits for its batch.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        let headers: usize = self
            .headers
            .iter()
            .map(|(name, value)| name.len() + value.as_ref().map_or(0, Bytes::len))
            .sum();
        size_of::<Self>() + self.value.len() + self.key.as_ref().map_or(0, Bytes::len) + headers
    }
}

/// What becomes of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Its event is applied.
    Applied,
    /// It goes to the dead letters, for this reason.
    Dead(String),
    /// It waits behind a dead letter of its key.
    Parked,
    /// Nothing: it was discarded.
    Dropped,
}
