//! The records that the broker refused although its settings, as the relay knew them, allowed them. The settings may have changed while the relay ran, or
//! the relay may not read them.
//!
//! Such a refusal makes the whole Kafka transaction fail, and the good rows before the record with it. So we remember the record. The next start from the
//! checkpoint publishes the rows before it, and recognises its row before it is sent. Only this process remembers it. A new process tries every row again,
//! since somebody may have changed a setting.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// How many records we remember. The open transactions cannot have so many, so none is forgotten before the checkpoint has passed its row.
const REMEMBERED_MAX: usize = 20_000;

/// A record that the broker refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the broker refused the record with id `{id}` for topic `{topic}`: {reason}")]
pub struct RefusedRecord {
    /// Header `id`.
    pub id: String,
    pub topic: String,
    /// Bytes of key and value.
    pub size: usize,
    /// It was too large.
    pub is_too_large: bool,
    /// The broker's code, in words.
    pub reason: String,
}

impl RefusedRecord {
    /// The refusal that is the cause of `err`.
    #[must_use]
    pub fn cause_of(err: &anyhow::Error) -> Option<&Self> {
        err.chain().find_map(|cause| cause.downcast_ref())
    }
}

/// The refused records of this process. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct RefusedRecords(Arc<Mutex<VecDeque<RefusedRecord>>>);

impl RefusedRecords {
    /// Remembers records that were refused.
    pub(in crate::kafka) fn note(&self, records: impl IntoIterator<Item = RefusedRecord>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for record in records {
            if !known.contains(&record) {
                known.push_back(record);
            }
        }
        let surplus = known.len().saturating_sub(REMEMBERED_MAX);
        known.drain(..surplus);
    }

    /// All that are remembered.
    #[must_use]
    pub fn list(&self) -> Vec<RefusedRecord> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{REMEMBERED_MAX, RefusedRecord, RefusedRecords};

    fn refused(id: usize) -> RefusedRecord {
        RefusedRecord {
            id: id.to_string(),
            topic: "t".to_owned(),
            size: 0,
            is_too_large: false,
            reason: String::new(),
        }
    }

    #[test]
    fn a_record_is_remembered_once_and_the_oldest_are_forgotten_first() {
        let records = RefusedRecords::default();
        let shared = records.clone();
        shared.note([refused(0), refused(1), refused(0)]);
        assert_eq!(records.list(), [refused(0), refused(1)]);
        records.note((2..=REMEMBERED_MAX).map(refused));
        assert_eq!(shared.list().first(), Some(&refused(1)));
    }

    #[test]
    fn a_refusal_is_found_among_the_causes() {
        let err = anyhow::Error::new(refused(1)).context("kafka refused the checkpoint");
        assert_eq!(RefusedRecord::cause_of(&err), Some(&refused(1)));
        assert_eq!(RefusedRecord::cause_of(&anyhow::anyhow!("other")), None);
    }
}
