//! How messages name a row of the outbox, and what a person can do about the row.

use std::fmt;

use pg_replication::Lsn;

/// A row of the outbox, as messages name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowName {
    pub place: RowPlace,
    /// The event's id, if it can be read.
    pub id: Option<String>,
}

/// Where we have found the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowPlace {
    /// In the write-ahead log, where nothing can be changed any more.
    Stream(RowPosition),
    /// In the outbox table, by `init` or `recover`.
    Table,
}

/// A row's place in the write-ahead log. Its text is `16/B374D848:7`, the beginning of the record header `position`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowPosition {
    /// LSN of its transaction's commit record.
    pub commit_lsn: Lsn,
    /// Its index among the transaction's outbox rows, from 0.
    pub index: u64,
}

impl RowPosition {
    /// The position as readers see it, see [`crate::continuity::positions`].
    #[must_use]
    pub fn raised_by(self, bytes: u64) -> Self {
        Self {
            commit_lsn: Lsn(self.commit_lsn.0.saturating_add(bytes)),
            ..self
        }
    }
}

impl RowName {
    /// What can be done about the row itself.
    #[must_use]
    pub fn what_to_do(&self) -> String {
        match self.place {
            RowPlace::Stream(position) => format!(
                "the row is in the write-ahead log and cannot be changed any more: `outbox-relay park {position}` takes it out of the way, and so does `run --poison park` with each such row"
            ),
            RowPlace::Table => "delete or mend the row in the outbox table and run this again".to_owned(),
        }
    }
}

impl fmt::Display for RowName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            RowPlace::Stream(position) => write!(f, "at {position}")?,
            RowPlace::Table => write!(f, "of the table")?,
        }
        match &self.id {
            Some(id) => write!(f, " (id `{id}`)"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for RowPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.commit_lsn, self.index)
    }
}

#[cfg(test)]
mod tests {
    use super::{RowName, RowPlace, RowPosition};
    use pg_replication::Lsn;

    #[test]
    fn a_row_is_named_by_its_position_and_its_id() {
        let position = RowPosition {
            commit_lsn: Lsn(0x16_B374_D848),
            index: 7,
        };
        let mut row = RowName {
            place: RowPlace::Stream(position),
            id: Some("e1".to_owned()),
        };
        assert_eq!(row.to_string(), "at 16/B374D848:7 (id `e1`)");
        assert!(row.what_to_do().contains("`outbox-relay park 16/B374D848:7`"));
        row.id = None;
        assert_eq!(row.to_string(), "at 16/B374D848:7");
        row.place = RowPlace::Table;
        assert!(row.what_to_do().contains("delete or mend"));
    }
}
