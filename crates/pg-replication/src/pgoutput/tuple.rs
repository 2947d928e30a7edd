//! A row of a table, as a message carries it.

use super::DecodeError;
use super::reader::Reader;

/// A row's values, in the order of the relation's columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple<'a> {
    column_count: u16,
    bytes: &'a [u8],
}

/// One value of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    Null,
    /// In Postgres' text format.
    Text(&'a [u8]),
    /// The value did not change, so the server did not send it. An insert has no such value.
    Unchanged,
}

/// The length of a value does not fit into 32 bits, so no message can carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a value is longer than 4 GiB")]
pub struct ValueTooLong;

impl<'a> Tuple<'a> {
    /// Writes a row in the form in which the stream carries it. This is for rows that do not come from a stream, and for tests.
    ///
    /// # Errors
    /// The length of a value does not fit into 32 bits. No value of Postgres is that long: it has at most 1 GB.
    pub fn encode(values: &[Option<&[u8]>]) -> Result<Vec<u8>, ValueTooLong> {
        let mut bytes = Vec::new();
        for value in values {
            match value {
                None => bytes.push(b'n'),
                Some(text) => {
                    let length = u32::try_from(text.len()).map_err(|_| ValueTooLong)?;
                    bytes.push(b't');
                    bytes.extend_from_slice(&length.to_be_bytes());
                    bytes.extend_from_slice(text);
                }
            }
        }
        Ok(bytes)
    }

    /// The row whose values [`Tuple::encode`] wrote.
    #[must_use]
    pub fn from_encoded(column_count: u16, bytes: &'a [u8]) -> Self {
        Self { column_count, bytes }
    }

    /// The row's values, in order.
    pub fn values(&self) -> impl Iterator<Item = Result<Value<'a>, DecodeError>> + use<'a> {
        let mut reader = Reader::new(self.bytes);
        (0..self.column_count).map(move |_| match reader.u8()? {
            b'n' => Ok(Value::Null),
            b'u' => Ok(Value::Unchanged),
            b't' => {
                let length = reader.u32()? as usize;
                reader.bytes(length).map(Value::Text)
            }
            _ => Err(DecodeError("unknown kind of value")),
        })
    }
}
