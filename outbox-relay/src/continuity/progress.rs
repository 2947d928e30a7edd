//! How far the relay is: pure bookkeeping, in which no position can overtake the one that it depends on.
//!
//! A row's place is a pair: the LSN of its transaction's commit record, and the row's index in the transaction. The row's own LSN would not do. All
//! rows of one COPY have the same. And when transactions run at the same time, the stream does not send their rows in the order of the rows' LSNs. It
//! sends transactions in the order of their commits.
//!
//! There are three positions, and each one follows the one before it:
//!
//! - *decoded*: the rows up to here were handed to the open Kafka transaction, or to an earlier one;
//! - *published*: the Kafka transaction with these rows has committed, and so has the checkpoint in it that says so;
//! - *confirmed*: Postgres was told that it may forget the WAL up to here.
//!
//! Confirming only lets Postgres clean up. After a crash the checkpoint in Kafka decides: the slot may send old rows once more, and those at or below the
//! checkpoint are skipped.

use serde::{Deserialize, Serialize};

use super::planted;
use pg_replication::Lsn;

/// Up to where everything is published. While a relay runs, it only moves forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Published {
    /// Every transaction whose commit record lies below this position is published whole.
    pub lsn: Lsn,
    /// The one transaction above it of which a part is published. A large transaction is cut into several Kafka transactions.
    pub partial: Option<Partial>,
}

/// A transaction of which the first rows are published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Partial {
    /// LSN of its commit record.
    pub commit_lsn: Lsn,
    /// How many of its rows are published.
    pub rows: u64,
}

/// What to do with a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowFate {
    /// It is published already.
    Skip,
    /// Publish it. `index` is its index in its transaction.
    Publish { index: u64 },
}

/// The stream contradicts itself, so nothing in it can be trusted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    #[error("a transaction began inside another")]
    NestedBegin,
    #[error("a row or a commit came outside of a transaction")]
    OutsideTransaction,
    #[error("the commit at {commit} does not fit the begin at {begin}")]
    CommitMismatch { begin: Lsn, commit: Lsn },
}

/// The source transaction that is being read.
#[derive(Clone, Copy, Debug)]
struct OpenTransaction {
    commit_lsn: Lsn,
    /// Rows decoded so far.
    rows: u64,
    /// How many of its first rows are published already.
    published_rows: u64,
}

/// The three positions, and the source transaction that is being read.
#[derive(Debug)]
pub struct Progress {
    decoded: Published,
    published: Published,
    verified: Lsn,
    confirmed: Lsn,
    open: Option<OpenTransaction>,
}

impl Progress {
    /// Continues from a checkpoint.
    #[must_use]
    pub fn resume(checkpoint: Published) -> Self {
        Self {
            decoded: checkpoint,
            published: checkpoint,
            verified: Lsn::INVALID,
            confirmed: Lsn::INVALID,
            open: None,
        }
    }

    /// A source transaction begins.
    ///
    /// # Errors
    /// Another one is open.
    pub fn begin(&mut self, commit_lsn: Lsn) -> Result<(), ProtocolError> {
        if self.open.is_some() {
            return Err(ProtocolError::NestedBegin);
        }
        let published_rows = match self.decoded.partial {
            _ if commit_lsn < self.decoded.lsn => u64::MAX,
            Some(partial) if partial.commit_lsn == commit_lsn => planted::published_rows(partial.rows),
            _ => 0,
        };
        self.open = Some(OpenTransaction {
            commit_lsn,
            rows: 0,
            published_rows,
        });
        Ok(())
    }

    /// What to do with the next row of the open transaction. It counts as decoded once [`Progress::row_decoded`] is called.
    ///
    /// # Errors
    /// No transaction is open.
    pub fn fate_of_next_row(&self) -> Result<RowFate, ProtocolError> {
        let open = self.open.as_ref().ok_or(ProtocolError::OutsideTransaction)?;
        Ok(if open.rows < open.published_rows {
            RowFate::Skip
        } else {
            RowFate::Publish { index: open.rows }
        })
    }

    /// The row that [`Progress::fate_of_next_row`] looked at was skipped or handed to the open Kafka transaction.
    ///
    /// # Errors
    /// No transaction is open.
    pub fn row_decoded(&mut self) -> Result<(), ProtocolError> {
        let open = self.open.as_mut().ok_or(ProtocolError::OutsideTransaction)?;
        open.rows += 1;
        if open.rows > open.published_rows {
            self.decoded.partial = Some(Partial {
                commit_lsn: open.commit_lsn,
                rows: open.rows,
            });
        }
        Ok(())
    }

    /// The open transaction is complete.
    ///
    /// # Errors
    /// No transaction is open, or another one.
    pub fn commit(&mut self, commit_lsn: Lsn, end_lsn: Lsn) -> Result<(), ProtocolError> {
        let open = self.open.take().ok_or(ProtocolError::OutsideTransaction)?;
        if open.commit_lsn != commit_lsn {
            return Err(ProtocolError::CommitMismatch {
                begin: open.commit_lsn,
                commit: commit_lsn,
            });
        }
        self.complete_up_to(end_lsn);
        Ok(())
    }

    /// The server has sent everything below `wal_end`.
    pub fn note_keepalive(&mut self, wal_end: Lsn) {
        // Inside a transaction the server's position says nothing about the rows still to come.
        if self.open.is_none() {
            self.complete_up_to(wal_end);
        }
    }

    fn complete_up_to(&mut self, lsn: Lsn) {
        // A slot that was rewound sends old positions again; they change nothing.
        if lsn > self.decoded.lsn {
            self.decoded.lsn = lsn;
            if self.decoded.partial.is_some_and(|partial| partial.commit_lsn < lsn) {
                self.decoded.partial = None;
            }
        }
    }

    /// The position for a checkpoint that is written now.
    #[must_use]
    pub fn decoded(&self) -> Published {
        self.decoded
    }

    /// What is published.
    #[must_use]
    pub fn published(&self) -> Published {
        self.published
    }

    /// The Kafka transaction whose checkpoint said `checkpoint` has committed.
    pub fn note_kafka_commit(&mut self, checkpoint: Published) {
        assert!(checkpoint.lsn >= self.published.lsn, "a checkpoint never goes back");
        assert!(
            checkpoint.lsn <= self.decoded.lsn,
            "nothing is published that was not decoded"
        );
        self.published = checkpoint;
    }

    /// The publication was seen unaltered at `lsn`: nothing was hidden from what was decoded up to there, see [`crate::guard`].
    pub fn verify_up_to(&mut self, lsn: Lsn) {
        self.verified = self.verified.max(lsn);
    }

    /// The position to confirm to Postgres now: everything up to it is published and verified. `None` if it has not moved since the last call.
    pub fn confirm(&mut self) -> Option<Lsn> {
        let confirmable = self.published.lsn.min(self.verified);
        let confirmable = self.planted_position().unwrap_or(confirmable);
        (confirmable > self.confirmed).then(|| {
            self.confirmed = confirmable;
            self.confirmed
        })
    }

    /// WAL between what is published and what is decoded, in bytes, with nothing of the outbox in it.
    #[must_use]
    pub fn idle_bytes(&self) -> u64 {
        self.decoded.lsn.bytes_since(self.published.lsn)
    }

    /// Whether no source transaction is open.
    #[must_use]
    pub fn is_between_transactions(&self) -> bool {
        self.open.is_none()
    }

    /// Rows of the open source transaction that were decoded.
    #[must_use]
    pub fn open_rows(&self) -> u64 {
        self.open.map_or(0, |open| open.rows)
    }
}

impl Progress {
    /// What a relay with a planted bug confirms.
    fn planted_position(&self) -> Option<Lsn> {
        match self.published.partial {
            _ if planted::confirms_before_commit() => Some(self.decoded.lsn),
            Some(partial) if planted::confirms_mid_transaction() => Some(Lsn(partial.commit_lsn.0 + 1)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Partial, Progress, ProtocolError, Published, RowFate};
    use pg_replication::Lsn;

    fn at(lsn: u64) -> Published {
        Published {
            lsn: Lsn(lsn),
            partial: None,
        }
    }

    /// Feeds a transaction of `rows` rows; returns the indexes that are to be published.
    fn feed(progress: &mut Progress, commit: u64, end: u64, rows: u64) -> Vec<u64> {
        progress.begin(Lsn(commit)).unwrap();
        let mut published = Vec::new();
        for _ in 0..rows {
            if let RowFate::Publish { index } = progress.fate_of_next_row().unwrap() {
                published.push(index);
            }
            progress.row_decoded().unwrap();
        }
        progress.commit(Lsn(commit), Lsn(end)).unwrap();
        published
    }

    #[test]
    fn what_lies_below_the_checkpoint_is_skipped_and_what_lies_at_it_is_not() {
        let mut progress = Progress::resume(at(100));
        assert_eq!(feed(&mut progress, 50, 60, 2), [] as [u64; 0]);
        assert_eq!(progress.decoded(), at(100), "a replay moves nothing back");
        assert_eq!(feed(&mut progress, 100, 110, 2), [0, 1]);
        assert_eq!(progress.decoded(), at(110));
    }

    #[test]
    fn a_transaction_cut_in_two_goes_on_at_the_row_where_it_was_cut() {
        let mut progress = Progress::resume(at(100));
        progress.begin(Lsn(200)).unwrap();
        for _ in 0..3 {
            progress.row_decoded().unwrap();
        }
        let cut = progress.decoded();
        assert_eq!(
            cut,
            Published {
                lsn: Lsn(100),
                partial: Some(Partial {
                    commit_lsn: Lsn(200),
                    rows: 3
                })
            }
        );
        progress.note_kafka_commit(cut);
        progress.verify_up_to(Lsn(1000));
        assert_eq!(progress.confirm(), Some(Lsn(100)), "a part is never confirmed");

        let mut after_crash = Progress::resume(cut);
        assert_eq!(feed(&mut after_crash, 200, 210, 5), [3, 4]);
        assert_eq!(after_crash.decoded(), at(210));
    }

    #[test]
    fn a_crash_at_any_row_of_a_cut_transaction_publishes_each_row_once() {
        for cut in 0..=5 {
            let mut progress = Progress::resume(at(100));
            progress.begin(Lsn(200)).unwrap();
            let mut published = Vec::new();
            for index in 0..cut {
                assert_eq!(progress.fate_of_next_row().unwrap(), RowFate::Publish { index });
                progress.row_decoded().unwrap();
                published.push(index);
            }
            let mut resumed = Progress::resume(progress.decoded());
            published.extend(feed(&mut resumed, 200, 210, 5));
            assert_eq!(published, [0, 1, 2, 3, 4], "cut after {cut}");
        }
    }

    #[test]
    fn rows_that_are_skipped_again_do_not_shorten_the_part() {
        let cut = Published {
            lsn: Lsn(100),
            partial: Some(Partial {
                commit_lsn: Lsn(200),
                rows: 3,
            }),
        };
        let mut progress = Progress::resume(cut);
        progress.begin(Lsn(200)).unwrap();
        progress.row_decoded().unwrap();
        assert_eq!(progress.decoded(), cut);
    }

    #[test]
    fn a_keepalive_inside_a_transaction_says_nothing() {
        let mut progress = Progress::resume(at(100));
        progress.begin(Lsn(200)).unwrap();
        progress.note_keepalive(Lsn(500));
        assert_eq!(progress.decoded(), at(100));
        progress.commit(Lsn(200), Lsn(210)).unwrap();
        progress.note_keepalive(Lsn(500));
        assert_eq!(progress.decoded(), at(500));
    }

    #[test]
    fn only_what_is_published_is_confirmed_and_only_once() {
        let mut progress = Progress::resume(at(100));
        progress.verify_up_to(Lsn(1000));
        assert_eq!(progress.confirm(), Some(Lsn(100)), "the checkpoint is published");
        feed(&mut progress, 200, 210, 1);
        assert_eq!(progress.confirm(), None);
        progress.note_kafka_commit(at(210));
        assert_eq!(progress.confirm(), Some(Lsn(210)));
        assert_eq!(progress.confirm(), None);
    }

    #[test]
    fn nothing_is_confirmed_beyond_what_was_verified() {
        let mut progress = Progress::resume(at(100));
        assert_eq!(progress.confirm(), None, "nothing is verified yet");
        feed(&mut progress, 200, 210, 1);
        progress.note_kafka_commit(at(210));
        progress.verify_up_to(Lsn(150));
        assert_eq!(progress.confirm(), Some(Lsn(150)));
        progress.verify_up_to(Lsn(140));
        assert_eq!(progress.confirm(), None, "a verification is never taken back");
        progress.verify_up_to(Lsn(300));
        assert_eq!(
            progress.confirm(),
            Some(Lsn(210)),
            "and nothing beyond what is published"
        );
    }

    #[test]
    fn a_stream_that_contradicts_itself_is_refused() {
        let mut progress = Progress::resume(at(100));
        assert_eq!(progress.fate_of_next_row(), Err(ProtocolError::OutsideTransaction));
        progress.begin(Lsn(200)).unwrap();
        assert_eq!(progress.begin(Lsn(300)), Err(ProtocolError::NestedBegin));
        assert!(matches!(
            progress.commit(Lsn(201), Lsn(210)),
            Err(ProtocolError::CommitMismatch { .. })
        ));
    }
}
