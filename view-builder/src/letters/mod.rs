//! Dead letters: events that cannot be applied, and what stands behind them.
//!
//! A record that is no event, or that Postgres refuses, goes with its headers, its place and the reason into the table
//! `view_dead_letters`, in the transaction that moves the position behind it: so it is neither lost nor in the way. Its *key*
//! waits from there on, since a later event applied before an earlier one would be out of order: later events of the key are
//! parked in the same table, until [`commands`] has retried or discarded what stands before them. All other keys go on.
//!
//! A builder knows the letters of its partitions by heart ([`Known`]). Whoever changes them from outside counts up
//! `letters_version` in the partition's position, under that row's lock; a batch that was read with an older knowledge then fails
//! as a whole, and the builder looks again and reads the events again.

pub mod commands;
pub(crate) mod store;

use std::collections::{BTreeMap, HashMap, HashSet};

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

/// What a builder knows of one partition's letters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// The `letters_version` as of which this was read.
    pub version: i64,
    /// The first offset from which each key waits.
    waiting: HashMap<Bytes, i64>,
    /// Letters that an operator has discarded: not tried again when a replay reads them.
    discarded: HashSet<i64>,
    /// Events that Postgres has refused and whose letters are not committed yet, and why.
    refused: BTreeMap<i64, String>,
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

impl Known {
    #[must_use]
    pub fn at(version: i64) -> Self {
        Self {
            version,
            ..Self::default()
        }
    }

    /// There is an open letter of this key at `offset`.
    pub fn open(&mut self, key: Bytes, offset: i64) {
        let first = self.waiting.entry(key).or_insert(offset);
        *first = offset.min(*first);
    }

    /// The letter at `offset` was discarded.
    pub fn discard(&mut self, offset: i64) {
        self.discarded.insert(offset);
    }

    /// Postgres has refused the event at `offset`, for this reason.
    pub fn refuse(&mut self, offset: i64, reason: String) {
        self.refused.insert(offset, reason);
    }

    /// Everything before `offset` is committed, letters included.
    pub fn committed(&mut self, offset: i64) {
        if !self.refused.is_empty() {
            self.refused = self.refused.split_off(&offset);
        }
    }

    /// Takes over what the table says now; what Postgres has refused meanwhile is still to come.
    pub fn renew(&mut self, now: Self) {
        let refused = std::mem::take(&mut self.refused);
        *self = Self { refused, ..now };
    }

    /// Decides about the record at `offset` with this key, which `trouble` makes unfit where it is there. A record that becomes a
    /// dead letter makes its key wait.
    pub fn decide(&mut self, offset: i64, key: Option<&[u8]>, trouble: Option<String>) -> Fate {
        if self.discarded.contains(&offset) {
            return Fate::Dropped;
        }
        let waits = key
            .and_then(|key| self.waiting.get(key))
            .is_some_and(|first| *first < offset);
        if waits {
            return Fate::Parked;
        }
        let Some(reason) = trouble.or_else(|| self.refused.get(&offset).cloned()) else {
            // One that waits already and is read again by a replay is tried by `retry` alone.
            let is_open = key.and_then(|key| self.waiting.get(key)) == Some(&offset);
            return if is_open { Fate::Parked } else { Fate::Applied };
        };
        if let Some(key) = key {
            self.open(Bytes::copy_from_slice(key), offset);
        }
        Fate::Dead(reason)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{Fate, Known};

    fn dead(reason: &str) -> Fate {
        Fate::Dead(reason.to_owned())
    }

    #[test]
    fn later_events_of_a_dead_letters_key_wait_and_others_do_not() {
        let mut known = Known::at(1);
        assert_eq!(known.decide(4, Some(b"7"), Some("no".to_owned())), dead("no"));
        assert_eq!(known.decide(5, Some(b"7"), None), Fate::Parked);
        assert_eq!(known.decide(6, Some(b"8"), None), Fate::Applied);
        assert_eq!(known.decide(7, Some(b"7"), Some("no".to_owned())), Fate::Parked);
    }

    #[test]
    fn a_replay_applies_what_stands_before_a_dead_letter_and_parks_what_stands_behind() {
        let mut known = Known::at(1);
        known.open(Bytes::from_static(b"7"), 9);
        known.open(Bytes::from_static(b"7"), 4);
        assert_eq!(known.decide(3, Some(b"7"), None), Fate::Applied);
        assert_eq!(known.decide(4, Some(b"7"), None), Fate::Parked);
        assert_eq!(known.decide(4, Some(b"7"), Some("no".to_owned())), dead("no"));
        assert_eq!(known.decide(5, Some(b"7"), None), Fate::Parked);
    }

    #[test]
    fn a_discarded_letter_is_dropped_and_holds_nobody_up() {
        let mut known = Known::at(1);
        known.discard(4);
        assert_eq!(known.decide(4, Some(b"7"), Some("no".to_owned())), Fate::Dropped);
        assert_eq!(known.decide(5, Some(b"7"), None), Fate::Applied);
    }

    #[test]
    fn what_postgres_refused_is_dead_when_it_is_read_again() {
        let mut known = Known::at(1);
        known.refuse(4, "too long".to_owned());
        assert_eq!(known.decide(3, Some(b"7"), None), Fate::Applied);
        assert_eq!(known.decide(4, Some(b"7"), None), dead("too long"));
        assert_eq!(known.decide(5, Some(b"7"), None), Fate::Parked);
        // Read once more before the letter is committed: it is still no parked one.
        assert_eq!(known.decide(4, Some(b"7"), None), dead("too long"));
        known.committed(6);
        assert_eq!(known.decide(4, Some(b"7"), None), Fate::Parked);
    }

    #[test]
    fn a_record_without_a_key_holds_nobody_up() {
        let mut known = Known::at(1);
        assert_eq!(known.decide(4, None, Some("no key".to_owned())), dead("no key"));
        assert_eq!(known.decide(5, None, Some("no key".to_owned())), dead("no key"));
    }
}
