//! An outbox without a table: logical decoding messages, written by `pg_logical_emit_message(true, prefix, content)`.
//!
//! The content is a JSON object. Its members have the names of an outbox table's columns. Debezium reads the same format, by
//! `DecodeLogicalDecodingMessageContent` before its outbox router. The content becomes a row for the same [`Plan`] as a table's row.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::settings::Config;
use outbox_router::{Additional, Column, Placement, Plan, RouterOptions};
use pg_replication::pgoutput::{EmittedMessage, Tuple, ValueTooLong};

const TEXT: u32 = 25;
const INT4: u32 = 23;

/// Makes rows from the messages that have one prefix.
#[derive(Debug)]
pub(crate) struct MessageOutbox {
    prefix: Vec<u8>,
    plan: Plan,
    columns: Vec<Member>,
    /// Kept from message to message.
    buffer: Vec<u8>,
    has_warned: bool,
    ignored: metrics::Counter,
}

/// A member of the content that the router's options name.
#[derive(Clone, Debug)]
struct Member {
    name: String,
    /// Only additional headers and the partition may be left out.
    is_required: bool,
}

/// The message is not an event. The error shows nothing of its content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MessageError {
    #[error("the content is no JSON object in UTF-8 (line {line}, column {column})")]
    NotAnObject { line: usize, column: usize },
    #[error("the content has no `{0}`; a JSON null is allowed where the outbox table's column could be null")]
    Missing(String),
    #[error("the content has `{0}` more than once")]
    Repeated(String),
    #[error("the text of `{0}` is invalid")]
    NotText(String),
    #[error("the content names more than {} columns", u16::MAX)]
    TooManyColumns,
    #[error(transparent)]
    TooLong(#[from] ValueTooLong),
}

impl MessageOutbox {
    /// `None`: the relay reads no messages.
    pub(crate) fn of(config: &Config) -> Option<Self> {
        let prefix = config.outbox.message_prefix.as_ref()?;
        metrics::describe_counter!(
            "relay_ignored_messages_total",
            "Logical decoding messages with the outbox' prefix that are not transactional, and so no events."
        );
        Some(Self::new(prefix, &config.outbox.router))
    }

    fn new(prefix: &str, options: &RouterOptions) -> Self {
        let columns = members(options);
        let as_columns = columns.iter().map(|member| Column {
            name: member.name.clone(),
            type_oid: type_of(&member.name, options),
        });
        Self {
            prefix: prefix.as_bytes().to_vec(),
            plan: Plan::new(options, as_columns.collect()).expect("columns that are made for the options fit them"),
            columns,
            buffer: Vec::new(),
            has_warned: false,
            ignored: metrics::counter!("relay_ignored_messages_total"),
        }
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Whether the message is an event.
    pub(crate) fn takes(&mut self, emitted: &EmittedMessage<'_>) -> bool {
        if emitted.prefix != self.prefix {
            return false;
        }
        if !emitted.is_transactional {
            self.ignored.increment(1);
            if !self.has_warned {
                self.has_warned = true;
                tracing::warn!(
                    "a message with the outbox' prefix is not transactional, so it belongs to no commit and is no event; emit with pg_logical_emit_message(true, …); said once, counted in relay_ignored_messages_total"
                );
            }
        }
        emitted.is_transactional
    }

    pub(crate) fn take_buffer(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.buffer)
    }

    pub(crate) fn give_back(&mut self, buffer: Vec<u8>) {
        self.buffer = buffer;
    }

    /// Writes the row that `content` describes into `row`, as [`Tuple::encode`] does. Returns its number of columns.
    ///
    /// # Errors
    /// The content is no event.
    pub(crate) fn read(&self, content: &[u8], row: &mut Vec<u8>) -> Result<u16, MessageError> {
        let mut found: Vec<Option<&RawValue>> = vec![None; self.columns.len()];
        let not_an_object = |err: &serde_json::Error| MessageError::NotAnObject {
            line: err.line(),
            column: err.column(),
        };
        let mut json = serde_json::Deserializer::from_slice(content);
        let repeated = json
            .deserialize_map(Members {
                columns: &self.columns,
                found: &mut found,
            })
            .and_then(|repeated| json.end().map(|()| repeated))
            .map_err(|err| not_an_object(&err))?;
        if let Some(index) = repeated {
            return Err(MessageError::Repeated(self.columns[index].name.clone()));
        }
        let mut values = Vec::with_capacity(found.len());
        for (value, member) in found.iter().zip(&self.columns) {
            values.push(match value {
                None if member.is_required => return Err(MessageError::Missing(member.name.clone())),
                None => None,
                Some(raw) => plain(raw).map_err(|_| MessageError::NotText(member.name.clone()))?,
            });
        }
        let values: Vec<Option<&[u8]>> = values.iter().map(Option::as_deref).collect();
        *row = Tuple::encode(&values)?;
        u16::try_from(values.len()).map_err(|_| MessageError::TooManyColumns)
    }
}

/// The members that the options name, each once.
fn members(options: &RouterOptions) -> Vec<Member> {
    let required = [
        &options.id_column,
        &options.route_column,
        &options.key_column,
        &options.payload_column,
    ];
    let mut members: Vec<Member> = Vec::new();
    let names = required.into_iter().map(|name| (name, true));
    let names = names.chain(options.additional.iter().map(|additional| (&additional.column, false)));
    for (name, is_required) in names {
        if members.iter().all(|member| member.name != *name) {
            members.push(Member {
                name: name.clone(),
                is_required,
            });
        }
    }
    members
}

fn type_of(name: &str, options: &RouterOptions) -> u32 {
    let is_partition =
        |additional: &Additional| additional.column == name && additional.placement == Placement::Partition;
    if options.additional.iter().any(is_partition) {
        INT4
    } else {
        TEXT
    }
}

/// A value as a column of type text would have it. A string loses its quotes. Anything else stays as it was written.
fn plain(raw: &RawValue) -> serde_json::Result<Option<Cow<'_, [u8]>>> {
    let text = raw.get();
    if text == "null" {
        return Ok(None);
    }
    let Some(inner) = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) else {
        return Ok(Some(Cow::Borrowed(text.as_bytes())));
    };
    if inner.contains('\\') {
        let unescaped: String = serde_json::from_str(text)?;
        return Ok(Some(Cow::Owned(unescaped.into_bytes())));
    }
    Ok(Some(Cow::Borrowed(inner.as_bytes())))
}

/// Picks members of an object; gives the index of one that came twice.
struct Members<'m, 'de> {
    columns: &'m [Member],
    found: &'m mut [Option<&'de RawValue>],
}

impl<'de> Visitor<'de> for Members<'_, 'de> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut repeated = None;
        while let Some(name) = map.next_key::<Cow<'de, str>>()? {
            match self.columns.iter().position(|member| member.name == *name) {
                Some(index) => {
                    let before = self.found[index].replace(map.next_value()?);
                    repeated = repeated.or(before.map(|_| index));
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(repeated)
    }
}

#[cfg(test)]
mod tests {
    use super::{MessageError, MessageOutbox};
    use outbox_router::RouterOptions;
    use pg_replication::pgoutput::{EmittedMessage, Tuple, Value};

    fn outbox(settings: &[&str]) -> MessageOutbox {
        MessageOutbox::new("outbox", &RouterOptions::parse(settings).unwrap())
    }

    /// Id, aggregate type, aggregate id, payload, and what is additional.
    fn read(settings: &[&str], content: &str) -> Result<Vec<Option<String>>, MessageError> {
        let mut row = Vec::new();
        let count = outbox(settings).read(content.as_bytes(), &mut row)?;
        let text = |value| match value {
            Value::Text(bytes) => Some(String::from_utf8(bytes.to_vec()).unwrap()),
            _ => None,
        };
        Ok(Tuple::from_encoded(count, &row)
            .values()
            .map(|value| text(value.unwrap()))
            .collect())
    }

    fn some(texts: &[&str]) -> Vec<Option<String>> {
        texts.iter().map(|text| Some((*text).to_owned())).collect()
    }

    #[test]
    fn a_payload_is_kept_byte_by_byte_and_strings_lose_their_quotes() {
        let content = r#" {"id": "e1", "aggregatetype": "user", "aggregateid": 7, "more": [1], "payload": {"b" :1.0,  "a": "\u00e4"}} "#;
        let expected = some(&["e1", "user", "7", r#"{"b" :1.0,  "a": "\u00e4"}"#]);
        assert_eq!(read(&[], content), Ok(expected));
        let content = r#"{"id":"e1","aggregatetype":"user","aggregateid":"k\n\"","payload":"plain"}"#;
        assert_eq!(read(&[], content), Ok(some(&["e1", "user", "k\n\"", "plain"])));
    }

    #[test]
    fn null_is_null_and_what_is_additional_may_be_missing() {
        let settings = ["table.fields.additional.placement=type:header,shard:partition"];
        let content = r#"{"id":"e1","aggregatetype":"user","aggregateid":null,"payload":null,"shard":3}"#;
        let expected = vec![
            Some("e1".to_owned()),
            Some("user".to_owned()),
            None,
            None,
            None,
            Some("3".to_owned()),
        ];
        assert_eq!(read(&settings, content), Ok(expected));
    }

    #[test]
    fn what_is_malformed_is_named_without_its_content() {
        for (content, named) in [
            ("", "no JSON object"),
            ("[1]", "no JSON object"),
            (r#"{"id":"secret""#, "no JSON object"),
            (r#"{"id":"secret"} x"#, "no JSON object"),
            (
                r#"{"id":"secret","aggregatetype":"user","aggregateid":"k"}"#,
                "no `payload`",
            ),
            (r#"{"id":"secret","id":"secret"}"#, "`id` more than once"),
            (
                r#"{"id":"\ud800secret","aggregatetype":"user","aggregateid":"k","payload":1}"#,
                "text of `id` is invalid",
            ),
        ] {
            let message = read(&[], content).unwrap_err().to_string();
            assert!(message.contains(named), "{content}: {message}");
            assert!(!message.contains("secret"), "{message}");
        }
        let mut row = Vec::new();
        assert!(outbox(&[]).read(b"{\"id\":\"\xff\"}", &mut row).is_err());
    }

    #[test]
    fn only_transactional_messages_of_the_prefix_are_events() {
        let mut outbox = outbox(&[]);
        let mut message = EmittedMessage {
            is_transactional: true,
            prefix: b"outbox",
            content: b"",
        };
        assert!(outbox.takes(&message));
        message.prefix = b"outbox2";
        assert!(!outbox.takes(&message));
        message.prefix = b"outbox";
        message.is_transactional = false;
        assert!(!outbox.takes(&message));
    }
}
