//! Decides for each row of the outbox that no topic has whether it was published. Asks no server.
//!
//! A topic does not keep all records. Compaction removes a record when a later one of the same key replaces it, and retention removes old records. So
//! a row without a record is one of two things. It is *missing* if it was never published. It is *forgotten* if it was published and Kafka has
//! removed its record. The relay publishes in commit order, so these rules can tell the two apart:
//!
//! 1. If the record would be too young to be removed already, the row is missing.
//! 2. If a later row of the same key has its record, this row had one too: it is forgotten.
//! 3. In a topic that is compacted and has no retention, the newest record of a key stays, unless it is a tombstone. So a row after the key's last
//!    remaining record is missing, unless the row or a later row of the key is a tombstone, which may have removed all of them.
//! 4. If retention has removed the beginning of a partition, a row that is newer than the first remaining record is missing. It has to be newer by
//!    more than [`CLOCKS_DIFFER_MS`].
//!
//! A row that no rule decides is *undecided*: the operator chooses whether it may be lost or may come twice.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use crate::continuity::event_ids::EventIds;

/// How much two moments may differ by mistake, in milliseconds. Postgres, Kafka and this machine have clocks of their own. And two commits may stand in
/// the log in another order than their timestamps say, since a timestamp is taken a little earlier. Nearer moments count as the same.
pub const CLOCKS_DIFFER_MS: i64 = 10_000;

/// Which records a topic may have removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// In a compacted topic, records older than this may be removed; in milliseconds since 1970.
    pub compacted_before_ms: Option<i64>,
    /// Timestamp of the first record of each partition whose beginning was removed, in milliseconds since 1970; `i64::MAX` where no record is left.
    pub removed_before_ms: HashMap<i32, i64>,
}

impl Memory {
    /// Whether the topic may have removed any record at all.
    #[must_use]
    pub fn forgets(&self) -> bool {
        self.compacted_before_ms.is_some() || !self.removed_before_ms.is_empty()
    }
}

/// What the comparison has to know of a row.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    pub id: &'a str,
    /// Index of the row's topic.
    pub topic: usize,
    /// The partition where the row's record would be. Several, if the topic once had another number of partitions.
    pub partitions: &'a [i32],
    pub key: Option<&'a [u8]>,
    /// Milliseconds since 1970; 0 where the table does not say.
    pub created_ms: i64,
    pub is_tombstone: bool,
}

/// Why a row has no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Missing,
    Forgotten,
    Undecided,
}

/// The result of a comparison.
#[derive(Clone, Debug, Default)]
pub struct Verdicts {
    /// Rows that were never published.
    pub missing: EventIds,
    /// Rows that may have been published or not.
    pub undecided: EventIds,
    /// How many rows were published and have no record any more.
    pub forgotten: u64,
}

/// Takes all rows in the order of the outbox, and decides about the rows that have no record.
#[derive(Debug)]
pub struct Comparison<'m> {
    topics: &'m [Memory],
    /// By the hash of topic and key.
    keys: HashMap<u64, LastOfKey>,
    hasher: RandomState,
    /// The rows without a record.
    candidates: Vec<Candidate>,
    /// How many rows were added. The first row has place 1.
    place: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct LastOfKey {
    /// Place of the key's last row that has a record.
    with_record: u64,
    /// Place of the key's last tombstone without a record, which compaction may have removed.
    lost_tombstone: u64,
}

#[derive(Debug)]
struct Candidate {
    id: Box<str>,
    key: Option<u64>,
    place: u64,
    topic: usize,
    created_ms: i64,
    /// Whether retention may have removed its record.
    may_be_removed: bool,
}

impl<'m> Comparison<'m> {
    #[must_use]
    pub fn new(topics: &'m [Memory]) -> Self {
        Self {
            topics,
            keys: HashMap::new(),
            hasher: RandomState::new(),
            candidates: Vec::new(),
            place: 0,
        }
    }

    /// Takes the next row. `absent` has the ids of all rows without a record.
    pub fn add_row(&mut self, row: Row<'_>, absent: &EventIds) {
        self.place += 1;
        let memory = &self.topics[row.topic];
        let key = row.key.map(|key| self.hasher.hash_one((row.topic, key)));
        if !absent.contains(row.id) {
            if let Some(key) = key.filter(|_| memory.forgets()) {
                self.keys.entry(key).or_default().with_record = self.place;
            }
            return;
        }
        if let Some(key) = key.filter(|_| row.is_tombstone && may_be_compacted(memory, row.created_ms)) {
            self.keys.entry(key).or_default().lost_tombstone = self.place;
        }
        self.candidates.push(Candidate {
            id: row.id.into(),
            key,
            place: self.place,
            topic: row.topic,
            created_ms: row.created_ms,
            may_be_removed: may_be_removed(memory, row.partitions, row.created_ms),
        });
    }

    /// Decides, once all rows were added.
    #[must_use]
    pub fn decide(self) -> Verdicts {
        let mut verdicts = Verdicts::default();
        for candidate in &self.candidates {
            match self.verdict(candidate) {
                Verdict::Missing => verdicts.missing.insert(&candidate.id),
                Verdict::Undecided => verdicts.undecided.insert(&candidate.id),
                Verdict::Forgotten => verdicts.forgotten += 1,
            }
        }
        verdicts
    }

    fn verdict(&self, candidate: &Candidate) -> Verdict {
        let memory = &self.topics[candidate.topic];
        let may_be_compacted = may_be_compacted(memory, candidate.created_ms);
        if !may_be_compacted && !candidate.may_be_removed {
            return Verdict::Missing;
        }
        // Place 0 is before all rows. It stands for a row without a key, and for a key without such rows.
        let last = candidate
            .key
            .and_then(|key| self.keys.get(&key))
            .copied()
            .unwrap_or_default();
        if candidate.place < last.with_record {
            return Verdict::Forgotten;
        }
        if candidate.may_be_removed || candidate.place <= last.lost_tombstone {
            return Verdict::Undecided;
        }
        Verdict::Missing
    }
}

fn may_be_compacted(memory: &Memory, created_ms: i64) -> bool {
    memory
        .compacted_before_ms
        .is_some_and(|before_ms| created_ms < before_ms)
}

fn may_be_removed(memory: &Memory, partitions: &[i32], created_ms: i64) -> bool {
    let removed_before_ms = partitions.iter().filter_map(|one| memory.removed_before_ms.get(one));
    removed_before_ms
        .copied()
        .any(|first_ms| created_ms <= first_ms.saturating_add(CLOCKS_DIFFER_MS))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::{Comparison, Memory, Row};
    use crate::continuity::event_ids::EventIds;

    /// Rows as (id, key, created_ms, tombstone), those without a record, and what becomes of them: missing, undecided, forgotten.
    fn compare(memory: &Memory, rows: &[(&str, &str, i64, bool)], absent: &[&str]) -> (Vec<String>, Vec<String>, u64) {
        compare_in(&[0], memory, rows, absent)
    }

    /// As [`compare`], where the rows' records would be in one of `partitions`.
    fn compare_in(
        partitions: &[i32],
        memory: &Memory,
        rows: &[(&str, &str, i64, bool)],
        absent: &[&str],
    ) -> (Vec<String>, Vec<String>, u64) {
        let mut ids = EventIds::default();
        absent.iter().for_each(|id| ids.insert(id));
        let topics = [memory.clone()];
        let mut comparison = Comparison::new(&topics);
        for (id, key, created_ms, is_tombstone) in rows.iter().copied() {
            let key = Some(key.as_bytes());
            comparison.add_row(
                Row {
                    id,
                    topic: 0,
                    partitions,
                    key,
                    created_ms,
                    is_tombstone,
                },
                &ids,
            );
        }
        let verdicts = comparison.decide();
        let those = |ids: &EventIds| {
            let ids = rows.iter().filter(|row| ids.contains(row.0));
            ids.map(|row| row.0.to_owned()).collect()
        };
        (those(&verdicts.missing), those(&verdicts.undecided), verdicts.forgotten)
    }

    fn compacted() -> Memory {
        Memory {
            compacted_before_ms: Some(100),
            ..Memory::default()
        }
    }

    #[test]
    fn a_topic_that_forgets_nothing_lacks_what_was_not_published() {
        let rows = [("1", "k", 1, false), ("2", "k", 2, false)];
        assert_eq!(
            compare(&Memory::default(), &rows, &["1"]),
            (vec!["1".to_owned()], vec![], 0)
        );
    }

    #[test]
    fn a_row_before_its_keys_last_record_was_compacted_away_and_one_behind_it_is_missing() {
        let rows = [
            ("1", "k", 1, false),
            ("2", "k", 2, false),
            ("3", "k", 3, false),
            ("4", "other", 4, false),
        ];
        assert_eq!(
            compare(&compacted(), &rows, &["1", "3", "4"]),
            (vec!["3".to_owned(), "4".to_owned()], vec![], 1)
        );
    }

    #[test]
    fn a_row_that_is_too_young_to_be_compacted_is_missing_whatever_stands_behind_it() {
        let rows = [("1", "k", 100, false), ("2", "k", 101, false)];
        assert_eq!(compare(&compacted(), &rows, &["1"]), (vec!["1".to_owned()], vec![], 0));
    }

    #[test]
    fn a_tombstone_may_have_wiped_its_key() {
        let rows = [("1", "k", 1, false), ("2", "k", 2, true), ("3", "k", 3, false)];
        assert_eq!(
            compare(&compacted(), &rows, &["1", "2", "3"]),
            (vec!["3".to_owned()], vec!["1".to_owned(), "2".to_owned()], 0)
        );
    }

    #[test]
    fn where_retention_removed_records_a_row_is_missing_only_well_behind_the_first_one_left() {
        let memory = Memory {
            removed_before_ms: HashMap::from([(0, 50_000)]),
            ..Memory::default()
        };
        let rows = [
            ("1", "k", 10_000, false),
            ("2", "other", 40_000, false),
            ("3", "k", 50_000, false),
            // Its commit may have been stamped after the first record's, and stand before it.
            ("4", "third", 50_001, false),
            ("5", "k", 70_000, false),
        ];
        assert_eq!(
            compare(&memory, &rows, &["1", "2", "4", "5"]),
            (vec!["5".to_owned()], vec!["2".to_owned(), "4".to_owned()], 1)
        );
    }

    #[test]
    fn a_row_may_be_forgotten_by_the_partition_where_a_former_number_of_partitions_led() {
        let memory = Memory {
            removed_before_ms: HashMap::from([(1, 50_000)]),
            ..Memory::default()
        };
        let rows = [("1", "k", 10_000, false), ("2", "k", 70_000, false)];
        let absent = ["1", "2"];
        let told = |partitions: &[i32]| compare_in(partitions, &memory, &rows, &absent);
        let both = || vec!["1".to_owned(), "2".to_owned()];
        assert_eq!(told(&[5]), (both(), vec![], 0), "it removed nothing");
        assert_eq!(told(&[5, 1]), (vec!["2".to_owned()], vec!["1".to_owned()], 0));
    }
}
