//! The rows that relays have put aside, as the parking topic has them. docs/poison.md describes the records.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::reader::{Read, Reader, Visit};

/// The relay's default.
pub const PARKING_TOPIC: &str = "outbox-relay-parked";
/// A page waits for so long.
const TIME_LIMIT: Duration = Duration::from_millis(450);
/// So many rows are kept at most. A relay has room for more.
const ROWS_MAX: usize = 5_000;

/// A row that was put aside. The row itself is left out: it may have personal data.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParkedRow {
    /// `LSN:INDEX`, as `outbox-relay parked` takes it.
    pub position: String,
    /// Microseconds since 1970.
    pub committed_us: i64,
    pub parked_us: i64,
    /// `poison`, `behind` or `operator`.
    pub parked_because: String,
    pub reason: String,
    pub id: Option<String>,
    pub topic: Option<String>,
    pub key: Option<String>,
    /// The database and the slot of its relay, as the record's key names them.
    #[serde(skip)]
    pub relay: String,
}

/// What is parked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParkedRows {
    /// In the order of relay and position.
    pub rows: Vec<ParkedRow>,
    /// So many entries are there that the console does not understand.
    pub not_understood: usize,
    /// There is more than could be read in time.
    pub is_cut_short: bool,
}

/// The rows of the parking topic. None where there is no such topic: then no relay has parked anything.
///
/// # Errors
/// Kafka does not answer.
pub fn read(reader: &Reader) -> anyhow::Result<ParkedRows> {
    let Some(windows) = reader.all_bounds(PARKING_TOPIC)? else {
        return Ok(ParkedRows::default());
    };
    let mut entries = Entries::default();
    let mut is_full = false;
    let read = reader.read(PARKING_TOPIC, &windows, Instant::now() + TIME_LIMIT, &mut |seen| {
        is_full = !entries.take(seen.key.unwrap_or_default(), seen.value);
        if is_full { Visit::Stop } else { Visit::GoOn }
    })?;
    let rows: Vec<ParkedRow> = entries.0.values().flatten().cloned().collect();
    Ok(ParkedRows {
        not_understood: entries.0.len() - rows.len(),
        rows,
        is_cut_short: is_full || read != Read::All,
    })
}

/// What is parked, by the records' keys. `None`: the entry is none that the console understands.
#[derive(Debug, Default)]
struct Entries(BTreeMap<Vec<u8>, Option<ParkedRow>>);

impl Entries {
    /// Takes a record. A later one of the same key replaces the entry, and one without a value removes it. Returns whether there was room.
    fn take(&mut self, key: &[u8], value: Option<&[u8]>) -> bool {
        let Some(value) = value else {
            self.0.remove(key);
            return true;
        };
        if self.0.len() >= ROWS_MAX && !self.0.contains_key(key) {
            return false;
        }
        self.0.insert(key.to_vec(), entry(key, value));
        true
    }
}

fn entry(key: &[u8], value: &[u8]) -> Option<ParkedRow> {
    let mut row: ParkedRow = serde_json::from_slice(value).ok()?;
    // DATABASE/SLOT/POSITION; the position itself has a slash.
    let key = String::from_utf8_lossy(key);
    let relay = key.strip_suffix(&row.position).unwrap_or(&key);
    row.relay = relay.trim_end_matches('/').to_owned();
    Some(row)
}

#[cfg(test)]
mod tests {
    use super::{Entries, ROWS_MAX, entry};

    #[test]
    fn an_entry_that_was_removed_takes_no_room() {
        let mut entries = Entries::default();
        for number in 0..2 * ROWS_MAX {
            let key = number.to_string();
            assert!(entries.take(key.as_bytes(), Some(b"{}")), "{number}");
            assert!(entries.take(key.as_bytes(), None));
        }
        assert!(entries.0.is_empty());
        for number in 0..ROWS_MAX {
            assert!(entries.take(number.to_string().as_bytes(), Some(b"{}")));
        }
        assert!(!entries.take(b"one more", Some(b"{}")));
        assert!(entries.take(b"7", Some(b"{}")), "an entry is replaced");
    }

    #[test]
    fn an_entry_is_read_without_its_row() {
        let value = br#"{"format":1,"position":"16/B374D848:7","committedUs":1,"parkedUs":2,"parkedBecause":"poison","reason":"too large","id":"8f1a","topic":"t","key":null,"lane":null,"row":{"table":[]}}"#;
        let row = entry(b"users_db/users_relay/16/B374D848:7", value).unwrap();
        assert_eq!(
            (row.relay.as_str(), row.position.as_str()),
            ("users_db/users_relay", "16/B374D848:7")
        );
        assert_eq!((row.id.as_deref(), row.key), (Some("8f1a"), None));
        assert!(entry(b"x", b"{}").is_none());
    }
}
