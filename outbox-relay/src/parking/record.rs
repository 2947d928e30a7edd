//! The format of a parked row: the record's key and value in the parking topic.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::keys::TopicKeyHash;
use crate::continuity::format;
use crate::process::row_name::RowPosition;
use outbox_router::Column;
use pg_replication::pgoutput::{DecodeError, Tuple, Value};

/// Version of the format. An entry of a later version is refused, since this program would understand only half of it.
pub const FORMAT: u32 = 1;

/// Longest text that is only for a person, in bytes.
const TEXT_BYTES_MAX: usize = 2_000;

/// A parked row, as JSON in the record's value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    pub format: u32,
    /// The position that the header of its record would have. So the positions of one relay ascend even after the database was restored or moved.
    pub position: RowPosition,
    /// When its transaction committed, by the database's clock: microseconds since 1970.
    pub committed_us: i64,
    /// When it was parked, by the relay's clock: microseconds since 1970.
    pub parked_us: i64,
    pub parked_because: Because,
    /// Why it cannot be published. A retry that fails writes the new reason here.
    pub reason: String,
    /// The event's id, if it can be read.
    pub id: Option<String>,
    /// The topic that it would have gone to, if that is known.
    pub topic: Option<String>,
    /// The record's key as text, for a person. A long key is cut.
    pub key: Option<String>,
    /// Hash of topic and key. `None` if one of the two is missing: then no other row has to wait behind this one.
    #[serde(rename = "lane")]
    pub topic_key: Option<TopicKeyHash>,
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

/// A value in Postgres' text format. It is null if all members are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParkedText {
    pub text: Option<String>,
    /// A value that is not UTF-8, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
    /// How many bytes a value had that was too large to be stored here.
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

    /// The value's bytes. `None`: it is null.
    ///
    /// # Errors
    /// The value was not stored, or it cannot be read.
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
    /// Makes it from a row of a table with `columns`.
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

    /// Whether some of its values are in the outbox table alone. A message is not in a table.
    #[must_use]
    pub fn needs_table(&self) -> bool {
        matches!(self, Self::Table(_)) && !self.omitted().is_empty()
    }

    /// Leaves out the largest value. Returns false if no value is left.
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
    /// The record's key. The keys of one relay sort by position.
    #[must_use]
    pub fn record_key(relay: &str, position: &RowPosition) -> String {
        format!("{relay}/{}", position.sortable_text())
    }

    /// The record's value in at most `bytes_max` bytes. The largest values of the row are left out until it fits. `None`: the row does not fit even without
    /// its values.
    pub fn fit(&mut self, bytes_max: usize) -> Option<String> {
        self.reason = cut(&self.reason, TEXT_BYTES_MAX);
        self.topic = self.topic.take().map(|topic| cut(&topic, TEXT_BYTES_MAX));
        self.key = self.key.take().map(|key| cut(&key, TEXT_BYTES_MAX));
        self.id = self.id.take().map(|id| cut(&id, TEXT_BYTES_MAX));
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

/// The text. If it is longer than `bytes_max`, only its beginning.
fn cut(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(bytes_max)])
}

impl Serialize for TopicKeyHash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:016x}", self.0))
    }
}

impl<'de> Deserialize<'de> for TopicKeyHash {
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
    use crate::parking::keys::TopicKeyHash;
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
            topic_key: Some(TopicKeyHash::of("user-events", b"k")),
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
