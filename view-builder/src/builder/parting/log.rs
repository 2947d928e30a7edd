//! How far the log of a partition was read, and whether a record belongs to the same log. Pure.

use std::time::Instant;

use kafka_client::ReadUpTo;

/// Why it is in doubt whether a log still has the records that were read.
#[derive(Clone, Copy, Debug)]
pub(super) enum Doubt {
    /// There is a leader with this epoch, which has not answered yet. `at`: when this was noticed.
    Since { epoch: i32, at: Instant },
    /// It has lost them and has other records there.
    Parted,
}

/// The log of a partition, as far as it was read.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) read: Option<ReadUpTo>,
    /// The epoch of a leader that is known to have what was read.
    pub(super) trusted: Option<i32>,
    pub(super) doubt: Option<Doubt>,
    pub(super) topic_id: Option<String>,
}

impl Log {
    /// Whether a record at this offset, of this epoch, is certain to belong to the log that was read.
    pub(super) fn continues(&self, offset: i64, epoch: i32) -> bool {
        match self.read {
            None => true,
            // A replay. No record before the last that was read can be of a later leader.
            Some(read) if offset < read.offset => epoch <= read.epoch,
            Some(read) => epoch == read.epoch || self.trusted == Some(epoch),
        }
    }

    pub(super) fn note(&mut self, offset: i64, epoch: i32) {
        if self.read.is_none_or(|read| offset >= read.offset) {
            self.read = Some(ReadUpTo {
                offset: offset + 1,
                epoch,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use kafka_client::ReadUpTo;

    use super::Log;

    fn log(read: Option<(i64, i32)>) -> Log {
        Log {
            read: read.map(|(offset, epoch)| ReadUpTo { offset, epoch }),
            trusted: None,
            doubt: None,
            topic_id: None,
        }
    }

    #[test]
    fn a_record_of_another_epoch_continues_the_log_only_once_its_leader_is_trusted() {
        assert!(log(None).continues(0, 3));
        let mut read = log(Some((20, 3)));
        let says = |log: &Log| [(20, 3), (25, 3), (20, 4), (20, 2)].map(|(offset, epoch)| log.continues(offset, epoch));
        assert_eq!(says(&read), [true, true, false, false]);
        read.trusted = Some(4);
        assert_eq!(says(&read), [true, true, true, false]);
        // What is noted of the trusted leader's is read as well, and the one after it is another again.
        read.note(20, 4);
        assert!(read.continues(21, 4) && !read.continues(21, 5));
    }

    #[test]
    fn a_replay_takes_nothing_from_what_was_read_and_finds_no_later_leader_before_it() {
        let mut read = log(Some((20, 3)));
        assert!(read.continues(5, 1) && read.continues(5, 3) && !read.continues(5, 4));
        read.note(5, 1);
        assert_eq!(read.read, Some(ReadUpTo { offset: 20, epoch: 3 }));
    }
}
