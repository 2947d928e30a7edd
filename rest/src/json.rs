//! Request bodies: one JSON object, read strictly.
//!
//! A body that two readers could understand differently is refused: with a key that comes twice, text behind the object, or half of a surrogate pair.
//! A byte order mark is tolerated, since some editors cannot leave it out.

use std::collections::{HashMap, HashSet};
use std::fmt;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, FailedToBufferBody};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderValue, StatusCode, header};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::Problem;
use crate::media;
use crate::room::Room;

/// Largest body that is read, in bytes. An event carries what the body said, and must stay below the megabyte that a Kafka
/// broker takes by default.
pub(crate) const BODY_LIMIT_BYTES: usize = 512 * 1024;

/// The members of a JSON object, by name.
pub type Object = HashMap<String, Value>;

/// A JSON value. Only numbers and texts keep their content, since no field uses that of the others.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Bool,
    Number(serde_json::Number),
    Text(String),
    Array,
    Object,
}

/// A request body that is one JSON object, and the room that was taken for it. The answer may use this room again.
///
/// A body is refused with 415 if its media type is not JSON, with 413 if it is longer than `BODY_LIMIT_BYTES`, and with 400 if it is not one JSON
/// object. The 400 names line and column.
#[derive(Debug)]
pub struct JsonBody(pub Object, pub Room);

impl<S: Send + Sync> FromRequest<S> for JsonBody {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        if !media::is_json(request.headers().get(header::CONTENT_TYPE)) {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "the Content-Type of the body must be application/json",
            )
            .with_header(
                header::ACCEPT,
                HeaderValue::from_static("application/json, application/*+json"),
            ));
        }
        // A body that is refused for its length is not read.
        let length = request.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        let room = Room::take_for(length.unwrap_or(BODY_LIMIT_BYTES).min(BODY_LIMIT_BYTES)).await?;
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|rejection| match rejection {
                BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)) => Problem::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("a body may have {BODY_LIMIT_BYTES} bytes"),
                ),
                _ => Problem::bad_request("the body ended before it was complete"),
            })?;
        parse(&bytes).map(|object| Self(object, room))
    }
}

/// Reads one JSON object.
pub(crate) fn parse(bytes: &[u8]) -> Result<Object, Problem> {
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    ObjectReader
        .deserialize(&mut reader)
        .and_then(|object| reader.end().map(|()| object))
        .map_err(|err| {
            Problem::bad_request(format!("the body is not one JSON object: {err}"))
                .with_position(err.line(), err.column())
        })
}

struct ObjectReader;

impl<'de> DeserializeSeed<'de> for ObjectReader {
    type Value = Object;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Object, D::Error> {
        reader.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ObjectReader {
    type Value = Object;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
        let mut object = Object::with_capacity(8);
        while let Some(key) = map.next_key::<String>()? {
            if object.contains_key(&key) {
                return Err(A::Error::custom(format_args!("duplicate key {key:?}")));
            }
            let value = map.next_value_seed(ValueReader)?;
            object.insert(key, value);
        }
        Ok(object)
    }
}

struct ValueReader;

impl<'de> DeserializeSeed<'de> for ValueReader {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueReader {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Value, E> {
        Ok(Value::Bool)
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(serde_json::Number::from_f64(number).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        while seq.next_element_seed(ValueReader)?.is_some() {}
        Ok(Value::Array)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut keys = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            map.next_value_seed(ValueReader)?;
            if let Some(key) = keys.replace(key) {
                return Err(A::Error::custom(format_args!("duplicate key {key:?}")));
            }
        }
        Ok(Value::Object)
    }
}

#[cfg(test)]
mod tests {
    use super::{Value, parse};

    fn refusal(body: &[u8]) -> serde_json::Value {
        serde_json::to_value(parse(body).unwrap_err()).unwrap()
    }

    #[test]
    fn an_object_is_read_with_or_without_a_byte_order_mark() {
        for body in ["{\"name\":\"홍길동\"}", "\u{FEFF}{ \"name\" : \"홍길동\" }\n"] {
            let object = parse(body.as_bytes()).unwrap();
            assert_eq!(object["name"], Value::Text("홍길동".to_owned()));
        }
    }

    #[test]
    fn a_refusal_names_line_and_column() {
        let problem = refusal(b"{\n  \"name\": }");
        assert_eq!(problem["status"], 400);
        assert_eq!(
            (problem["line"].as_u64(), problem["column"].as_u64()),
            (Some(2), Some(11))
        );
    }

    #[test]
    fn what_two_readers_could_understand_differently_is_refused() {
        for body in [
            r#"{"name":"a","name":"b"}"#,
            r#"{"x":{"y":1,"y":2}}"#,
            r#"{"x":[{"y":1,"y":2}]}"#,
            r#"{"name":"a"} {"name":"b"}"#,
            r#"{"name":"a"} x"#,
            r#"{"name":"\ud83d"}"#,
            r#"{"ignored":"\ud83d"}"#,
            r#"{"name":"\ude00\ud83d"}"#,
        ] {
            assert_eq!(refusal(body.as_bytes())["status"], 400, "{body}");
        }
    }

    #[test]
    fn what_is_no_json_object_is_refused() {
        for body in [
            "",
            "  ",
            "null",
            "[]",
            "\"text\"",
            "1",
            "true",
            "{'name':'a'}",
            "{\"name\":\"a\",}",
            "{\"name\":\"a\" /* c */}",
            "{\"name\":\"a\nb\"}",
            "{\"name\":nan}",
            "{\"name\":01}",
        ] {
            assert_eq!(refusal(body.as_bytes())["status"], 400, "{body}");
        }
        assert_eq!(refusal(b"{\"name\":\"\xFF\"}")["status"], 400);
        assert_eq!(refusal(b"\xFF\xFE{\0}\0")["status"], 400);
        let nested = [b"{\"x\":".as_slice(), &[b'['; 100_000]].concat();
        assert_eq!(refusal(&nested)["status"], 400);
    }
}
