//! The partitions that this process holds, and how far each has come: read from Kafka, committed to the view.
//!
//! Pure: no Kafka, no Postgres. Two numbers per partition, always `committed ≤ taken`:
//! - `committed`: the position in Postgres; the next batch moves it from here;
//! - `taken`: one past the last offset that a batch holds, waiting or in flight.

use std::collections::{BTreeMap, HashSet};

use kafka_client::ReadUpTo;

use crate::builder::claim::{self, Start};
use crate::contract::batch::{Batch, Part, RefusedEvent};
use crate::contract::event::{Event, Unappliable};
use crate::contract::letter::{Fate, Letter};
use crate::contract::place::TopicPartition;
use crate::contract::position::Position;
use crate::letters::{Known, LettersOfKey};

/// Limits of one batch: bounded memory, and transactions of a bounded length.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub rows: usize,
    pub bytes: usize,
}

/// A record, as far as it concerns its partition.
pub struct Record<'a, L> {
    pub offset: i64,
    /// When it was handed over, microseconds since 1970.
    pub read_us: i64,
    /// The leader's epoch; none where the cluster does not tell it.
    pub epoch: Option<i32>,
    pub key: Option<&'a [u8]>,
    /// Its event; none for a tombstone.
    pub event: Result<Option<Event>, Unappliable>,
    /// Makes a letter of the record, with this reason.
    pub letter: L,
}

#[derive(Debug)]
struct Held {
    epoch: i64,
    committed: i64,
    taken: i64,
    new_from: i64,
    oldest_us: Option<i64>,
    known: Known,
    /// Up to where the log was read with what waits.
    read: Option<ReadUpTo>,
    /// Nothing is taken for now, though Kafka hands records over.
    is_held_back: bool,
    waiting: Vec<Event>,
    letters: Vec<Letter>,
}

impl Held {
    /// When the source committed the first of what waits.
    fn first_waiting_us(&self) -> Option<i64> {
        let event = self
            .waiting
            .first()
            .map(|event| (event.offset, Some(event.committed_us)));
        let letter = self
            .letters
            .first()
            .map(|letter| (letter.offset, letter.record_time_us));
        event.into_iter().chain(letter).min()?.1
    }

    fn waiting_rows(&self) -> usize {
        self.waiting.len() + self.letters.len()
    }

    fn waiting_bytes(&self) -> usize {
        let events: usize = self.waiting.iter().map(Event::size_bytes).sum();
        events + self.letters.iter().map(Letter::size_bytes).sum::<usize>()
    }
}

/// The partitions that this process holds.
#[derive(Debug)]
pub struct Assignment {
    limits: Limits,
    held: BTreeMap<TopicPartition, Held>,
    waiting_rows: usize,
    waiting_bytes: usize,
}

impl Assignment {
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            held: BTreeMap::new(),
            waiting_rows: 0,
            waiting_bytes: 0,
        }
    }

    /// Holds these partitions and no others. What waited is dropped: their new holders read it again.
    pub fn replace(&mut self, starts: Vec<Start>) {
        self.waiting_rows = 0;
        self.waiting_bytes = 0;
        self.held.clear();
        self.add(starts);
    }

    /// Holds these partitions as well.
    pub fn add(&mut self, starts: Vec<Start>) {
        self.held.extend(starts.into_iter().map(|start| {
            let held = Held {
                epoch: start.epoch,
                committed: start.next_offset,
                taken: start.next_offset,
                new_from: start.new_from,
                oldest_us: None,
                known: start.known,
                read: None,
                is_held_back: false,
                waiting: Vec::new(),
                letters: Vec::new(),
            };
            (start.place, held)
        }));
    }

    /// Whether another record may be read now.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.waiting_rows < self.limits.rows && self.waiting_bytes < self.limits.bytes
    }

    /// Takes a record: its event is applied with the next batch, or it goes to the dead letters, or it is nothing (a tombstone).
    /// Returns why it is dead where this record is. One of a partition that is not held, and one that was taken before, are dropped.
    pub fn take(
        &mut self,
        place: &TopicPartition,
        record: Record<'_, impl FnOnce(Option<String>) -> Letter>,
    ) -> Option<String> {
        let held = self.held.get_mut(place)?;
        let offset = record.offset;
        if offset < held.taken {
            return None;
        }
        held.taken = offset + 1;
        held.read = record.epoch.map(|epoch| ReadUpTo {
            offset: offset + 1,
            epoch,
        });
        let (event, trouble) = match record.event {
            Ok(None) => return None,
            Ok(Some(event)) => (Some(event), None),
            Err(unappliable) => (None, Some(unappliable.0)),
        };
        let reason = match (held.known.decide(offset, record.key, trouble), event) {
            (Fate::Applied, Some(mut event)) => {
                event.read_us = (offset >= held.new_from).then_some(record.read_us);
                held.oldest_us.get_or_insert(event.committed_us);
                self.waiting_rows += 1;
                self.waiting_bytes += event.size_bytes();
                held.waiting.push(event);
                return None;
            }
            (Fate::Dropped | Fate::Applied, _) => return None,
            (Fate::Parked, _) => None,
            (Fate::Dead(reason), _) => Some(reason),
        };
        let letter = (record.letter)(reason.clone());
        self.waiting_rows += 1;
        self.waiting_bytes += letter.size_bytes();
        held.oldest_us = held.oldest_us.or(letter.record_time_us);
        held.letters.push(letter);
        reason
    }

    /// All that waits, as the next batch; none when nothing does. Only one batch may be in flight: the next one's positions
    /// continue from what [`Assignment::committed`] tells of this one.
    #[must_use]
    pub fn next_batch(&mut self) -> Option<Batch> {
        let parts: Vec<Part> = self
            .held
            .iter_mut()
            .filter(|(_, held)| held.taken > held.committed)
            .map(|(place, held)| Part {
                place: place.clone(),
                epoch: held.epoch,
                from: held.committed,
                to: held.taken,
                read: held.read.take(),
                events: std::mem::take(&mut held.waiting),
                letters: std::mem::take(&mut held.letters),
            })
            .collect();
        self.waiting_rows = 0;
        self.waiting_bytes = 0;
        (!parts.is_empty()).then_some(Batch { parts })
    }

    /// The view's transaction has moved this partition to `next_offset`.
    pub fn committed(&mut self, place: &TopicPartition, next_offset: i64) {
        if let Some(held) = self.held.get_mut(place) {
            debug_assert!(held.committed <= next_offset && next_offset <= held.taken);
            held.committed = next_offset;
            held.oldest_us = held.first_waiting_us();
            held.known.committed(next_offset);
        }
    }

    /// Postgres refused an event that looked good. What was taken from it on has to be read again, from
    /// [`Assignment::next_reads`], and then it goes to the dead letters.
    pub fn refused(&mut self, refused: RefusedEvent) {
        if let Some(held) = self.held.get_mut(&refused.place) {
            held.known.refuse(refused.offset, refused.reason);
            self.read_again(|place| *place == refused.place);
        }
    }

    /// Learns what the table of letters says of these keys now. What was taken of their partitions has to be read again, from
    /// [`Assignment::next_reads`].
    pub fn correct_letters(&mut self, keys: Vec<LettersOfKey>) {
        let mut changed = HashSet::new();
        for of_key in keys {
            if let Some(held) = self.held.get_mut(&of_key.place) {
                held.known.correct(of_key.key, of_key.first, &of_key.discarded);
                changed.insert(of_key.place);
            }
        }
        self.read_again(|place| changed.contains(place));
    }

    /// The batch in flight was given up as a whole: all that was taken has to be read again, from [`Assignment::next_reads`].
    pub fn given_up(&mut self) {
        self.read_again(|_| true);
    }

    fn read_again(&mut self, which: impl Fn(&TopicPartition) -> bool) {
        for (_, held) in self.held.iter_mut().filter(|(place, _)| which(place)) {
            self.waiting_rows -= held.waiting_rows();
            self.waiting_bytes -= held.waiting_bytes();
            held.waiting.clear();
            held.letters.clear();
            held.taken = held.committed;
            held.read = None;
        }
    }

    /// Whether the partition is held back: records come, and none is taken. It is not settled then, whatever was read.
    pub fn hold_back(&mut self, place: &TopicPartition, is_held_back: bool) {
        if let Some(held) = self.held.get_mut(place) {
            held.is_held_back = is_held_back;
        }
    }

    /// The partitions with the claims under which they are held.
    pub fn claims(&self) -> impl Iterator<Item = claim::Held> {
        self.held.iter().map(|(place, held)| claim::Held {
            place: place.clone(),
            epoch: held.epoch,
        })
    }

    /// The next offset to read of each partition. Whoever has set one back makes Kafka send from there before the next record is
    /// taken, since a record that comes later would be taken for the next one.
    pub fn next_reads(&self) -> impl Iterator<Item = (&TopicPartition, i64)> {
        self.held.iter().map(|(place, held)| (place, held.taken))
    }

    /// Where each partition stands.
    pub fn positions(&self) -> impl Iterator<Item = Position<'_>> {
        self.held.iter().map(|(place, held)| Position {
            place,
            epoch: held.epoch,
            next_offset: held.committed,
            settled: held.taken == held.committed && !held.is_held_back,
            oldest_us: held.oldest_us,
        })
    }
}

#[cfg(test)]
mod tests;
