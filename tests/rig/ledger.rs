//! Compares what was published with what was written, row by row.

use std::collections::HashMap;
use std::fmt;

use crate::topic::Record;

/// A row of the outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub id: String,
    pub key: String,
    /// Counts the rows of a key. It ascends in the order of their commits.
    pub n: i64,
    pub payload: String,
}

/// What the comparison found. If the relay kept its promise, all numbers except `rows` and `records` are 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    pub rows: usize,
    pub records: usize,
    /// Rows without a record.
    pub lost: Vec<String>,
    /// Rows with more than one record.
    pub duplicates: Vec<String>,
    /// Records without a row.
    pub invented: Vec<String>,
    /// Records that come after a later record of their key, or, by the position in their header, after a later record of their partition.
    pub reordered: Vec<String>,
    /// Records whose key or value differs from their row, and keys that are in several partitions.
    pub altered: Vec<String>,
}

impl Ledger {
    /// Compares the rows with the records of their topic. The records of each partition must be in their order.
    #[must_use]
    pub fn compare(rows: &[Row], records: &[Record]) -> Self {
        let mut ledger = Self {
            rows: rows.len(),
            records: records.len(),
            ..Self::default()
        };
        let by_id: HashMap<&str, &Row> = rows.iter().map(|row| (row.id.as_str(), row)).collect();
        let mut seen: HashMap<&str, u32> = HashMap::new();
        let mut last_of_key: HashMap<&str, (i64, i32)> = HashMap::new();
        let mut last_of_partition: HashMap<i32, (u64, u64)> = HashMap::new();
        for record in records {
            let id = record.header("id").unwrap_or("(none)");
            let times = seen.entry(id).or_default();
            *times += 1;
            if *times == 2 {
                ledger.duplicates.push(id.to_owned());
            }
            // A row that was parked keeps its old position.
            let position = record.header("position").filter(|_| !record.is_of_a_retry());
            if let Some(place) = position.and_then(parse_position) {
                let last = last_of_partition.insert(record.partition, place);
                if last.is_some_and(|last| last >= place) {
                    ledger.reordered.push(id.to_owned());
                }
            }
            let Some(row) = by_id.get(id) else {
                ledger.invented.push(id.to_owned());
                continue;
            };
            let last = last_of_key.insert(&row.key, (row.n, record.partition));
            if last.is_some_and(|(n, _)| n >= row.n) {
                ledger.reordered.push(id.to_owned());
            }
            let is_same =
                record.key_text() == Some(&row.key) && record.value.as_deref() == Some(row.payload.as_bytes());
            if !is_same || last.is_some_and(|(_, partition)| partition != record.partition) {
                ledger.altered.push(id.to_owned());
            }
        }
        ledger.lost = rows
            .iter()
            .filter(|row| !seen.contains_key(row.id.as_str()))
            .map(|row| row.id.clone())
            .collect();
        ledger
    }

    /// Whether every row is there once, in order, and nothing else is there.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.is_at_least_once() && self.duplicates.is_empty() && self.reordered.is_empty()
    }

    /// Whether every row is there unaltered, and nothing else is there.
    #[must_use]
    pub fn is_at_least_once(&self) -> bool {
        self.lost.is_empty() && self.invented.is_empty() && self.altered.is_empty()
    }
}

/// Commit LSN and index of a `position` header such as `16/B374D848:0:1795344833217210`. `None`: the text is not a position.
#[must_use]
pub fn parse_position(text: &str) -> Option<(u64, u64)> {
    let mut parts = text.split(':');
    let (high, low) = parts.next()?.split_once('/')?;
    let half = |text: &str| u64::from_str_radix(text, 16).ok();
    Some(((half(high)? << 32) | half(low)?, parts.next()?.parse().ok()?))
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows, {} records", self.rows, self.records)?;
        let found = [
            ("lost", &self.lost),
            ("duplicates", &self.duplicates),
            ("invented", &self.invented),
            ("reordered", &self.reordered),
            ("altered", &self.altered),
        ];
        for (name, ids) in found {
            write!(f, ", {} {name}", ids.len())?;
            if let Some(first) = ids.first() {
                write!(f, " ({first} …)")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Ledger, Row};
    use crate::topic::Record;

    fn row(n: i64) -> Row {
        Row {
            id: format!("id-{n}"),
            key: "k".to_owned(),
            n,
            payload: format!("{{\"n\": {n}}}"),
        }
    }

    fn record(n: i64, offset: i64) -> Record {
        let row = row(n);
        Record {
            partition: 0,
            offset,
            timestamp_ms: 0,
            key: Some(row.key.into_bytes()),
            value: Some(row.payload.into_bytes()),
            headers: vec![
                ("id".to_owned(), Some(row.id.into_bytes())),
                ("position".to_owned(), Some(format!("0/{n:X}:0:0").into_bytes())),
            ],
        }
    }

    #[test]
    fn what_is_lost_doubled_reordered_or_invented_is_found() {
        let rows = [row(1), row(2), row(3)];
        assert!(Ledger::compare(&rows, &[record(1, 0), record(2, 1), record(3, 2)]).is_exact());
        let lost = Ledger::compare(&rows, &[record(1, 0), record(3, 1)]);
        assert_eq!(lost.lost, ["id-2"]);
        let doubled = Ledger::compare(&rows, &[record(1, 0), record(2, 1), record(2, 2), record(3, 3)]);
        assert_eq!(doubled.duplicates, ["id-2"]);
        let reordered = Ledger::compare(&rows, &[record(2, 0), record(1, 1), record(3, 2)]);
        assert!(!reordered.reordered.is_empty() && !reordered.is_exact());
        let invented = Ledger::compare(&rows[..2], &[record(1, 0), record(2, 1), record(3, 2)]);
        assert_eq!(invented.invented, ["id-3"]);
        let mut altered = record(1, 0);
        altered.value = Some(b"{}".to_vec());
        assert_eq!(Ledger::compare(&rows[..1], &[altered]).altered, ["id-1"]);
    }
}
