//! The partitions that this process holds, and how far each has come: read from Kafka, committed to the view.
//!
//! Pure: no Kafka, no Postgres. Three numbers per partition, always `committed ≤ taken`:
//! - `committed`: the position in Postgres; the next batch moves it from here;
//! - `taken`: one past the last offset that a batch holds, waiting or in flight;
//! - `stop`: an event that cannot be applied. Nothing behind it is taken.

use std::collections::BTreeMap;

use crate::batch::{Batch, Part, TopicPartition};
use crate::event::{Event, Unappliable};

/// Limits of one batch: bounded memory, and transactions of a bounded length.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub rows: usize,
    pub bytes: usize,
}

/// Where a claimed partition begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    pub place: TopicPartition,
    pub epoch: i64,
    pub next_offset: i64,
}

/// An event that cannot be applied: its partition waits before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    pub place: TopicPartition,
    pub offset: i64,
    /// Without values.
    pub reason: String,
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
}

#[derive(Debug)]
struct Held {
    epoch: i64,
    committed: i64,
    taken: i64,
    stop: Option<Stop>,
    waiting: Vec<Event>,
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
        self.held = starts
            .into_iter()
            .map(|start| {
                let held = Held {
                    epoch: start.epoch,
                    committed: start.next_offset,
                    taken: start.next_offset,
                    stop: None,
                    waiting: Vec::new(),
                };
                (start.place, held)
            })
            .collect();
    }

    /// Whether another record may be read now.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.waiting_rows < self.limits.rows && self.waiting_bytes < self.limits.bytes
    }

    /// Takes what a record turned out to be: an event, nothing (a tombstone), or an event that cannot be applied. Returns
    /// the stop where this record is one. A record of a partition that is not held, one that was taken before, and one
    /// behind a stop are dropped.
    pub fn take(
        &mut self,
        place: &TopicPartition,
        offset: i64,
        record: Result<Option<Event>, Unappliable>,
    ) -> Option<Stop> {
        let held = self.held.get_mut(place)?;
        if held.stop.is_some() || offset < held.taken {
            return None;
        }
        match record {
            Ok(event) => {
                held.taken = offset + 1;
                if let Some(event) = event {
                    self.waiting_rows += 1;
                    self.waiting_bytes += event.size_bytes();
                    held.waiting.push(event);
                }
                None
            }
            Err(reason) => {
                held.taken = offset;
                held.stop = Some(Stop {
                    place: place.clone(),
                    offset,
                    reason: reason.0,
                });
                held.stop.clone()
            }
        }
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
                events: std::mem::take(&mut held.waiting),
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
        }
    }

    /// Postgres refused an event that looked good: its partition stops there, and what was taken behind it is dropped.
    pub fn refused(&mut self, stop: Stop) {
        if let Some(held) = self.held.get_mut(&stop.place) {
            self.waiting_rows -= held.waiting.len();
            self.waiting_bytes -= held.waiting.iter().map(Event::size_bytes).sum::<usize>();
            held.waiting.clear();
            held.taken = held.committed;
            held.stop = Some(stop);
        }
    }

    /// The partitions that stand before an event that cannot be applied.
    pub fn stops(&self) -> impl Iterator<Item = &Stop> {
        self.held.values().filter_map(|held| held.stop.as_ref())
    }

    /// Where each partition stands.
    pub fn positions(&self) -> impl Iterator<Item = Position<'_>> {
        self.held.iter().map(|(place, held)| Position {
            place,
            epoch: held.epoch,
            next_offset: held.committed,
            settled: held.taken == held.committed && held.stop.is_none(),
        })
    }
}

#[cfg(test)]
mod tests;
