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
//! Rules 2 and 3 compare the rows of a key by `created_at`. They hold only if that is also the order of the key's commits: see [`RowsOfAKey`]. Where it is not,
//! these rules take their place:
//!
//! - In a topic that only compacts, a row without a published row of its key is missing. This holds for any `created_at`.
//! - In such a topic, a row that was created after the newest commit that has a record is missing, since it committed later still. This and the next rule
//!   need a `created_at` that is never after the commit.
//! - A row that was created a day before the newest commit that has a record, and has a published row of its key, is forgotten. If it were missing, its
//!   transaction would have been open for that day ([`TRANSACTION_OPEN_MAX_MS`]).
//!
//! A row that no rule decides is *undecided*: the operator chooses whether it may be lost or may come twice.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use crate::continuity::event_ids::EventIds;

/// How much two moments may differ by mistake, in milliseconds. Postgres, Kafka and this machine have clocks of their own. And two commits may stand in
/// the log in another order than their timestamps say, since a timestamp is taken a little earlier. Nearer moments count as the same.
pub const CLOCKS_DIFFER_MS: i64 = 10_000;

/// No transaction that writes to the outbox is expected to stay open for so long, in milliseconds: a day.
const TRANSACTION_OPEN_MAX_MS: i64 = 24 * 60 * 60 * 1_000;

/// What `created_at` says about the rows of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowsOfAKey {
    /// The row that was created later has committed later. This takes a column that defaults to `clock_timestamp()`, and writers that hold a lock on
    /// the key until they commit.
    CommitAsCreated,
    /// The row that was created later may have committed first, but each was created before it committed. This takes a column that defaults to `now()`: a
    /// transaction that waits for the lock on the key has taken its time before.
    CommitAfterCreation,
    /// `created_at` says nothing: an application sets it, or there is no such column.
    CommitAtAnyTime,
}

/// Which records a topic may have removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// In a compacted topic, records older than this may be removed; in milliseconds since 1970.
    pub compacted_before_ms: Option<i64>,
    /// Timestamp of the first record of each partition whose beginning was removed, in milliseconds since 1970; `i64::MAX` where no record is left.
    pub removed_before_ms: HashMap<i32, i64>,
    /// The latest commit of a row with a record, by the record's position; in milliseconds since 1970. `None` where no record has a position.
    pub newest_ms: Option<i64>,
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
    rows_of_a_key: RowsOfAKey,
    /// When the newest published row of all topics committed, in milliseconds since 1970.
    newest_ms: Option<i64>,
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
    pub fn new(topics: &'m [Memory], rows_of_a_key: RowsOfAKey) -> Self {
        Self {
            topics,
            rows_of_a_key,
            newest_ms: topics.iter().filter_map(|topic| topic.newest_ms).max(),
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
        match self.rows_of_a_key {
            RowsOfAKey::CommitAsCreated => {}
            RowsOfAKey::CommitAfterCreation => return self.verdict_by_age(candidate, last),
            RowsOfAKey::CommitAtAnyTime if is_alone(candidate, last) => return Verdict::Missing,
            RowsOfAKey::CommitAtAnyTime => return Verdict::Undecided,
        }
        if candidate.place < last.with_record {
            return Verdict::Forgotten;
        }
        if candidate.may_be_removed || candidate.place <= last.lost_tombstone {
            return Verdict::Undecided;
        }
        Verdict::Missing
    }

    /// The verdict on a row whose record may be removed, if nothing tells which rows of its key committed before it.
    fn verdict_by_age(&self, candidate: &Candidate, last: LastOfKey) -> Verdict {
        let has_record = last.with_record > 0;
        let only_compacts = !candidate.may_be_removed && last.lost_tombstone == 0;
        let age_ms = |newest_ms: i64| newest_ms.saturating_sub(candidate.created_ms);
        match self.newest_ms {
            _ if is_alone(candidate, last) => Verdict::Missing,
            // Where more than the earlier records of a key may be removed, a later commit may have had a record.
            Some(newest_ms) if only_compacts && age_ms(newest_ms) < -CLOCKS_DIFFER_MS => Verdict::Missing,
            // 0 says that the age is not known.
            Some(newest_ms)
                if has_record && candidate.created_ms > 0 && age_ms(newest_ms) > TRANSACTION_OPEN_MAX_MS =>
            {
                Verdict::Forgotten
            }
            _ => Verdict::Undecided,
        }
    }
}

/// Whether no row of its key has a record, in a topic that always keeps the last record of a key.
fn is_alone(candidate: &Candidate, last: LastOfKey) -> bool {
    last.with_record == 0 && last.lost_tombstone == 0 && !candidate.may_be_removed
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
mod tests;
