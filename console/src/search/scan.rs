//! The order in which a search looks at records, and when it has enough. Pure: a [`Log`] reads.
//!
//! Kafka reads forward only, and each partition by itself. So a search goes in rounds. In each round it reads the next window of each partition: backward from
//! the ends with the newest first, forward otherwise. After a round it knows a *horizon*: a time beyond which some partition may have records that nobody has
//! looked at. Only records on this side of the horizon are surely the next ones in order. The search ends when it has enough of these.
//!
//! Windows double from round to round, until a round reads many bytes. So a search that finds nothing soon costs few rounds, and one that finds its records at
//! once reads little.

mod kept;

use std::collections::BTreeMap;
use std::time::Instant;

use self::kept::Kept;
use super::filter::Filter;
use super::reader::{Read, Visit, Window};
use super::record::{Record, Seen};
use super::request::{Cursor, Order};

/// The first window of a partition has so many offsets. It is small: nobody knows yet how large the records are.
const FIRST_WINDOW: i64 = 24;
/// A window has so many offsets at most. A round that the time limit breaks off counts for nothing, so it must not be long.
const WINDOW_MAX: i64 = 20_000;
/// A round that has read so many bytes makes the next windows smaller.
const ROUND_BYTES_MAX: usize = 8 * 1_048_576;

/// Where records are read.
pub trait Log {
    /// Visits the records of these windows, in the order of each partition.
    ///
    /// # Errors
    /// Kafka does not answer.
    fn read(
        &self,
        windows: &[Window],
        deadline: Instant,
        visit: &mut dyn FnMut(&Seen<'_>) -> Visit,
    ) -> anyhow::Result<Read>;
}

/// What is looked for.
pub struct Wanted<'w> {
    pub topic: &'w str,
    pub filter: &'w Filter,
    pub order: Order,
    /// Stop after so many.
    pub count: usize,
    pub deadline: Instant,
}

/// What a search found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// In the order that was asked for.
    pub records: Vec<Record>,
    pub end: End,
    /// How many records were looked at.
    pub looked_at: u64,
    /// The time of the farthest record that was looked at, milliseconds since 1970.
    pub looked_up_to_ms: Option<i64>,
    /// Where to go on. `None`: everything was looked at, and is shown.
    pub next: Option<Cursor>,
}

/// Why a search ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It looked at everything.
    Complete,
    /// It has as many as were asked for, or as many as one page can hold.
    Enough,
    /// Its time was over.
    TimeOver,
}

/// What a search has to look at in one partition, and how far it is.
#[derive(Clone, Copy, Debug)]
struct Lane {
    /// Offsets that nobody has looked at yet.
    left: Window,
    /// The time of the record that was looked at last, in the search's order.
    horizon_ms: Option<i64>,
}

/// Looks through the windows `all`, one a partition.
///
/// # Errors
/// As [`Log::read`].
pub fn scan(log: &dyn Log, all: &[Window], wanted: &Wanted<'_>) -> anyhow::Result<Found> {
    let mut lanes: BTreeMap<i32, Lane> = all
        .iter()
        .map(|window| {
            (
                window.partition,
                Lane {
                    left: *window,
                    horizon_ms: None,
                },
            )
        })
        .collect();
    let (mut kept, mut end) = (Kept::default(), End::Complete);
    let (mut looked_at, mut looked_up_to_ms) = (0, None);
    let mut size = FIRST_WINDOW;
    loop {
        let windows: Vec<Window> = lanes
            .values()
            .filter_map(|lane| next_window(lane.left, size, wanted.order))
            .collect();
        if windows.is_empty() {
            break;
        }
        let mut round = Round {
            kept: kept.empty_with_end(),
            ..Round::default()
        };
        let read = log.read(&windows, wanted.deadline, &mut |seen| {
            round.look_at(seen, wanted);
            Visit::GoOn
        })?;
        if read != Read::All {
            end = End::TimeOver;
            break;
        }
        looked_at += round.looked_at;
        kept.add(round.kept, wanted);
        for window in &windows {
            if let Some(lane) = lanes.get_mut(&window.partition) {
                lane.left = without(lane.left, *window, wanted.order);
                lane.horizon_ms = round.farthest_ms.get(&window.partition).copied().or(lane.horizon_ms);
                looked_up_to_ms = farther(looked_up_to_ms, lane.horizon_ms, wanted.order);
            }
        }
        let count = count_before(&kept.records, horizon(&lanes, wanted.order), wanted.order);
        if count >= wanted.count || (kept.is_full() && count == kept.records.len()) {
            break;
        }
        size = next_size(size, round.bytes);
    }
    let is_all_looked_at = lanes.values().all(|lane| lane.left.from >= lane.left.to);
    if end == End::Complete && !(is_all_looked_at && kept.passed.is_empty()) {
        end = End::Enough;
    }
    Ok(Found {
        next: (end != End::Complete).then(|| cursor(&lanes, &kept.passed, wanted.order)),
        records: kept.records,
        end,
        looked_at,
        looked_up_to_ms,
    })
}

/// What one round has seen.
#[derive(Default)]
struct Round {
    kept: Kept,
    looked_at: u64,
    /// How many bytes were looked at.
    bytes: usize,
    /// Of each partition, the time that lies farthest in the search's order.
    farthest_ms: BTreeMap<i32, i64>,
}

impl Round {
    fn look_at(&mut self, seen: &Seen<'_>, wanted: &Wanted<'_>) {
        self.looked_at += 1;
        self.bytes += seen.size();
        let time_ms = seen.timestamp_ms.unwrap_or(0);
        let farthest = self.farthest_ms.entry(seen.partition).or_insert(time_ms);
        *farthest = match wanted.order {
            Order::NewestFirst => time_ms.min(*farthest),
            Order::OldestFirst => time_ms.max(*farthest),
        };
        if !wanted.filter.wants(seen) {
            return;
        }
        self.kept.take(seen, wanted);
    }
}

/// The size of the windows after a round that has read so many bytes with windows of `size`.
fn next_size(size: i64, bytes: usize) -> i64 {
    if bytes > ROUND_BYTES_MAX {
        (size / 2).max(1)
    } else {
        (size * 2).min(WINDOW_MAX)
    }
}

fn next_window(left: Window, size: i64, order: Order) -> Option<Window> {
    (left.from < left.to).then(|| match order {
        Order::NewestFirst => Window {
            from: left.from.max(left.to - size),
            ..left
        },
        Order::OldestFirst => Window {
            to: left.to.min(left.from.saturating_add(size)),
            ..left
        },
    })
}

fn without(left: Window, read: Window, order: Order) -> Window {
    match order {
        Order::NewestFirst => Window { to: read.from, ..left },
        Order::OldestFirst => Window { from: read.to, ..left },
    }
}

fn farther(one: Option<i64>, other: Option<i64>, order: Order) -> Option<i64> {
    match (one, other, order) {
        (Some(one), Some(other), Order::NewestFirst) => Some(one.min(other)),
        (Some(one), Some(other), Order::OldestFirst) => Some(one.max(other)),
        (one, other, _) => one.or(other),
    }
}

/// The time on whose near side every record was looked at. `None`: all were, everywhere.
fn horizon(lanes: &BTreeMap<i32, Lane>, order: Order) -> Option<i64> {
    let open = lanes.values().filter(|lane| lane.left.from < lane.left.to);
    match order {
        Order::NewestFirst => open.map(|lane| lane.horizon_ms.unwrap_or(i64::MAX)).max(),
        Order::OldestFirst => open.map(|lane| lane.horizon_ms.unwrap_or(i64::MIN)).min(),
    }
}

fn count_before(records: &[Record], horizon_ms: Option<i64>, order: Order) -> usize {
    let Some(horizon_ms) = horizon_ms else {
        return records.len();
    };
    let times = records.iter().map(|record| record.timestamp_ms.unwrap_or(0));
    match order {
        Order::NewestFirst => times.take_while(|time_ms| *time_ms >= horizon_ms).count(),
        Order::OldestFirst => times.take_while(|time_ms| *time_ms <= horizon_ms).count(),
    }
}

/// Where the next search goes on: in a partition with records that are wanted and not shown, at the first of them; elsewhere where this one stopped.
fn cursor(lanes: &BTreeMap<i32, Lane>, passed: &BTreeMap<i32, i64>, order: Order) -> Cursor {
    let of_lane = |(partition, lane): (&i32, &Lane)| {
        let offset = match (order, passed.get(partition)) {
            (Order::NewestFirst, Some(offset)) => offset + 1,
            (Order::NewestFirst, None) => lane.left.to,
            (Order::OldestFirst, Some(offset)) => *offset,
            (Order::OldestFirst, None) => lane.left.from,
        };
        (*partition, offset)
    };
    Cursor(lanes.iter().map(of_lane).collect())
}

#[cfg(test)]
mod tests;
