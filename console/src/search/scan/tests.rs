use std::cell::Cell;
use std::time::{Duration, Instant};

use super::kept::FOUND_BYTES_MAX;
use super::{End, Found, Log, ROUND_BYTES_MAX, WINDOW_MAX, Wanted, next_size, scan};
use crate::search::filter::Filter;
use crate::search::reader::{Read, Visit, Window};
use crate::search::record::Seen;
use crate::search::request::{Cursor, Order};

/// Partitions of records. Each has a time and a key; its offset is its index. A time of -1 stands for the end of a transaction, which no reader gets.
struct Partitions {
    records: Vec<Vec<(i64, &'static str)>>,
    /// What each record has as its value.
    value: Vec<u8>,
    /// After so many rounds the time is over.
    rounds: Cell<u32>,
}

impl Log for Partitions {
    fn read(
        &self,
        windows: &[Window],
        _deadline: Instant,
        visit: &mut dyn FnMut(&Seen<'_>) -> Visit,
    ) -> anyhow::Result<Read> {
        if self.rounds.get() == 0 {
            return Ok(Read::TimeOver);
        }
        self.rounds.set(self.rounds.get() - 1);
        for window in windows {
            for offset in window.from..window.to {
                let (time_ms, key) = self.records[window.partition as usize][offset as usize];
                if time_ms >= 0 {
                    visit(&Seen {
                        partition: window.partition,
                        offset,
                        timestamp_ms: Some(time_ms),
                        key: Some(key.as_bytes()),
                        value: Some(&self.value),
                        headers: Vec::new(),
                    });
                }
            }
        }
        Ok(Read::All)
    }
}

fn log(records: Vec<Vec<(i64, &'static str)>>) -> Partitions {
    Partitions {
        records,
        value: Vec::new(),
        rounds: Cell::new(u32::MAX),
    }
}

fn search(log: &Partitions, key: Option<&str>, order: Order, count: usize, cursor: Option<&Cursor>) -> Found {
    let windows: Vec<Window> = (0_i32..)
        .zip(&log.records)
        .map(|(partition, records)| {
            let all = Window {
                partition,
                from: 0,
                to: records.len() as i64,
            };
            match cursor.and_then(|cursor| cursor.0.get(&partition)) {
                Some(offset) if order == Order::NewestFirst => Window { to: *offset, ..all },
                Some(offset) => Window { from: *offset, ..all },
                None => all,
            }
        })
        .collect();
    let filter = Filter {
        key: key.map(|key| key.as_bytes().to_vec()),
        ..Filter::default()
    };
    let wanted = Wanted {
        topic: "t",
        filter: &filter,
        order,
        count,
        deadline: Instant::now() + Duration::from_secs(1),
    };
    scan(log, &windows, &wanted).unwrap()
}

fn times(found: &Found) -> Vec<i64> {
    found
        .records
        .iter()
        .map(|record| record.timestamp_ms.unwrap_or(-1))
        .collect()
}

/// Two partitions: one has even times, the other odd ones, and ends of transactions between.
fn two_partitions(count: i64) -> Partitions {
    let of = |first: i64| {
        let records = (first..count).step_by(2);
        records
            .flat_map(|time_ms| {
                [
                    (time_ms, if time_ms % 100 == 0 { "hundred" } else { "other" }),
                    (-1, ""),
                ]
            })
            .collect()
    };
    log(vec![of(0), of(1)])
}

#[test]
fn the_newest_come_first_over_all_partitions() {
    let found = search(&two_partitions(10_000), None, Order::NewestFirst, 5, None);
    assert_eq!(times(&found), [9_999, 9_998, 9_997, 9_996, 9_995]);
    assert_eq!(found.end, End::Enough);
    assert!(found.looked_at < 1_000, "{}", found.looked_at);
}

#[test]
fn a_search_goes_on_where_it_stopped_and_shows_each_record_once() {
    for order in [Order::NewestFirst, Order::OldestFirst] {
        let log = two_partitions(2_001);
        let (mut all, mut cursor) = (Vec::new(), None);
        for _ in 0..100 {
            let found = search(&log, None, order, 37, cursor.as_ref());
            all.extend(times(&found));
            cursor = found.next;
            if cursor.is_none() {
                assert_eq!(found.end, End::Complete);
                break;
            }
        }
        let mut wanted: Vec<i64> = (0..2_001).collect();
        if order == Order::NewestFirst {
            wanted.reverse();
        }
        assert_eq!(all, wanted, "{order:?}");
    }
}

#[test]
fn rare_records_are_found_in_order_by_wider_windows() {
    let log = two_partitions(100_000);
    let found = search(&log, Some("hundred"), Order::NewestFirst, 3, None);
    assert_eq!(times(&found), [99_900, 99_800, 99_700]);
    let found = search(&log, Some("hundred"), Order::OldestFirst, 3, None);
    assert_eq!(times(&found), [0, 100, 200]);
    let found = search(&log, Some("nobody"), Order::NewestFirst, 3, None);
    assert_eq!((found.end, found.looked_at, found.next), (End::Complete, 100_000, None));
}

#[test]
fn a_partition_that_is_slower_in_time_is_looked_at_before_its_neighbour_counts() {
    // Partition 1 has all of its thousand records within the last time of partition 0.
    let log = log(vec![
        (0..1_000).map(|time_ms| (time_ms, "a")).collect(),
        vec![(999, "b"); 1_000],
    ]);
    let found = search(&log, None, Order::NewestFirst, 500, None);
    assert!(
        found.records.iter().all(|record| record.timestamp_ms == Some(999)),
        "{:?}",
        times(&found)
    );
}

#[test]
fn where_the_time_is_over_the_search_says_where_to_go_on() {
    let log = two_partitions(100_000);
    log.rounds.set(2);
    let found = search(&log, Some("nobody"), Order::NewestFirst, 3, None);
    assert_eq!((found.end, found.records.len()), (End::TimeOver, 0));
    let cursor = found.next.expect("a place to go on");
    assert!(
        cursor.0.values().all(|offset| (1..100_000).contains(offset)),
        "{cursor}"
    );
    assert!(found.looked_at > 0 && found.looked_up_to_ms.is_some());
}

#[test]
fn large_records_fill_a_page_before_their_number_does_and_none_is_left_out() {
    for order in [Order::NewestFirst, Order::OldestFirst] {
        let mut log = two_partitions(30);
        log.value = vec![b'x'; 900_000];
        let (mut all, mut cursor) = (Vec::new(), None);
        for _ in 0..30 {
            let found = search(&log, None, order, 20, cursor.as_ref());
            assert!((1..=4).contains(&found.records.len()), "{}", found.records.len());
            all.extend(times(&found));
            cursor = found.next;
            if cursor.is_none() {
                break;
            }
        }
        let mut wanted: Vec<i64> = (0..30).collect();
        if order == Order::NewestFirst {
            wanted.reverse();
        }
        assert_eq!(all, wanted, "{order:?}");
    }
}

#[test]
fn a_record_that_is_larger_than_a_page_is_shown_alone() {
    let mut log = two_partitions(4);
    log.value = vec![b'x'; FOUND_BYTES_MAX + 1];
    let found = search(&log, None, Order::OldestFirst, 20, None);
    assert_eq!((times(&found), found.end), (vec![0], End::Enough));
}

#[test]
fn windows_grow_until_a_round_reads_much() {
    assert_eq!(next_size(24, 0), 48);
    assert_eq!(next_size(WINDOW_MAX, 0), WINDOW_MAX);
    assert_eq!(next_size(24, ROUND_BYTES_MAX + 1), 12);
    assert_eq!(next_size(1, ROUND_BYTES_MAX + 1), 1);
}
