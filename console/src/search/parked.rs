//! The rows that relays have put aside, as the parking topic has them. docs/poison.md describes the records.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::reader::{Read, Reader, Visit};

/// The relay's default.
pub const PARKING_TOPIC: &str = "outbox-relay-parked";
/// A page waits for so long.
const TIME_LIMIT: Duration = Duration::from_millis(700);
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
    let mut entries: BTreeMap<Vec<u8>, Option<ParkedRow>> = BTreeMap::new();
    let mut is_full = false;
    let read = reader.read(PARKING_TOPIC, &windows, Instant::now() + TIME_LIMIT, &mut |seen| {
        // A later record of the same key replaces the entry, and one without a value removes it.
        let key = seen.key.unwrap_or_default();
        is_full = entries.len() >= ROWS_MAX && !entries.contains_key(key);
        if is_full {
            return Visit::Stop;
        }
        entries.insert(key.to_vec(), seen.value.and_then(|value| entry(key, value)));
        Visit::GoOn
    })?;
    Ok(ParkedRows {
        rows: entries.into_values().flatten().collect(),
        is_cut_short: is_full || read != Read::All,
    })
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
    use super::entry;

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
