//! Answers that say what is wrong: RFC 9457, `application/problem+json`.

use std::borrow::Cow;

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value};

/// Seconds after which a client may try again what failed because the database was away.
const RETRY_AFTER_S: HeaderValue = HeaderValue::from_static("2");

/// One answer that is not a success. Its `type` is `about:blank` if the status and `detail` say everything. If client programs must be able to tell
/// it from other problems with the same status, it has a type of its own.
#[derive(Debug, Serialize)]
pub struct Problem(Box<Body>);

#[derive(Debug, Serialize)]
struct Body {
    r#type: &'static str,
    title: &'static str,
    #[serde(serialize_with = "as_number")]
    status: StatusCode,
    detail: Cow<'static, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<usize>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError>,
    /// Members of the problem's own type (RFC 9457, section 3.2).
    #[serde(flatten)]
    members: Map<String, Value>,
    #[serde(skip)]
    header: Option<(HeaderName, HeaderValue)>,
}

/// A field of the body that cannot be taken, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldError {
    pub field: Cow<'static, str>,
    pub message: Cow<'static, str>,
}

impl Problem {
    /// A problem with this status and this explanation, which is for the person at the other end.
    #[must_use]
    pub fn new(status: StatusCode, detail: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Body {
            r#type: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status,
            detail: detail.into(),
            line: None,
            column: None,
            errors: Vec::new(),
            members: Map::new(),
            header: None,
        }))
    }

    /// 400: the request cannot be understood.
    #[must_use]
    pub fn bad_request(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// 404: a thing does not exist. `detail` says which.
    #[must_use]
    pub fn not_found(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    /// 422: the body was understood, but these fields cannot be taken.
    #[must_use]
    pub fn invalid(errors: Vec<FieldError>) -> Self {
        let detail = match errors.as_slice() {
            [one] => format!("{} {}", one.field, one.message),
            many => format!("{} fields cannot be taken as they are", many.len()),
        };
        let mut problem = Self::new(StatusCode::UNPROCESSABLE_ENTITY, detail);
        problem.0.errors = errors;
        problem
    }

    /// 409: another row has this field's value already.
    #[must_use]
    pub fn conflict(field: &'static str, message: &'static str) -> Self {
        let mut problem = Self::new(StatusCode::CONFLICT, format!("{field} {message}"));
        problem.0.errors.push(FieldError {
            field: field.into(),
            message: message.into(),
        });
        problem
    }

    /// 503 with `Retry-After`: the same request may succeed in a moment.
    #[must_use]
    pub fn unavailable(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail).with_header(header::RETRY_AFTER, RETRY_AFTER_S)
    }

    /// 503 without `Retry-After`: nobody could find out whether the change was made, so that the same request might make it twice.
    #[must_use]
    pub fn unanswered() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the database went away, and a change that was under way may have been made or not: look before you ask for it again",
        )
        .with_type("urn:problem-type:outcome-unknown", "Outcome Unknown")
    }

    /// 500: a fault of the program. The log says what it was. The client is not told.
    #[must_use]
    pub fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the request failed through no fault of its own; the program's log says why",
        )
    }

    /// Gives the problem a type of its own: a URI that never changes, and a title.
    #[must_use]
    pub fn with_type(mut self, uri: &'static str, title: &'static str) -> Self {
        self.0.r#type = uri;
        self.0.title = title;
        self
    }

    /// Adds one member to the answer's JSON object. The problem's type says what it means.
    #[must_use]
    pub fn with_member(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.members.insert(name.to_owned(), value.into());
        self
    }

    /// Adds the place in the body at which parsing failed. Line and column count from 1.
    #[must_use]
    pub(crate) fn with_position(mut self, line: usize, column: usize) -> Self {
        self.0.line = Some(line);
        self.0.column = Some(column);
        self
    }

    #[must_use]
    pub(crate) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.header = Some((name, value));
        self
    }

    /// Status of the answer.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.0.status
    }

    /// What is wrong, for the person at the other end.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.0.detail
    }

    /// The fields that cannot be taken; empty unless that is the problem.
    #[must_use]
    pub fn errors(&self) -> &[FieldError] {
        &self.0.errors
    }
}

impl IntoResponse for Problem {
    fn into_response(mut self) -> Response {
        let header = self.0.header.take();
        let body = serde_json::to_vec(&self).expect("numbers and texts can be written as JSON");
        let content_type = HeaderValue::from_static("application/problem+json");
        let mut response = (self.0.status, [(header::CONTENT_TYPE, content_type)], body).into_response();
        if let Some((name, value)) = header {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn as_number<S: serde::Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

#[cfg(test)]
mod tests {
    use super::{FieldError, Problem};

    #[test]
    fn a_problem_of_a_type_of_its_own_has_that_types_members() {
        let problem = Problem::unavailable("not yet")
            .with_type("urn:problem-type:test", "Test")
            .with_member("minVersion", 3);
        assert_eq!(
            serde_json::to_value(&problem).unwrap(),
            serde_json::json!({
                "type": "urn:problem-type:test",
                "title": "Test",
                "status": 503,
                "detail": "not yet",
                "minVersion": 3,
            })
        );
    }

    #[test]
    fn a_problem_names_every_wrong_field() {
        let wrong = |field: &'static str, message: &'static str| FieldError {
            field: field.into(),
            message: message.into(),
        };
        let problem = Problem::invalid(vec![
            wrong("name", "must be there"),
            wrong("status", "must be ACTIVE or INACTIVE"),
        ]);
        assert_eq!(
            serde_json::to_value(&problem).unwrap(),
            serde_json::json!({
                "type": "about:blank",
                "title": "Unprocessable Entity",
                "status": 422,
                "detail": "2 fields cannot be taken as they are",
                "errors": [
                    {"field": "name", "message": "must be there"},
                    {"field": "status", "message": "must be ACTIVE or INACTIVE"},
                ],
            })
        );
    }
}
