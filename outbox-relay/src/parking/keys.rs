//! Knows the keys that have a parked row, since the later rows of these keys have to be parked too. And limits how many poison rows are parked in a minute.
//! Pure.

use std::collections::HashMap;

use ring::digest::{SHA256, digest};

use crate::process::row_name::RowPosition;

const MINUTE_US: i64 = 60_000_000;

/// A key of a topic, as a hash of both. If two keys have the same hash, rows are parked that need not be. Nothing worse happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicKeyHash(pub u64);

impl TopicKeyHash {
    /// The hash for a record with `key` in `topic`.
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

/// The keys with a parked row, and the position of each key's first parked row.
#[derive(Clone, Debug, Default)]
pub struct ParkedKeys(HashMap<TopicKeyHash, RowPosition>);

impl ParkedKeys {
    /// Notes a parked row.
    pub fn add(&mut self, topic_key: TopicKeyHash, position: RowPosition) {
        let first = self.0.entry(topic_key).or_insert(position);
        *first = (*first).min(position);
    }

    /// The position of the key's first parked row, if it stands before `position`. A row before the first parked one is not parked: it was published
    /// earlier, even if --delivery at-least-once sends it again.
    #[must_use]
    pub fn first_parked_before(&self, topic_key: TopicKeyHash, position: RowPosition) -> Option<RowPosition> {
        self.0.get(&topic_key).copied().filter(|first| *first < position)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Allows at most so many poison rows in any minute.
#[derive(Clone, Debug)]
pub struct RateLimit {
    rows_max: u32,
    /// When the rows of the last minute were parked, microseconds since 1970.
    times: Vec<i64>,
}

impl RateLimit {
    /// `times` are the times at which earlier rows were parked, in any order.
    #[must_use]
    pub const fn new(rows_max: u32, times: Vec<i64>) -> Self {
        Self { rows_max, times }
    }

    /// Whether another row may be parked now. A time ahead of the clock, which was set back, counts as now.
    pub fn allows(&mut self, now_us: i64) -> bool {
        self.times.retain_mut(|time| {
            *time = (*time).min(now_us);
            now_us - *time < MINUTE_US
        });
        self.times.len() < self.rows_max as usize
    }

    /// Counts a row that is parked now.
    pub fn count(&mut self, now_us: i64) {
        self.times.push(now_us);
    }
}

#[cfg(test)]
mod tests {
    use super::{MINUTE_US, ParkedKeys, RateLimit, TopicKeyHash};
    use crate::process::row_name::RowPosition;
    use pg_replication::Lsn;

    fn at(lsn: u64, index: u64) -> RowPosition {
        RowPosition {
            commit_lsn: Lsn(lsn),
            index,
        }
    }

    #[test]
    fn a_hash_is_of_a_topic_and_a_key_and_the_same_in_every_process() {
        assert_eq!(TopicKeyHash::of("t", b"k"), TopicKeyHash::of("t", b"k"));
        assert_ne!(TopicKeyHash::of("t", b"k"), TopicKeyHash::of("u", b"k"));
        assert_ne!(TopicKeyHash::of("t", b"k"), TopicKeyHash::of("tk", b""));
        assert_eq!(format!("{:016x}", TopicKeyHash::of("t", b"k").0), "f31e38a4251c28e3");
    }

    #[test]
    fn only_what_stands_behind_the_first_parked_row_of_its_key_parks() {
        let mut keys = ParkedKeys::default();
        assert!(keys.is_empty());
        keys.add(TopicKeyHash(1), at(10, 1));
        keys.add(TopicKeyHash(1), at(20, 0));
        keys.add(TopicKeyHash(1), at(10, 0));
        assert_eq!(keys.first_parked_before(TopicKeyHash(1), at(9, 9)), None);
        assert_eq!(keys.first_parked_before(TopicKeyHash(1), at(10, 0)), None);
        assert_eq!(keys.first_parked_before(TopicKeyHash(1), at(10, 1)), Some(at(10, 0)));
        assert_eq!(keys.first_parked_before(TopicKeyHash(1), at(30, 0)), Some(at(10, 0)));
        assert_eq!(keys.first_parked_before(TopicKeyHash(2), at(30, 0)), None);
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

    #[test]
    fn a_clock_that_was_set_back_holds_up_parking_for_a_minute_at_most() {
        let before = 60 * MINUTE_US;
        let mut limit = RateLimit::new(2, vec![before, before]);
        assert!(!limit.allows(0) && !limit.allows(MINUTE_US - 1));
        assert!(limit.allows(MINUTE_US));
    }
}
