//! A record as the console read it. Keys, values and headers are bytes: whoever wrote the record may have put anything there.

use std::borrow::Cow;

use events::{POSITION_HEADER, Position};

/// The header in which the relay writes the event's id.
pub const ID_HEADER: &str = "id";
/// The header in which the relay writes the event's type.
pub const TYPE_HEADER: &str = "eventType";

/// A record that is still in the Kafka client's memory.
#[derive(Clone, Debug)]
pub struct Seen<'r> {
    pub partition: i32,
    pub offset: i64,
    /// Milliseconds since 1970, where the record has a time.
    pub timestamp_ms: Option<i64>,
    pub key: Option<&'r [u8]>,
    /// `None` is a tombstone.
    pub value: Option<&'r [u8]>,
    pub headers: Vec<(&'r [u8], Option<&'r [u8]>)>,
}

/// A record that was found, with everything it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    /// Milliseconds since 1970, where the record has a time. The relay sets it to the commit's time.
    pub timestamp_ms: Option<i64>,
    pub key: Option<Vec<u8>>,
    /// `None` is a tombstone.
    pub value: Option<Vec<u8>>,
    pub headers: Vec<Header>,
}

/// A header of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub name: Vec<u8>,
    pub value: Option<Vec<u8>>,
}

impl<'r> Seen<'r> {
    /// What the client has in its memory.
    #[must_use]
    pub fn of(record: &'r kafka_client::Record<'_>) -> Self {
        Self {
            partition: record.partition(),
            offset: record.offset(),
            timestamp_ms: record.timestamp_ms(),
            key: record.key(),
            value: record.value(),
            headers: record.headers(),
        }
    }

    /// The first header of this name, where it is there and not null.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&'r [u8]> {
        let mut headers = self.headers.iter();
        headers.find(|(known, _)| *known == name.as_bytes())?.1
    }

    /// Where in the source's write-ahead log the record comes from, if it says so.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        position_in(self.header(POSITION_HEADER)?)
    }

    /// How many bytes its key, value and headers have.
    #[must_use]
    pub fn size(&self) -> usize {
        let headers = self.headers.iter();
        len(self.key) + len(self.value) + headers.map(|(name, value)| name.len() + len(*value)).sum::<usize>()
    }

    /// The record with memory of its own.
    #[must_use]
    pub fn to_record(&self, topic: &str) -> Record {
        let headers = self.headers.iter().map(|(name, value)| Header {
            name: name.to_vec(),
            value: value.map(<[u8]>::to_vec),
        });
        Record {
            topic: topic.to_owned(),
            partition: self.partition,
            offset: self.offset,
            timestamp_ms: self.timestamp_ms,
            key: self.key.map(<[u8]>::to_vec),
            value: self.value.map(<[u8]>::to_vec),
            headers: headers.collect(),
        }
    }
}

impl Record {
    /// How many bytes its key, value and headers have.
    #[must_use]
    pub fn size(&self) -> usize {
        let headers = self.headers.iter();
        let of_headers: usize = headers
            .map(|header| header.name.len() + len(header.value.as_deref()))
            .sum();
        len(self.key.as_deref()) + len(self.value.as_deref()) + of_headers
    }

    /// The first header of this name, where it is there and not null.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        let mut headers = self.headers.iter();
        headers.find(|header| header.name == name.as_bytes())?.value.as_deref()
    }

    /// Where in the source's write-ahead log the record comes from, if it says so.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        position_in(self.header(POSITION_HEADER)?)
    }

    /// The event's id, where the record has one that is text.
    #[must_use]
    pub fn event_id(&self) -> Option<&str> {
        std::str::from_utf8(self.header(ID_HEADER)?).ok()
    }
}

fn len(bytes: Option<&[u8]>) -> usize {
    bytes.map_or(0, <[u8]>::len)
}

fn position_in(header: &[u8]) -> Option<Position> {
    std::str::from_utf8(header).ok()?.parse().ok()
}

/// Bytes as a person reads them. Bytes that are no text become `�`. Characters that a reader cannot see, or that turn the direction of the text around them, are
/// written as their code, such as `⟨U+202E⟩`: text that looks like something else could mislead.
#[must_use]
pub fn for_people(bytes: &[u8]) -> String {
    let text: Cow<'_, str> = String::from_utf8_lossy(bytes);
    let mut shown = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '\n' | '\t' => shown.push(char),
            _ if is_invisible(char) => shown.push_str(&format!("⟨U+{:04X}⟩", u32::from(char))),
            _ => shown.push(char),
        }
    }
    shown
}

/// Control characters, marks of direction, and characters without width.
fn is_invisible(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{061C}' | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2060}'..='\u{206F}' | '\u{FEFF}')
}

#[cfg(test)]
mod tests {
    use super::for_people;

    #[test]
    fn what_cannot_be_seen_is_written_as_its_code() {
        assert_eq!(
            for_people("a\u{202E}b\u{0}c\r".as_bytes()),
            "a⟨U+202E⟩b⟨U+0000⟩c⟨U+000D⟩"
        );
        assert_eq!(for_people(b"one\ntwo\t\xff"), "one\ntwo\t\u{fffd}");
        assert_eq!(for_people("홍길동 <b>".as_bytes()), "홍길동 <b>");
    }
}
