//! What a builder knows of one partition's dead letters.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use bytes::Bytes;

use crate::contract::letter::Fate;
use crate::process::faults::{self, Bug};

/// The keys that wait in one partition, and the letters that were discarded.
///
/// A million letters take 16 MB, since of letters that were there at the claim only a hash of the key is kept. Two keys may have the same hash
/// while only one of them waits. Then an event of the other key would be parked. But the statement that parks it (`keep_view_letters`) finds that
/// its key does not wait. From then on this key itself is kept, too. A rebuild parks nothing, and asks for the letter of each event that it leaves out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// The `letters_version` of the position at the time when the letters were read.
    pub version: i64,
    /// Hashes of the keys that waited at the claim, each with the first offset from which it waits, sorted.
    waiting: Vec<(u64, i64)>,
    /// Keys that were learned since the claim: the offset from which a key waits, or `None` if it does not wait. They win over `waiting`.
    exact: HashMap<Bytes, Option<i64>>,
    /// Offsets of letters that an operator has discarded, sorted. A replay that reads them again drops them.
    discarded: Vec<i64>,
    /// By offset: events that Postgres has refused and whose letters are not committed yet, with the reason.
    refused: BTreeMap<i64, String>,
}

impl Known {
    /// No key waits, as of this version.
    #[must_use]
    pub fn at(version: i64) -> Self {
        Self {
            version,
            ..Self::default()
        }
    }

    /// The letters of one partition, as they were read from the table.
    #[must_use]
    pub fn new(version: i64, mut waiting: Waiting) -> Self {
        waiting.open.sort_unstable();
        waiting.open.dedup_by_key(|(hash, _)| *hash);
        waiting.open.shrink_to_fit();
        waiting.discarded.sort_unstable();
        Self {
            version,
            waiting: waiting.open,
            discarded: waiting.discarded,
            ..Self::default()
        }
    }

    /// Learns what the table says of one key now: its first open letter is at `first`, and the letters at the offsets `discarded` were discarded.
    /// `None` as `first`: the key does not wait.
    pub fn correct(&mut self, key: Bytes, first: Option<i64>, discarded: &[i64]) {
        self.exact.insert(key, first);
        for offset in discarded {
            if let Err(index) = self.discarded.binary_search(offset) {
                self.discarded.insert(index, *offset);
            }
        }
    }

    /// Learns that this key has an open letter at `offset`. Learning it again changes nothing.
    pub fn open(&mut self, key: &[u8], offset: i64) {
        match self.waits_from(key) {
            Some(first) if first <= offset => {}
            _ => {
                self.exact.insert(Bytes::copy_from_slice(key), Some(offset));
            }
        }
    }

    /// Whether only a hash tells that this key waits.
    #[must_use]
    pub fn knows_only_hash_of(&self, key: &[u8]) -> bool {
        !self.exact.contains_key(key)
    }

    /// The offset from which the key waits: that of its first open letter.
    fn waits_from(&self, key: &[u8]) -> Option<i64> {
        if let Some(exact) = self.exact.get(key) {
            return *exact;
        }
        let hash = hash(key);
        let index = self.waiting.binary_search_by_key(&hash, |(known, _)| *known).ok()?;
        Some(self.waiting[index].1)
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

    /// What becomes of the record at `offset` with this key if its event can be applied.
    #[must_use]
    pub fn fate_if_applicable(&self, offset: i64, key: Option<&[u8]>) -> Fate {
        if self.discarded.binary_search(&offset).is_ok() {
            return Fate::Dropped;
        }
        match key.and_then(|key| self.waits_from(key)) {
            // `first` itself is the letter, which a replay reads again. Only `dead-letters retry` tries it.
            Some(first) if first <= offset => Fate::Parked,
            _ => Fate::Applied,
        }
    }

    /// Decides about the record at `offset` with this key. `trouble` says why its event cannot be applied. A record that becomes a dead letter
    /// makes its key wait.
    pub fn decide(&mut self, offset: i64, key: Option<&[u8]>, trouble: Option<String>) -> Fate {
        let fate = self.fate_if_applicable(offset, key);
        let is_behind_another = key
            .and_then(|key| self.waits_from(key))
            .is_some_and(|first| first < offset);
        if fate == Fate::Dropped || is_behind_another {
            return fate;
        }
        let Some(reason) = trouble.or_else(|| self.refused.get(&offset).cloned()) else {
            return fate;
        };
        if let Some(key) = key {
            self.open(key, offset);
        }
        Fate::Dead(reason)
    }
}

/// Letters on their way from the table into a [`Known`].
#[derive(Clone, Debug, Default)]
pub struct Waiting {
    open: Vec<(u64, i64)>,
    discarded: Vec<i64>,
}

impl Waiting {
    /// There is an open letter of this key at `offset`.
    pub fn open(&mut self, key: &[u8], offset: i64) {
        self.open.push((hash(key), offset));
    }

    /// The letter at `offset` was discarded.
    pub fn discard(&mut self, offset: i64) {
        self.discarded.push(offset);
    }
}

/// A hash that is the same for the same key for as long as this process runs.
pub(crate) fn hash(key: &[u8]) -> u64 {
    if faults::is_planted(Bug::HashesAlike) {
        return 0;
    }
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{Known, Waiting};
    use crate::contract::letter::Fate;

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
        let mut waiting = Waiting::default();
        waiting.open(b"7", 9);
        waiting.open(b"7", 4);
        let mut known = Known::new(1, waiting);
        assert_eq!(known.decide(3, Some(b"7"), None), Fate::Applied);
        assert_eq!(known.decide(4, Some(b"7"), None), Fate::Parked);
        assert_eq!(known.decide(4, Some(b"7"), Some("no".to_owned())), dead("no"));
        assert_eq!(known.decide(5, Some(b"7"), None), Fate::Parked);
    }

    #[test]
    fn a_discarded_letter_is_dropped_and_holds_nobody_up() {
        let mut waiting = Waiting::default();
        waiting.discard(4);
        let mut known = Known::new(1, waiting);
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

    #[test]
    fn what_is_known_better_counts() {
        let mut waiting = Waiting::default();
        waiting.open(b"7", 4);
        let mut known = Known::new(1, waiting);
        known.correct(Bytes::from_static(b"7"), None, &[]);
        assert_eq!(known.decide(5, Some(b"7"), None), Fate::Applied);
        known.correct(Bytes::from_static(b"7"), Some(6), &[]);
        assert_eq!(known.decide(5, Some(b"7"), None), Fate::Applied);
        assert_eq!(known.decide(7, Some(b"7"), None), Fate::Parked);
        // A new dead letter of a key that waited no longer makes it wait again.
        known.correct(Bytes::from_static(b"7"), None, &[]);
        assert_eq!(known.decide(8, Some(b"7"), Some("no".to_owned())), dead("no"));
        assert_eq!(known.decide(9, Some(b"7"), None), Fate::Parked);
    }
}
