//! Decides when a Kafka transaction is closed. Pure, and without a linger timer.
//!
//! A single event is committed at once. Events that arrive while Kafka commits are gathered in the next transaction. So the latency under little
//! load is that of the broker, and under much load the transactions are large.

use std::time::{Duration, Instant};

/// A transaction has at most so many rows. More rows would cost memory and give no more throughput.
const ROWS_MAX: u64 = 5_000;
/// How long a transaction may stay open while rows keep coming and the relay is up to date.
const AGE_MAX: Duration = Duration::from_millis(5);
/// As [`AGE_MAX`], while the relay is behind and catches up.
const AGE_MAX_BEHIND: Duration = Duration::from_millis(100);

/// The rows of the open Kafka transaction.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    pub rows: u64,
    bytes: u64,
    bytes_max: u64,
    /// When the first row was added.
    started: Option<Instant>,
    /// Commit time of the oldest row, microseconds since 1970; 0 if there is no row.
    pub oldest_commit_us: i64,
    /// Commit time of the newest row, microseconds since 1970.
    pub newest_commit_us: i64,
}

/// What is known when everything that was read is decoded.
#[derive(Clone, Copy, Debug)]
pub struct Situation {
    /// Nothing can be read from the socket now.
    pub is_silent: bool,
    /// No source transaction is open.
    pub is_between_transactions: bool,
    /// The newest row committed more than a second ago.
    pub is_behind: bool,
}

impl Batch {
    #[must_use]
    pub fn new(bytes_max: u64) -> Self {
        Self {
            rows: 0,
            bytes: 0,
            bytes_max,
            started: None,
            oldest_commit_us: 0,
            newest_commit_us: 0,
        }
    }

    /// Counts a row of so many bytes that was added.
    pub fn add(&mut self, bytes: usize, commit_us: i64) {
        if self.started.is_none() {
            self.started = Some(Instant::now());
            self.oldest_commit_us = commit_us;
        }
        self.rows += 1;
        self.bytes += bytes as u64;
        self.newest_commit_us = commit_us;
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// No further row may be added.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.rows >= ROWS_MAX || self.bytes >= self.bytes_max
    }

    /// Whether to close the transaction now.
    #[must_use]
    pub fn should_close(&self, situation: Situation) -> bool {
        if self.is_empty() {
            return false;
        }
        // While we are behind, a silent socket only means that the server sends more slowly than we read. Waiting makes the transactions larger, and we
        // catch up sooner.
        self.is_full()
            || (situation.is_silent && situation.is_between_transactions && !situation.is_behind)
            || self
                .closes_at(situation.is_behind)
                .is_some_and(|at| at <= Instant::now())
    }

    /// The latest moment at which the transaction is closed. `None`: it is empty.
    #[must_use]
    pub fn closes_at(&self, is_behind: bool) -> Option<Instant> {
        self.started
            .map(|started| started + if is_behind { AGE_MAX_BEHIND } else { AGE_MAX })
    }

    /// Starts the next transaction.
    pub fn clear(&mut self) {
        *self = Self::new(self.bytes_max);
    }
}

#[cfg(test)]
mod tests {
    use super::{AGE_MAX_BEHIND, Batch, ROWS_MAX, Situation};

    const CALM: Situation = Situation {
        is_silent: true,
        is_between_transactions: true,
        is_behind: false,
    };

    #[test]
    fn a_lone_event_goes_at_once() {
        let mut batch = Batch::new(1_000);
        assert!(!batch.should_close(CALM), "nothing is no transaction");
        batch.add(10, 0);
        assert!(batch.should_close(CALM));
    }

    #[test]
    fn an_open_source_transaction_and_more_to_read_keep_it_open() {
        let mut batch = Batch::new(1_000);
        batch.add(10, 0);
        assert!(!batch.should_close(Situation {
            is_between_transactions: false,
            is_behind: true,
            ..CALM
        }));
        assert!(!batch.should_close(Situation {
            is_silent: false,
            is_behind: true,
            ..CALM
        }));
    }

    #[test]
    fn behind_it_waits_for_more_but_not_for_long() {
        let mut batch = Batch::new(1_000);
        batch.add(10, 0);
        let behind = Situation {
            is_behind: true,
            ..CALM
        };
        assert!(!batch.should_close(behind));
        batch.started = batch.started.and_then(|started| started.checked_sub(AGE_MAX_BEHIND));
        assert!(batch.should_close(behind));
    }

    #[test]
    fn its_bytes_and_rows_are_bounded() {
        let mut batch = Batch::new(1_000);
        batch.add(500, 7);
        batch.add(500, 9);
        assert!(batch.is_full());
        assert_eq!((batch.oldest_commit_us, batch.newest_commit_us), (7, 9));
        batch.clear();
        for _ in 0..ROWS_MAX {
            batch.add(0, 0);
        }
        assert!(batch.is_full());
    }
}
