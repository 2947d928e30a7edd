//! What a search keeps of the records that are wanted.

use std::collections::BTreeMap;

use super::Wanted;
use crate::search::record::{Record, Seen};
use crate::search::request::Order;

/// The records that are found have so many bytes together, or there is only one of them.
pub(super) const FOUND_BYTES_MAX: usize = 4 * 1_048_576;

/// Where a record is in the order of time: its time, partition and offset.
type Place = (i64, i32, i64);

/// Records that are wanted: the first ones in order, as many as are asked for, and as there is room for.
#[derive(Default)]
pub(super) struct Kept {
    pub(super) records: Vec<Record>,
    /// How many bytes the records have.
    bytes: usize,
    /// The first in order that there was no room for. Whatever is behind it has no room either, so that nothing between is left out.
    end: Option<Place>,
    /// Of each partition, the first in order of those that are wanted too, and that this page has no room for.
    pub(super) passed: BTreeMap<i32, i64>,
}

impl Kept {
    /// Without records, but with the same end.
    pub(super) fn empty_with_end(&self) -> Self {
        Self {
            end: self.end,
            ..Self::default()
        }
    }

    /// Whether a record had no room.
    pub(super) fn is_full(&self) -> bool {
        self.end.is_some()
    }

    pub(super) fn add(&mut self, mut other: Self, wanted: &Wanted<'_>) {
        self.records.append(&mut other.records);
        self.bytes += other.bytes;
        self.end = first_of(self.end, other.end, wanted.order);
        for (partition, offset) in other.passed {
            self.pass(partition, offset, wanted.order);
        }
        self.keep_first(wanted);
    }

    /// Takes a record that is wanted, if it has room.
    pub(super) fn take(&mut self, seen: &Seen<'_>, wanted: &Wanted<'_>) {
        let place = (seen.timestamp_ms.unwrap_or(0), seen.partition, seen.offset);
        if self.is_behind_end(place, wanted.order) {
            self.pass(seen.partition, seen.offset, wanted.order);
            return;
        }
        self.records.push(seen.to_record(wanted.topic));
        self.bytes += seen.size();
        // A window may have thousands that are wanted, or large ones.
        if self.records.len() >= wanted.count.saturating_mul(8).max(64) || self.bytes > 2 * FOUND_BYTES_MAX {
            self.keep_first(wanted);
        }
    }

    /// Sorts, and keeps as many as are asked for and have room.
    fn keep_first(&mut self, wanted: &Wanted<'_>) {
        match wanted.order {
            Order::NewestFirst => self.records.sort_by_key(|record| std::cmp::Reverse(place(record))),
            Order::OldestFirst => self.records.sort_by_key(place),
        }
        let (mut count, mut bytes) = (0, 0);
        for record in self.records.iter().take(wanted.count) {
            let with_it = bytes + record.size();
            if self.is_behind_end(place(record), wanted.order) || (count > 0 && with_it > FOUND_BYTES_MAX) {
                break;
            }
            (count, bytes) = (count + 1, with_it);
        }
        self.bytes = bytes;
        let without_room = self.records.split_off(count);
        self.end = first_of(self.end, without_room.first().map(place), wanted.order);
        for record in without_room {
            self.pass(record.partition, record.offset, wanted.order);
        }
    }

    fn is_behind_end(&self, place: Place, order: Order) -> bool {
        self.end.is_some_and(|end| match order {
            Order::NewestFirst => place <= end,
            Order::OldestFirst => place >= end,
        })
    }

    fn pass(&mut self, partition: i32, offset: i64, order: Order) {
        let first = self.passed.entry(partition).or_insert(offset);
        *first = match order {
            Order::NewestFirst => offset.max(*first),
            Order::OldestFirst => offset.min(*first),
        };
    }
}

fn place(record: &Record) -> Place {
    (record.timestamp_ms.unwrap_or(0), record.partition, record.offset)
}

fn first_of(one: Option<Place>, other: Option<Place>, order: Order) -> Option<Place> {
    let (Some(a), Some(b)) = (one, other) else {
        return one.or(other);
    };
    Some(match order {
        Order::NewestFirst => a.max(b),
        Order::OldestFirst => a.min(b),
    })
}
