//! Which records a search wants. All conditions must hold.

use serde_json::Value;

use super::record::{ID_HEADER, Seen};
use crate::settings::mask::Mask;

/// The conditions of a search.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The record's key, byte for byte.
    pub key: Option<Vec<u8>>,
    /// The event's id.
    pub id: Option<String>,
    /// The name of a header and its value.
    pub header: Option<(String, String)>,
    pub field: Option<Field>,
}

/// A field of the value, and what it has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// The names from the outside in.
    pub path: Vec<String>,
    pub wanted: String,
}

impl Filter {
    /// Whether it wants every record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    #[must_use]
    pub fn wants(&self, record: &Seen<'_>) -> bool {
        self.key.as_deref().is_none_or(|key| record.key == Some(key))
            && self.id.as_ref().is_none_or(|id| {
                let has = record.header(ID_HEADER);
                has.is_some_and(|has| has.eq_ignore_ascii_case(id.as_bytes()))
            })
            && self.header.as_ref().is_none_or(|(name, value)| {
                let mut headers = record.headers.iter();
                headers.any(|(known, has)| *known == name.as_bytes() && *has == Some(value.as_bytes()))
            })
            && self
                .field
                .as_ref()
                .is_none_or(|field| record.value.is_some_and(|value| field.is_in(value)))
    }
}

impl Field {
    /// Reads `PATH=VALUE`, such as `user.department=R&D`.
    ///
    /// # Errors
    /// It is not of this form, or the field is masked: then the answer would tell what the mask hides.
    pub fn parse(text: &str, mask: &Mask) -> Result<Self, String> {
        let expected = "a field of the value: expected PATH=VALUE, such as user.department=R&D";
        let (path, wanted) = text.split_once('=').ok_or(expected)?;
        let path: Vec<String> = path.trim().split('.').map(str::to_owned).collect();
        if path.iter().any(String::is_empty) {
            return Err(expected.to_owned());
        }
        if is_masked(mask, &path) {
            return Err(format!(
                "the field {} is masked, so nobody can search by it: the answer would tell what the mask hides",
                path.join(".")
            ));
        }
        Ok(Self {
            path,
            wanted: wanted.to_owned(),
        })
    }

    fn is_in(&self, value: &[u8]) -> bool {
        // Most records are told by this alone, without reading their JSON. With a backslash in it, the name could be written otherwise.
        let last = self.path.last().map_or(&[][..], |name| name.as_bytes());
        let has_name = value.windows(last.len().max(1)).any(|window| window == last);
        if !has_name && !value.contains(&b'\\') {
            return false;
        }
        serde_json::from_slice::<Value>(value).is_ok_and(|value| has_at(&value, &self.path, &self.wanted))
    }
}

/// Whether the field at `path` is `wanted`. Of a list, one item is enough. Only texts, numbers, booleans and null are compared: an object has no one way to be
/// written.
fn has_at(value: &Value, path: &[String], wanted: &str) -> bool {
    match (value, path) {
        (Value::Array(items), _) => items.iter().any(|item| has_at(item, path, wanted)),
        (Value::Object(members), [name, rest @ ..]) => {
            members.get(name).is_some_and(|member| has_at(member, rest, wanted))
        }
        (Value::String(text), []) => text == wanted,
        (Value::Number(_) | Value::Bool(_) | Value::Null, []) => {
            let written = value.to_string();
            written == wanted
        }
        _ => false,
    }
}

/// Whether the mask hides what is at this path, or something that it lies in.
fn is_masked(mask: &Mask, path: &[String]) -> bool {
    let probe = path.iter().rev().fold(Value::from("probe"), |inner, name| {
        Value::from(serde_json::Map::from_iter([(name.clone(), inner)]))
    });
    let mut hidden = probe.clone();
    mask.hide(&mut hidden);
    hidden != probe
}

#[cfg(test)]
mod tests {
    use super::{Field, Filter};
    use crate::search::record::Seen;
    use crate::settings::mask::Mask;

    const VALUE: &[u8] =
        r#"{"userId":7,"user":{"department":"개발팀","tags":["a","b"],"email":"a@b","note":null}}"#.as_bytes();

    fn record(value: &[u8]) -> Seen<'_> {
        Seen {
            partition: 0,
            offset: 4,
            timestamp_ms: Some(1),
            key: Some(b"7"),
            value: Some(value),
            headers: vec![(b"id", Some(b"8f1a")), (b"source", Some(b"import")), (b"none", None)],
        }
    }

    fn by_field(text: &str) -> Filter {
        Filter {
            field: Some(Field::parse(text, &Mask::default()).unwrap()),
            ..Filter::default()
        }
    }

    #[test]
    fn a_field_is_found_by_its_path() {
        for found in ["userId=7", "user.department=개발팀", "user.tags=b", "user.note=null"] {
            assert!(by_field(found).wants(&record(VALUE)), "{found}");
        }
        for other in ["userId=70", "department=개발팀", "user.tags=c", "user=x", "userId.x=7"] {
            assert!(!by_field(other).wants(&record(VALUE)), "{other}");
        }
        assert!(!by_field("userId=7").wants(&record(b"{\"userId\":7")), "no JSON");
        assert!(
            by_field("userId=7").wants(&record(br#"{"\u0075serId":7}"#)),
            "a name with an escape"
        );
    }

    #[test]
    fn key_id_and_header_are_compared_whole_and_all_must_hold() {
        let filter = Filter {
            key: Some(b"7".to_vec()),
            id: Some("8F1A".to_owned()),
            header: Some(("source".to_owned(), "import".to_owned())),
            field: None,
        };
        assert!(filter.wants(&record(VALUE)));
        for wrong in [
            Filter {
                key: Some(b"70".to_vec()),
                ..filter.clone()
            },
            Filter {
                id: Some("8f1".to_owned()),
                ..filter.clone()
            },
            Filter {
                header: Some(("source".to_owned(), "impor".to_owned())),
                ..filter.clone()
            },
            Filter {
                header: Some(("none".to_owned(), String::new())),
                ..filter.clone()
            },
        ] {
            assert!(!wrong.wants(&record(VALUE)), "{wrong:?}");
        }
    }

    #[test]
    fn nobody_searches_by_a_masked_field() {
        let mask = Mask::parse(&["user.email".to_owned(), "card".to_owned()]).unwrap();
        for masked in ["user.email=a@b", "card=7", "card.number=7"] {
            let refused = Field::parse(masked, &mask).unwrap_err();
            assert!(refused.contains("is masked"), "{refused}");
        }
        for open in ["user.status=ACTIVE", "email=a@b", "user.email2=x"] {
            assert!(Field::parse(open, &mask).is_ok(), "{open}");
        }
        // The object around a masked field can be named, and is never found: objects are not compared.
        let around = Filter {
            field: Some(Field::parse("user={}", &mask).unwrap()),
            ..Filter::default()
        };
        assert!(!around.wants(&record(VALUE)));
    }

    #[test]
    fn what_is_no_condition_is_refused() {
        for wrong in ["", "user", "=7", "user..x=7"] {
            assert!(Field::parse(wrong, &Mask::default()).is_err(), "{wrong}");
        }
    }
}
