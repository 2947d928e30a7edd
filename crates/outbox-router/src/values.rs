//! The values of a row, and what they are in a record.

use std::borrow::Cow;

use pg_replication::pgoutput::{DecodeError, Tuple, Value};

const BOOL: u32 = 16;
pub(crate) const BYTEA: u32 = 17;

/// The values of one row; kept from row to row, so that none of them allocates.
#[derive(Debug, Default)]
pub struct RowScratch(Vec<Value<'static>>);

impl RowScratch {
    /// The scratch for the values of `tuple`'s lifetime.
    pub(crate) fn fill<'a>(&mut self, tuple: &Tuple<'a>) -> Result<Vec<Value<'a>>, DecodeError> {
        let mut values: Vec<Value<'a>> = std::mem::take(&mut self.0);
        values.clear();
        for value in tuple.values() {
            values.push(value?);
        }
        Ok(values)
    }

    /// Takes the memory of the values back, for the next row.
    pub(crate) fn keep(&mut self, mut values: Vec<Value<'_>>) {
        values.clear();
        // Empty, so no value's lifetime is left in it; the compiler collects this in place, without an allocation.
        self.0 = values.into_iter().map(|_| Value::Null).collect();
    }
}

/// As Connect's text converters write it: text as it is, booleans as words.
pub(crate) fn plain_value<'a>(value: &Value<'a>, type_oid: u32) -> Option<Cow<'a, [u8]>> {
    match value {
        Value::Text(b"t") if type_oid == BOOL => Some(Cow::Borrowed(b"true")),
        Value::Text(b"f") if type_oid == BOOL => Some(Cow::Borrowed(b"false")),
        Value::Text(bytes) => Some(Cow::Borrowed(bytes)),
        Value::Null | Value::Unchanged => None,
    }
}

/// Postgres' hex format of bytea: `\x00ff`.
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
