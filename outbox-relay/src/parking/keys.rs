//! Which rows park: those of a key of which a row is parked, and how many poison rows may park in a minute. Pure.

use std::collections::{HashMap, VecDeque};

use ring::digest::{SHA256, digest};

use crate::process::row_name::RowPosition;

const MINUTE_US: i64 = 60_000_000;

/// A key of a topic, as a hash of both; two that meet in one make rows park that need not, and nothing worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane(pub u64);

impl Lane {
    /// The lane of a record with `key` in `topic`.
    #[must_use]
    pub fn of(topic: &str, key: &[u8]) -> Self {
        let mut text = Vec::with_capacity(topic.len() + 1 + key.len());
        // No topic's name has a zero byte, so no two pairs make the same text.
        text.extend_from_slice(topic.as_bytes());
        text.push(0);
        text.extend_from_slice(key);
        let hash = digest(&SHA256, &text);
        let mut first = [0; 8];
        first.copy_from_slice(&hash.as_ref()[..8]);
        Self(u64::from_be_bytes(first))
    }
}

/// The lanes with a parked row, and where each one's first parked row stands.
#[derive(Clone, Debug, Default)]
pub struct ParkedKeys(HashMap<Lane, RowPosition>);

impl ParkedKeys {
    /// Takes note of a parked row.
    pub fn add(&mut self, lane: Lane, position: RowPosition) {
        let first = self.0.entry(lane).or_insert(position);
        *first = (*first).min(position);
    }

    /// The first parked row of the lane, where the row at `position` stands behind it. A row before it was published before it was parked, also
    /// where --delivery at-least-once brings it again.
    #[must_use]
    pub fn before(&self, lane: Lane, position: RowPosition) -> Option<RowPosition> {
        self.0.get(&lane).copied().filter(|first| *first < position)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// At most so many poison rows in any minute.
#[derive(Clone, Debug)]
pub struct RateLimit {
    rows_max: u32,
    /// When the rows of the last minute were parked, microseconds since 1970.
    times: VecDeque<i64>,
}

impl RateLimit {
    /// `times` are those of rows that were parked before, in any order.
    #[must_use]
    pub fn new(rows_max: u32, mut times: Vec<i64>) -> Self {
        times.sort_unstable();
        Self {
            rows_max,
            times: times.into(),
        }
    }

    /// Whether another row may be parked now. A time ahead of the clock, which was set back, counts as now.
    pub fn allows(&mut self, now_us: i64) -> bool {
        while self.times.front().is_some_and(|time| now_us - time >= MINUTE_US) {
            self.times.pop_front();
        }
        self.times.len() < self.rows_max as usize
    }

    /// Counts a row.
    pub fn count(&mut self, now_us: i64) {
        self.times.push_back(now_us);
    }
}

#[cfg(test)]
mod tests {
    use super::{Lane, MINUTE_US, ParkedKeys, RateLimit};
    use crate::process::row_name::RowPosition;
    use pg_replication::Lsn;

    fn at(lsn: u64, index: u64) -> RowPosition {
        RowPosition {
            commit_lsn: Lsn(lsn),
            index,
        }
    }

    #[test]
    fn a_lane_is_a_topic_and_a_key_and_the_same_in_every_process() {
        assert_eq!(Lane::of("t", b"k"), Lane::of("t", b"k"));
        assert_ne!(Lane::of("t", b"k"), Lane::of("u", b"k"));
        assert_ne!(Lane::of("t", b"k"), Lane::of("tk", b""));
        assert_eq!(format!("{:016x}", Lane::of("t", b"k").0), "f31e38a4251c28e3");
    }

    #[test]
    fn only_what_stands_behind_the_first_parked_row_of_its_key_parks() {
        let mut keys = ParkedKeys::default();
        assert!(keys.is_empty());
        keys.add(Lane(1), at(10, 1));
        keys.add(Lane(1), at(20, 0));
        keys.add(Lane(1), at(10, 0));
        assert_eq!(keys.before(Lane(1), at(9, 9)), None);
        assert_eq!(keys.before(Lane(1), at(10, 0)), None);
        assert_eq!(keys.before(Lane(1), at(10, 1)), Some(at(10, 0)));
        assert_eq!(keys.before(Lane(1), at(30, 0)), Some(at(10, 0)));
        assert_eq!(keys.before(Lane(2), at(30, 0)), None);
    }

    #[test]
    fn so_many_rows_in_any_minute_and_no_more() {
        let mut limit = RateLimit::new(2, vec![0]);
        assert!(limit.allows(1));
        limit.count(1);
        assert!(!limit.allows(2));
        assert!(!limit.allows(MINUTE_US - 1));
        assert!(limit.allows(MINUTE_US), "the first is a minute old");
        limit.count(MINUTE_US);
        assert!(!limit.allows(MINUTE_US));
        assert!(limit.allows(MINUTE_US + 1));
    }
}
