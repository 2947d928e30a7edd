//! A topic that rows go to, and how much was sent to it.

use std::cell::Cell;

use super::topic_rules::TopicRules;

/// A topic that rows go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    pub topic: String,
    pub partitions: i32,
    /// The largest batch that may be made for it, in bytes before compression; without a limit where the cluster does not tell, or where
    /// compression leaves it to the broker.
    pub batch_bytes_max: u64,
    pub rules: TopicRules,
    /// What was sent to it since the last [`Destination::take_sent`]. A cell, so that counting a row needs no lookup of its own.
    sent: Cell<Amount>,
}

/// Records and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    pub records: u64,
    /// Bytes of keys and values, before compression.
    pub bytes: u64,
}

impl Destination {
    #[must_use]
    pub fn new(topic: String, partitions: i32, batch_bytes_max: u64, rules: TopicRules) -> Self {
        Self {
            topic,
            partitions,
            batch_bytes_max,
            rules,
            sent: Cell::default(),
        }
    }

    /// Counts a record that was sent, whose key and value have so many bytes.
    pub fn count_sent(&self, bytes: usize) {
        let Amount { records, bytes: before } = self.sent.get();
        self.sent.set(Amount {
            records: records + 1,
            bytes: before + bytes as u64,
        });
    }

    /// What was sent to it since this was called last.
    pub(super) fn take_sent(&self) -> Amount {
        self.sent.take()
    }
}
