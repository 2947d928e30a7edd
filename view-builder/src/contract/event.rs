//! Turns a record's bytes into an event that a view can take, or says why that is not possible.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::contract::moment::is_moment;
use crate::contract::{Change, Contract};

/// Longest name, email and department in characters, as the users' API takes them.
const TEXT_CHARACTERS_MAX: usize = 255;
/// Longest status in characters.
const STATUS_CHARACTERS_MAX: usize = 50;

/// One change of one entity, ready for the views.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub offset: i64,
    /// The entity's id.
    pub key: i64,
    /// 1, 2, 3… for each key.
    pub version: i64,
    pub change: Change,
    /// The entity after the change, as JSON. Always `None` in a deletion, also if its event carries an entity.
    pub entity: Option<Box<str>>,
    /// When the source committed the change: microseconds since 1970, by the source's clock.
    pub committed_us: i64,
    /// When this process got it from Kafka, microseconds since 1970. `None`: how long it takes into the view is not measured, since it was applied
    /// before and comes again, or since it comes from the dead letters or from a rebuild.
    pub read_us: Option<i64>,
}

/// Why an event cannot be applied. Names fields and limits, never a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unappliable(pub String);

impl Event {
    /// How many bytes of memory it takes while it waits for its batch.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        size_of::<Self>() + self.entity.as_deref().map_or(0, str::len)
    }

    /// Reads one record's key and value.
    ///
    /// # Errors
    /// The record is no event of this contract, or its entity breaks a limit of the contract.
    pub fn parse(
        contract: &Contract,
        offset: i64,
        committed_us: i64,
        key: Option<&[u8]>,
        value: &[u8],
    ) -> Result<Self, Unappliable> {
        let text = std::str::from_utf8(value)
            .map_err(|err| unappliable(format!("the value is not UTF-8 from byte {}", err.valid_up_to())))?;
        let mut reader = serde_json::Deserializer::from_str(text);
        let envelope = EnvelopeSeed(contract)
            .deserialize(&mut reader)
            .and_then(|envelope| reader.end().map(|()| envelope))
            .map_err(|err| unappliable(format!("the value is no event: {}", without_values(&err))))?;
        let change = contract.change(&envelope.event_type).ok_or_else(|| {
            unappliable(format!(
                "unknown eventType: expected {}, {} or {}",
                contract.created, contract.updated, contract.deleted
            ))
        })?;
        if envelope.version < 1 {
            return Err(unappliable("version must be 1 or more".to_owned()));
        }
        let key = key.ok_or_else(|| unappliable("the record has no key".to_owned()))?;
        if key != envelope.id.to_string().as_bytes() {
            return Err(unappliable(format!("the record's key is not its {}", contract.id)));
        }
        let entity = match (change, envelope.entity) {
            (Change::Deleted, _) => None,
            (_, None) => return Err(unappliable(format!("{} must not be null", contract.entity))),
            (_, Some(entity)) => {
                check_entity(contract, envelope.id, entity.get())
                    .map_err(|reason| unappliable(format!("{}: {reason}", contract.entity)))?;
                Some(entity.get().into())
            }
        };
        Ok(Self {
            offset,
            key: envelope.id,
            version: envelope.version,
            change,
            entity,
            committed_us,
            read_us: None,
        })
    }
}

fn unappliable(reason: String) -> Unappliable {
    Unappliable(reason)
}

/// The part of serde's message that contains no value: `invalid type at line 1 column 30`, ``missing field `name` ``.
fn without_values(err: &serde_json::Error) -> String {
    let text = err.to_string();
    let place = format!(" at line {} column {}", err.line(), err.column());
    let cause = text.strip_suffix(&place).unwrap_or(&text);
    let cause = if ["missing field", "duplicate field"]
        .iter()
        .any(|safe| cause.starts_with(safe))
    {
        cause
    } else {
        let value_begins = cause.find([':', '`']).unwrap_or(cause.len());
        cause[..value_begins].trim_end()
    };
    format!("{cause}{place}")
}

/// Checks that a view's columns can take the entity. Of an aggregate that this program does not know, it checks only that the entity is an object.
/// The rest is up to its view's SQL.
fn check_entity(contract: &Contract, id: i64, entity: &str) -> Result<(), String> {
    if has_nul(entity) {
        return Err("a text holds the character U+0000, which Postgres cannot store".to_owned());
    }
    let reason = |err: serde_json::Error| without_values(&err);
    let entity_id = match contract.topic.as_str() {
        events::USER_TOPIC => {
            let user: events::User = serde_json::from_str(entity).map_err(reason)?;
            check_length("name", &user.name, TEXT_CHARACTERS_MAX)?;
            check_length("email", &user.email, TEXT_CHARACTERS_MAX)?;
            if let Some(department) = &user.department {
                check_length("department", department, TEXT_CHARACTERS_MAX)?;
            }
            check_length("status", &user.status, STATUS_CHARACTERS_MAX)?;
            check_moments(&user.created_at, &user.updated_at)?;
            user.id
        }
        events::POST_TOPIC => {
            let post: events::Post = serde_json::from_str(entity).map_err(reason)?;
            check_moments(&post.created_at, &post.updated_at)?;
            post.id
        }
        _ if entity.starts_with('{') => return Ok(()),
        _ => return Err("must be an object".to_owned()),
    };
    if entity_id == id {
        Ok(())
    } else {
        Err(format!("id is not {}", contract.id))
    }
}

fn check_length(field: &str, text: &str, characters_max: usize) -> Result<(), String> {
    // A text has no more characters than bytes, so the short ones need no counting.
    if text.len() <= characters_max || text.chars().count() <= characters_max {
        Ok(())
    } else {
        Err(format!("{field} is longer than {characters_max} characters"))
    }
}

fn check_moments(created_at: &str, updated_at: &str) -> Result<(), String> {
    for (field, text) in [("createdAt", created_at), ("updatedAt", updated_at)] {
        if !is_moment(text) {
            return Err(format!("{field} is no date-time such as 2026-11-22T10:53:53.21721"));
        }
    }
    Ok(())
}

/// Whether a text in this JSON holds U+0000, which valid JSON can only write as an escape.
fn has_nul(json: &str) -> bool {
    json.match_indices("\\u0000").any(|(at, _)| {
        let backslashes_before = json[..at].bytes().rev().take_while(|&byte| byte == b'\\').count();
        backslashes_before % 2 == 0
    })
}

/// The fields that every event has; others are ignored.
struct Envelope<'a> {
    event_type: Cow<'a, str>,
    id: i64,
    version: i64,
    entity: Option<&'a RawValue>,
}

/// Reads an [`Envelope`]. The contract says how its fields are named.
struct EnvelopeSeed<'c>(&'c Contract);

/// A field's name or another text, borrowed from the record where it has no escapes.
struct Text<'a>(Cow<'a, str>);

impl<'de> serde::Deserialize<'de> for Text<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

impl<'de> DeserializeSeed<'de> for EnvelopeSeed<'_> {
    type Value = Envelope<'de>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for EnvelopeSeed<'_> {
    type Value = Envelope<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        fn set_once<T, E: serde::de::Error>(target: &mut Option<T>, value: T, field: &str) -> Result<(), E> {
            match target.replace(value) {
                None => Ok(()),
                Some(_) => Err(E::custom(format_args!("duplicate field `{field}`"))),
            }
        }
        let missing = |field: &str| A::Error::custom(format_args!("missing field `{field}`"));
        let (mut event_type, mut id, mut version, mut entity) = (None, None, None, None);
        while let Some(Text(field)) = map.next_key()? {
            let field = &*field;
            if field == "eventType" {
                set_once(&mut event_type, map.next_value::<Text<'de>>()?.0, field)?;
            } else if field == self.0.id {
                set_once(&mut id, map.next_value()?, field)?;
            } else if field == "version" {
                set_once(&mut version, map.next_value()?, field)?;
            } else if field == self.0.entity {
                set_once(&mut entity, map.next_value::<&'de RawValue>()?, field)?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(Envelope {
            event_type: event_type.ok_or_else(|| missing("eventType"))?,
            id: id.ok_or_else(|| missing(&self.0.id))?,
            version: version.ok_or_else(|| missing("version"))?,
            entity: entity.filter(|entity| entity.get() != "null"),
        })
    }
}

#[cfg(test)]
mod tests;
