//! Makes an event, or a dead letter, of a record of Kafka.

use bytes::Bytes;
use events::{POSITION_HEADER, Position};
use kafka_client::RecordHeader;
use rdkafka::message::{BorrowedMessage, Message};
use service::clock;

use crate::contract::Contract;
use crate::contract::event::{Event, Unappliable};
use crate::contract::letter::Letter;

/// Longest key by which events wait for each other, in bytes. An id has 20 characters at most, and Postgres cannot index a key of some thousand
/// bytes.
const KEY_BYTES_MAX: usize = 1_024;
/// The header in which a letter keeps a key that is longer.
const LONG_KEY_HEADER: &str = "(key)";

/// The key by which later events wait for this record. `None`: it has no key, or one that is too long.
pub(crate) fn waiting_key(key: Option<&[u8]>) -> Option<&[u8]> {
    key.filter(|key| key.len() <= KEY_BYTES_MAX)
}

/// The record's event. `None`: the record has no value. Kafka's compaction leaves such a record behind, and it tells nothing.
///
/// # Errors
/// The event cannot be applied.
pub(crate) fn event(contract: &Contract, record: &BorrowedMessage<'_>) -> Result<Option<Event>, Unappliable> {
    let Some(value) = record.payload() else {
        return Ok(None);
    };
    Event::parse(contract, record.offset(), committed_us(record), record.key(), value).map(Some)
}

/// The record as it came, with the reason why it cannot be applied.
pub(crate) fn letter(record: &BorrowedMessage<'_>, reason: Option<String>) -> Letter {
    let owned = |(name, value): RecordHeader<'_>| {
        let name = String::from_utf8_lossy(name).into_owned();
        (name, value.map(Bytes::copy_from_slice))
    };
    let mut headers: Vec<_> = kafka_client::headers_of(record).map(owned).collect();
    if waiting_key(record.key()).is_none()
        && let Some(key) = record.key()
    {
        headers.push((LONG_KEY_HEADER.to_owned(), Some(Bytes::copy_from_slice(key))));
    }
    Letter {
        offset: record.offset(),
        key: waiting_key(record.key()).map(Bytes::copy_from_slice),
        // A record without a value is no event, so it never becomes a letter.
        value: Bytes::copy_from_slice(record.payload().unwrap_or_default()),
        headers,
        record_time_us: record.timestamp().to_millis().map(|ms| ms.saturating_mul(1_000)),
        reason,
    }
}

/// When the source committed the change: by the position header, else by the record's own time.
pub(crate) fn committed_us(record: &BorrowedMessage<'_>) -> i64 {
    let mut headers = kafka_client::headers_of(record);
    let position = headers.find(|(name, _)| *name == POSITION_HEADER.as_bytes());
    let by_header = position.and_then(|(_, value)| {
        let position: Position = std::str::from_utf8(value?).ok()?.parse().ok()?;
        Some(position.commit_timestamp_us)
    });
    by_header
        .or_else(|| record.timestamp().to_millis().map(|ms| ms * 1_000))
        .unwrap_or_else(clock::now_us)
}
