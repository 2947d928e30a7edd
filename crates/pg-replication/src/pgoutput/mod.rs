//! Messages of the `pgoutput` plugin, protocol version 1, borrowed from the read buffer.
//!
//! See <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>.

mod reader;
mod tuple;

use self::reader::Reader;
pub use self::tuple::{Tuple, Value, ValueTooLong};
use crate::lsn::Lsn;

/// One message of the stream. A change of a row names its table by the oid. A [`Message::Relation`] has described this table before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A transaction begins. The server sends a transaction only after its commit, so all of it follows.
    Begin {
        /// LSN of the commit record.
        commit_lsn: Lsn,
        /// Microseconds since 2000-01-01 UTC.
        commit_timestamp: i64,
    },
    Commit {
        /// LSN of the commit record.
        commit_lsn: Lsn,
        /// LSN just behind the commit record. A reader that is done with the transaction confirms this LSN.
        end_lsn: Lsn,
    },
    Relation(RelationMessage<'a>),
    Insert {
        relation: u32,
        tuple: Tuple<'a>,
    },
    Update {
        relation: u32,
    },
    Delete {
        relation: u32,
    },
    Truncate(Relations<'a>),
    /// What `pg_logical_emit_message` wrote. The server sends it only if the stream was started with `messages 'true'`.
    Emitted(EmittedMessage<'a>),
    /// Origin and Type messages. They carry no outbox row.
    Other,
}

/// A logical decoding message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmittedMessage<'a> {
    /// Whether the message belongs to the transaction around it. Any other message is sent between transactions, even if the transaction that wrote
    /// it was rolled back.
    pub is_transactional: bool,
    /// In the database's encoding, which need not be UTF-8.
    pub prefix: &'a [u8],
    pub content: &'a [u8],
}

/// Oids of relations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relations<'a>(&'a [u8]);

/// A table as the stream describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelationMessage<'a> {
    pub oid: u32,
    pub schema: &'a str,
    pub name: &'a str,
    column_count: u16,
    columns: &'a [u8],
}

/// A column as the stream describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColumnMessage<'a> {
    pub name: &'a str,
    pub type_oid: u32,
}

/// The bytes are not a pgoutput message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the pgoutput message is garbled: {0}")]
pub struct DecodeError(&'static str);

/// Decodes one message.
///
/// # Errors
/// Truncated or unknown bytes.
pub fn decode(bytes: &[u8]) -> Result<Message<'_>, DecodeError> {
    let mut reader = Reader::new(bytes);
    Ok(match reader.u8()? {
        b'B' => {
            let commit_lsn = Lsn(reader.u64()?);
            let commit_timestamp = reader.i64()?;
            let _xid = reader.u32()?;
            Message::Begin {
                commit_lsn,
                commit_timestamp,
            }
        }
        b'C' => {
            let _flags = reader.u8()?;
            let message = Message::Commit {
                commit_lsn: Lsn(reader.u64()?),
                end_lsn: Lsn(reader.u64()?),
            };
            let _timestamp = reader.i64()?;
            message
        }
        b'I' => {
            let relation = reader.u32()?;
            if reader.u8()? != b'N' {
                return Err(DecodeError("an insert without a new row"));
            }
            Message::Insert {
                relation,
                tuple: Tuple::from_encoded(reader.u16()?, reader.rest()),
            }
        }
        b'R' => {
            let oid = reader.u32()?;
            let schema = reader.text()?;
            let name = reader.text()?;
            let _replica_identity = reader.u8()?;
            Message::Relation(RelationMessage {
                oid,
                schema,
                name,
                column_count: reader.u16()?,
                columns: reader.rest(),
            })
        }
        b'U' => Message::Update {
            relation: reader.u32()?,
        },
        b'D' => Message::Delete {
            relation: reader.u32()?,
        },
        b'T' => {
            let count = reader.u32()? as usize;
            let _options = reader.u8()?;
            Message::Truncate(Relations(
                reader.bytes(count.checked_mul(4).ok_or(DecodeError("too many tables"))?)?,
            ))
        }
        b'M' => {
            let is_transactional = reader.u8()? & 1 == 1;
            let _lsn = reader.u64()?;
            let prefix = reader.zero_terminated()?;
            let length = reader.u32()? as usize;
            Message::Emitted(EmittedMessage {
                is_transactional,
                prefix,
                content: reader.bytes(length)?,
            })
        }
        b'O' | b'Y' => Message::Other,
        _ => return Err(DecodeError("unknown message")),
    })
}

impl Relations<'_> {
    /// The oids, in the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.as_chunks().0.iter().map(|oid| u32::from_be_bytes(*oid))
    }
}

impl<'a> RelationMessage<'a> {
    /// The table's columns, in order.
    pub fn columns(&self) -> impl Iterator<Item = Result<ColumnMessage<'a>, DecodeError>> + use<'a> {
        let mut reader = Reader::new(self.columns);
        (0..self.column_count).map(move |_| {
            let _flags = reader.u8()?;
            let name = reader.text()?;
            let type_oid = reader.u32()?;
            let _type_modifier = reader.u32()?;
            Ok(ColumnMessage { name, type_oid })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{EmittedMessage, Message, Tuple, Value, decode};
    use crate::lsn::Lsn;

    fn begin() -> Vec<u8> {
        let mut bytes = vec![b'B'];
        bytes.extend_from_slice(&0x0152_8C20_u64.to_be_bytes());
        bytes.extend_from_slice(&7_i64.to_be_bytes());
        bytes.extend_from_slice(&42_u32.to_be_bytes());
        bytes
    }

    fn insert() -> Vec<u8> {
        let mut bytes = vec![b'I'];
        bytes.extend_from_slice(&16_384_u32.to_be_bytes());
        bytes.push(b'N');
        bytes.extend_from_slice(&3_u16.to_be_bytes());
        bytes.extend_from_slice(&Tuple::encode(&[Some("개발팀".as_bytes()), None, Some(b"")]).unwrap());
        bytes
    }

    fn emitted() -> Vec<u8> {
        let mut bytes = vec![b'M', 1];
        bytes.extend_from_slice(&0x0152_8C20_u64.to_be_bytes());
        bytes.extend_from_slice(b"outbox\0");
        bytes.extend_from_slice(&2_u32.to_be_bytes());
        bytes.extend_from_slice(b"{}");
        bytes
    }

    #[test]
    fn an_emitted_message_has_prefix_and_content() {
        let message = EmittedMessage {
            is_transactional: true,
            prefix: b"outbox",
            content: b"{}",
        };
        assert_eq!(decode(&emitted()), Ok(Message::Emitted(message)));
    }

    #[test]
    fn a_row_is_borrowed_value_by_value() {
        let bytes = insert();
        let Message::Insert { relation, tuple } = decode(&bytes).unwrap() else {
            panic!("no insert")
        };
        assert_eq!(relation, 16_384);
        let values: Vec<_> = tuple.values().map(Result::unwrap).collect();
        assert_eq!(
            values,
            [Value::Text("개발팀".as_bytes()), Value::Null, Value::Text(b"")]
        );
    }

    #[test]
    fn a_begin_tells_where_and_when_it_committed() {
        assert_eq!(
            decode(&begin()),
            Ok(Message::Begin {
                commit_lsn: Lsn(0x0152_8C20),
                commit_timestamp: 7
            })
        );
    }

    #[test]
    fn a_relation_lists_its_columns() {
        let mut bytes = vec![b'R'];
        bytes.extend_from_slice(&9_u32.to_be_bytes());
        bytes.extend_from_slice(b"public\0outbox\0d");
        bytes.extend_from_slice(&1_u16.to_be_bytes());
        bytes.extend_from_slice(b"\x01id\0");
        bytes.extend_from_slice(&2950_u32.to_be_bytes());
        bytes.extend_from_slice(&u32::MAX.to_be_bytes());
        let Message::Relation(relation) = decode(&bytes).unwrap() else {
            panic!("no relation")
        };
        assert_eq!((relation.oid, relation.schema, relation.name), (9, "public", "outbox"));
        let columns: Vec<_> = relation.columns().map(Result::unwrap).collect();
        assert_eq!((columns[0].name, columns[0].type_oid), ("id", 2950));
    }

    fn truncate() -> Vec<u8> {
        let mut bytes = vec![b'T'];
        bytes.extend_from_slice(&2_u32.to_be_bytes());
        bytes.push(1);
        bytes.extend_from_slice(&16_384_u32.to_be_bytes());
        bytes.extend_from_slice(&16_399_u32.to_be_bytes());
        bytes
    }

    #[test]
    fn a_truncation_names_its_tables() {
        let bytes = truncate();
        let Message::Truncate(relations) = decode(&bytes).unwrap() else {
            panic!("no truncation")
        };
        assert_eq!(relations.iter().collect::<Vec<_>>(), [16_384, 16_399]);
    }

    #[test]
    fn a_message_cut_anywhere_is_an_error_and_never_a_panic() {
        for whole in [begin(), insert(), emitted(), truncate()] {
            for cut in 0..whole.len() {
                let outcome = decode(&whole[..cut]).and_then(|message| match message {
                    Message::Insert { tuple, .. } => tuple.values().try_for_each(|value| value.map(drop)),
                    _ => Ok(()),
                });
                assert!(outcome.is_err(), "cut at {cut}");
            }
        }
    }
}
