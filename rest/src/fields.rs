//! Checks the fields of a body, and names all mistakes in one answer.

use std::borrow::Cow;

use crate::json::{Object, Value};
use crate::problem::{FieldError, Problem};

/// The fields of a body, from which a value of the domain is made.
///
/// Take each field, and then call [`Fields::check`]. It fails if any field was wrong. Use the values only if it succeeds, since a wrong field
/// gives a default value. Fields that are not taken are ignored.
#[derive(Debug)]
pub struct Fields {
    object: Object,
    errors: Vec<FieldError>,
}

impl Fields {
    #[must_use]
    pub fn of(object: Object) -> Self {
        Self {
            object,
            errors: Vec::new(),
        }
    }

    /// A text of 1 to `max_chars` characters that is not blank.
    pub fn text(&mut self, field: &'static str, max_chars: usize) -> String {
        match self.object.remove(field) {
            None | Some(Value::Null) => self.add_error(field, "must be there"),
            Some(value) => self.checked_text(field, value, max_chars),
        }
    }

    /// The same as [`Fields::text`], but the field may be missing or null.
    pub fn optional_text(&mut self, field: &'static str, max_chars: usize) -> Option<String> {
        match self.object.remove(field) {
            None | Some(Value::Null) => None,
            Some(value) => Some(self.checked_text(field, value, max_chars)),
        }
    }

    /// A text of any length, which may be blank.
    pub fn long_text(&mut self, field: &'static str) -> String {
        match self.object.remove(field) {
            None | Some(Value::Null) => self.add_error(field, "must be there"),
            Some(value) => self.any_text(field, value),
        }
    }

    /// The same as [`Fields::text`], and `is_valid` must accept the text. `rule` completes the message about a field that it does not accept.
    pub fn text_like(
        &mut self,
        field: &'static str,
        max_chars: usize,
        is_valid: fn(&str) -> bool,
        rule: &'static str,
    ) -> String {
        let errors = self.errors.len();
        let text = self.text(field, max_chars);
        if self.errors.len() == errors && !is_valid(&text) {
            self.add_error::<()>(field, rule);
        }
        text
    }

    /// A whole number from 1 to 2^63 - 1.
    pub fn id(&mut self, field: &'static str) -> i64 {
        match self.object.remove(field) {
            None | Some(Value::Null) => self.add_error(field, "must be there"),
            Some(Value::Number(number)) => match number.as_i64() {
                Some(id) if id > 0 => id,
                _ => self.add_error(field, "must be a whole number from 1 to 9223372036854775807"),
            },
            Some(_) => self.add_error(field, "must be a whole number"),
        }
    }

    /// Whether all fields that were taken are right.
    ///
    /// # Errors
    /// A problem of status 422 that names every wrong field.
    pub fn check(self) -> Result<(), Problem> {
        if self.errors.is_empty() {
            Ok(())
        } else {
            Err(Problem::invalid(self.errors))
        }
    }

    /// A text that is not blank and has at most `max_chars` characters.
    fn checked_text(&mut self, field: &'static str, value: Value, max_chars: usize) -> String {
        let errors = self.errors.len();
        let text = self.any_text(field, value);
        if self.errors.len() > errors {
            return text;
        }
        if text.trim().is_empty() {
            return self.add_error(field, "must not be blank");
        }
        // A text has at most as many characters as bytes.
        if text.len() > max_chars && text.chars().count() > max_chars {
            return self.add_error(field, format!("must have at most {max_chars} characters"));
        }
        text
    }

    /// A text of any length.
    fn any_text(&mut self, field: &'static str, value: Value) -> String {
        match value {
            Value::Text(text) if text.contains('\0') => self.add_error(field, "must not contain the character U+0000"),
            Value::Text(text) => text,
            _ => self.add_error(field, "must be a text"),
        }
    }

    /// Notes a mistake. Returns a default value, so that the other fields can be checked too.
    fn add_error<T: Default>(&mut self, field: &'static str, message: impl Into<Cow<'static, str>>) -> T {
        self.errors.push(FieldError {
            field: field.into(),
            message: message.into(),
        });
        T::default()
    }
}

#[cfg(test)]
mod tests {
    use super::Fields;
    use crate::json::parse;

    /// The messages about the one field `x` of `body`, read by `take`.
    fn messages<T>(body: &str, take: impl FnOnce(&mut Fields) -> T) -> Vec<String> {
        let mut fields = Fields::of(parse(body.as_bytes()).unwrap());
        take(&mut fields);
        fields.check().map_or_else(
            |problem| {
                problem
                    .errors()
                    .iter()
                    .map(|error| format!("{} {}", error.field, error.message))
                    .collect()
            },
            |()| Vec::new(),
        )
    }

    #[test]
    fn a_text_is_neither_missing_nor_blank_nor_another_type() {
        for (body, message) in [
            ("{}", "x must be there"),
            (r#"{"x":null}"#, "x must be there"),
            (r#"{"x":""}"#, "x must not be blank"),
            (r#"{"x":" \n"}"#, "x must not be blank"),
            (r#"{"x":123}"#, "x must be a text"),
            (r#"{"x":true}"#, "x must be a text"),
            (r#"{"x":["a"]}"#, "x must be a text"),
            (r#"{"x":{"y":1}}"#, "x must be a text"),
            (r#"{"x":"a\u0000b"}"#, "x must not contain the character U+0000"),
            (r#"{"x":"abcd"}"#, "x must have at most 3 characters"),
        ] {
            assert_eq!(messages(body, |fields| fields.text("x", 3)), [message]);
        }
    }

    #[test]
    fn lengths_are_characters_and_not_bytes() {
        assert!(messages(r#"{"x":"가나다"}"#, |fields| fields.text("x", 3)).is_empty());
    }

    #[test]
    fn an_optional_text_may_be_missing_but_not_blank() {
        for body in ["{}", r#"{"x":null}"#, r#"{"x":"a"}"#] {
            assert!(messages(body, |fields| fields.optional_text("x", 3)).is_empty());
        }
        assert_eq!(
            messages(r#"{"x":""}"#, |fields| fields.optional_text("x", 3)),
            ["x must not be blank"]
        );
    }

    #[test]
    fn an_id_is_a_positive_whole_number_of_64_bit() {
        assert!(messages(r#"{"x":9223372036854775807}"#, |fields| fields.id("x")).is_empty());
        for value in [
            "0",
            "-1",
            "2.9",
            "2.0",
            "1e3",
            "9223372036854775808",
            "\"2\"",
            "\"\"",
            "true",
            "{\"id\":1}",
            "null",
        ] {
            let body = format!("{{\"x\":{value}}}");
            assert_eq!(messages(&body, |fields| fields.id("x")).len(), 1, "{value}");
        }
    }

    #[test]
    fn every_wrong_field_is_named_and_the_rest_is_not_looked_at() {
        let body = r#"{"id":"x","createdAt":[1],"name":1,"status":""}"#;
        assert_eq!(
            messages(body, |fields| (fields.text("name", 9), fields.text("status", 9))),
            ["name must be a text", "status must not be blank"]
        );
    }
}
