//! Dead letters: events that cannot be applied, and what stands behind them.
//!
//! A record that is no event, or that Postgres refuses, goes with its headers, its place and the reason into the table
//! `view_dead_letters`, in the transaction that moves the position behind it: so it is neither lost nor in the way. Its *key*
//! waits from there on, since a later event applied before an earlier one would be out of order: later events of the key are
//! parked in the same table, until [`commands`] has retried or discarded what stands before them. All other keys go on.
//!
//! A builder knows the keys that wait in its partitions by heart ([`Known`]), as of its claim. From then on only operators take letters away,
//! so what it knows can only be too much: it may take a key to wait that waits no longer. Putting down an event that is parked therefore
//! fails, and with it the batch, where no earlier letter of its key is open (`keep_view_letters`); the builder then asks for these keys
//! alone, and reads the events again.

pub mod commands;
mod desk;
mod known;
mod report;
mod retry;
pub(crate) mod store;
mod waiting;

use bytes::Bytes;

pub use known::Known;
pub use store::OfKey;

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
