//! The values of a row, and how they are written in a record.

use std::borrow::Cow;

use pg_replication::pgoutput::{DecodeError, Tuple, Value};

const BOOL: u32 = 16;
pub(crate) const BYTEA: u32 = 17;

/// Memory for the values of one row. It is used again for each row, so that no row needs an allocation of its own.
#[derive(Debug, Default)]
pub struct RowScratch(Vec<Value<'static>>);

impl RowScratch {
    /// Reads the values of `tuple` into this memory. [`RowScratch::take_back`] must get the memory back.
    pub(crate) fn read_values<'a>(&mut self, tuple: &Tuple<'a>) -> Result<Vec<Value<'a>>, DecodeError> {
        let mut values: Vec<Value<'a>> = std::mem::take(&mut self.0);
        values.clear();
        for value in tuple.values() {
            values.push(value?);
        }
        Ok(values)
    }

    /// Takes the memory of the values back, for the next row.
    pub(crate) fn take_back(&mut self, mut values: Vec<Value<'_>>) {
        values.clear();
        // The vector is empty, so it holds no value with the row's lifetime. `collect` uses its memory again and does not allocate.
        self.0 = values.into_iter().map(|_| Value::Null).collect();
    }
}

/// The value as Kafka Connect's text converters write it: a text as it is, a boolean as a word.
pub(crate) fn connect_text<'a>(value: &Value<'a>, type_oid: u32) -> Option<Cow<'a, [u8]>> {
    match value {
        Value::Text(b"t") if type_oid == BOOL => Some(Cow::Borrowed(b"true")),
        Value::Text(b"f") if type_oid == BOOL => Some(Cow::Borrowed(b"false")),
        Value::Text(bytes) => Some(Cow::Borrowed(bytes)),
        Value::Null | Value::Unchanged => None,
    }
}

/// Decodes Postgres' hex format of a bytea, such as `\x00ff`. `None` if the text is not in this format.
pub(crate) fn decode_bytea(text: &[u8]) -> Option<Vec<u8>> {
    let digits = text.strip_prefix(b"\\x")?;
    let (pairs, rest) = digits.as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    pairs
        .iter()
        .map(|[high, low]| Some((digit(*high)? << 4) | digit(*low)?))
        .collect()
}
