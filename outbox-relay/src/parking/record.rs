//! The format of a parked row: the record's key and value in the parking topic.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::keys::Lane;
use crate::continuity::format;
use crate::process::row_name::RowPosition;
use outbox_router::Column;
use pg_replication::pgoutput::{DecodeError, Tuple, Value};

/// Version of the format; an entry of a later one is refused instead of half understood.
pub const FORMAT: u32 = 1;

/// Longest text of what is only for a person to read, in bytes.
const TEXT_MAX: usize = 2_000;

/// A parked row, as JSON in the record's value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    pub format: u32,
    /// As in the header of its record, so that positions of one relay ascend also over a restore and a move.
    pub position: RowPosition,
    /// When its transaction committed, by the database's clock: microseconds since 1970.
    pub committed_us: i64,
    /// When it was parked, by the relay's clock: microseconds since 1970.
    pub parked_us: i64,
    pub parked_because: Because,
    /// Why it cannot be published; renewed by a retry in vain.
    pub reason: String,
    /// The event's id, where it can be read.
    pub id: Option<String>,
    /// Where it would have gone, where that can be told.
    pub topic: Option<String>,
    /// The record's key as text, for a person: cut where it is long.
    pub key: Option<String>,
    /// Hash of topic and key, see [`Lane`]; none where one of the two is missing: such a row has no row behind it.
    pub lane: Option<Lane>,
    pub row: ParkedRow,
}

/// Why a row was parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Because {
    /// It can never become a record.
    Poison,
    /// An earlier row of its key is parked.
    Behind,
    /// An operator ordered it.
    Operator,
}

impl Because {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Poison => "poison",
            Self::Behind => "behind",
            Self::Operator => "operator",
        }
    }
}

/// The row itself: enough to route it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ParkedRow {
    /// The columns of a row of the outbox table, in their order.
    Table(Vec<ParkedColumn>),
    /// The content of a message.
    Message(ParkedText),
}

/// A column and its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParkedColumn {
    pub name: String,
    /// Oid of its type.
    #[serde(rename = "type")]
    pub type_oid: u32,
    #[serde(flatten)]
    pub value: ParkedText,
}

/// A value in Postgres' text format. All parts empty is null.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParkedText {
    pub text: Option<String>,
    /// What is no UTF-8, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
    /// Bytes of a value that was too large to be stored here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub omitted_bytes: Option<usize>,
}

impl ParkedText {
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self {
                text: Some(text.to_owned()),
                ..Self::default()
            },
            Err(_) => Self {
                base64: Some(STANDARD.encode(bytes)),
                ..Self::default()
            },
        }
    }

    /// The value's bytes; `None` for null.
    ///
    /// # Errors
    /// It was not stored, or cannot be read.
    pub fn bytes(&self) -> Result<Option<Vec<u8>>, String> {
        match (&self.text, &self.base64, self.omitted_bytes) {
            (_, _, Some(bytes)) => Err(format!("{bytes} bytes were too large to be parked")),
            (Some(text), _, None) => Ok(Some(text.clone().into_bytes())),
            (None, Some(coded), None) => STANDARD.decode(coded).map(Some).map_err(|err| err.to_string()),
            (None, None, None) => Ok(None),
        }
    }

    fn stored_bytes(&self) -> usize {
        self.text.as_ref().or(self.base64.as_ref()).map_or(0, String::len)
    }

    fn omit(&mut self) {
        *self = Self {
            omitted_bytes: Some(self.stored_bytes()),
            ..Self::default()
        };
    }
}

impl ParkedRow {
    /// The row of a table with `columns`.
    ///
    /// # Errors
    /// The tuple is garbled.
    pub fn of_table(columns: &[Column], tuple: &Tuple<'_>) -> Result<Self, DecodeError> {
        let parked = columns.iter().zip(tuple.values()).map(|(column, value)| {
            Ok(ParkedColumn {
                name: column.name.clone(),
                type_oid: column.type_oid,
                value: match value? {
                    Value::Text(bytes) => ParkedText::of(bytes),
                    Value::Null | Value::Unchanged => ParkedText::default(),
                },
            })
        });
        Ok(Self::Table(parked.collect::<Result<_, _>>()?))
    }

    /// Names of the columns whose values were not stored.
    #[must_use]
    pub fn omitted(&self) -> Vec<&str> {
        match self {
            Self::Table(columns) => columns
                .iter()
                .filter(|column| column.value.omitted_bytes.is_some())
                .map(|column| column.name.as_str())
                .collect(),
            Self::Message(content) if content.omitted_bytes.is_some() => vec!["content"],
            Self::Message(_) => Vec::new(),
        }
    }

    /// Whether some of its values are in the outbox table alone. A message is in no table.
    #[must_use]
    pub fn needs_table(&self) -> bool {
        matches!(self, Self::Table(_)) && !self.omitted().is_empty()
    }

    fn omit_largest(&mut self) -> bool {
        let largest = match self {
            Self::Table(columns) => columns
                .iter_mut()
                .map(|column| &mut column.value)
                .max_by_key(|value| value.stored_bytes()),
            Self::Message(content) => Some(content),
        };
        let Some(largest) = largest.filter(|value| value.stored_bytes() > 0) else {
            return false;
        };
        largest.omit();
        true
    }
}

impl Entry {
    /// The record's key; entries of one relay sort by their position.
    #[must_use]
    pub fn record_key(relay: &str, position: &RowPosition) -> String {
        format!("{relay}/{}", position.sortable_text())
    }

    /// The record's value in at most `bytes_max` bytes: the largest values of the row are left out as far as it takes. `None` where even the
    /// row without any value is larger.
    pub fn fit(&mut self, bytes_max: usize) -> Option<String> {
        self.reason = cut(&self.reason, TEXT_MAX);
        self.topic = self.topic.take().map(|topic| cut(&topic, TEXT_MAX));
        self.key = self.key.take().map(|key| cut(&key, TEXT_MAX));
        self.id = self.id.take().map(|id| cut(&id, TEXT_MAX));
        loop {
            let value = serde_json::to_string(self).ok()?;
            if value.len() <= bytes_max {
                return Some(value);
            }
            if !self.row.omit_largest() {
                return None;
            }
        }
    }

    /// Reads a record's value.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_json(value: &[u8]) -> Result<Self, String> {
        format::read_json(value, FORMAT)
    }
}

/// The text, or its beginning where it is longer than `bytes_max`.
fn cut(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(bytes_max)])
}

impl Serialize for Lane {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:016x}", self.0))
    }
}

impl<'de> Deserialize<'de> for Lane {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        u64::from_str_radix(&text, 16)
            .map(Self)
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::{Because, Entry, FORMAT, ParkedRow};
    use crate::parking::keys::Lane;
    use crate::process::row_name::RowPosition;
    use outbox_router::Column;
    use pg_replication::Lsn;
    use pg_replication::pgoutput::Tuple;

    fn entry(values: &[Option<&[u8]>]) -> Entry {
        let columns: Vec<Column> = ["id", "payload", "note"]
            .map(|name| Column {
                name: name.to_owned(),
                type_oid: 25,
            })
            .to_vec();
        let bytes = Tuple::encode(values).unwrap();
        Entry {
            format: FORMAT,
            position: RowPosition {
                commit_lsn: Lsn(0x16_B374_D848),
                index: 7,
            },
            committed_us: 1,
            parked_us: 2,
            parked_because: Because::Poison,
            reason: "column `id` is null".to_owned(),
            id: None,
            topic: Some("user-events".to_owned()),
            key: Some("k".to_owned()),
            lane: Some(Lane::of("user-events", b"k")),
            row: ParkedRow::of_table(&columns, &Tuple::from_encoded(3, &bytes)).unwrap(),
        }
    }

    #[test]
    fn a_row_survives_its_entry_with_nulls_and_what_is_no_text() {
        let mut parked = entry(&[None, Some(b"\xFFx"), Some(b"")]);
        let text = parked.fit(10_000).unwrap();
        assert!(text.contains(r#""position":"16/B374D848:7""#), "{text}");
        assert!(text.contains(r#"{"name":"id","type":25,"text":null}"#), "{text}");
        let read = Entry::from_json(text.as_bytes()).unwrap();
        assert_eq!(read, parked);
        let ParkedRow::Table(columns) = read.row else {
            panic!("no table's row")
        };
        let values: Vec<_> = columns.iter().map(|column| column.value.bytes()).collect();
        assert_eq!(values, [Ok(None), Ok(Some(b"\xFFx".to_vec())), Ok(Some(Vec::new()))]);
    }

    #[test]
    fn the_largest_values_are_left_out_until_it_fits_and_it_says_so() {
        let large = "x".repeat(5_000);
        let mut parked = entry(&[Some(b"e1"), Some(large.as_bytes()), Some(b"small")]);
        let text = parked.fit(1_000).unwrap();
        assert_eq!(parked.row.omitted(), ["payload"]);
        let ParkedRow::Table(columns) = Entry::from_json(text.as_bytes()).unwrap().row else {
            panic!("no table's row")
        };
        assert_eq!(columns[0].value.bytes(), Ok(Some(b"e1".to_vec())));
        assert!(columns[1].value.bytes().unwrap_err().contains("5000 bytes"));
        assert_eq!(parked.fit(10), None);
    }

    #[test]
    fn entries_of_a_later_format_and_garbage_are_refused() {
        assert!(Entry::from_json(b"{").is_err());
        let later = r#"{"format":2}"#;
        assert!(Entry::from_json(later.as_bytes()).unwrap_err().contains("format 2"));
    }

    #[test]
    fn a_long_text_is_cut_between_two_characters() {
        assert_eq!(super::cut("äöü", 3), "ä…");
        assert_eq!(super::cut("äöü", 6), "äöü");
    }
}
