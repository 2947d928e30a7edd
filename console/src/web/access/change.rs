//! A form that changes something.

use std::str::FromStr;

use axum::Form;
use axum::extract::{FromRef, FromRequest, FromRequestParts as _, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::{Access, Session, Visitor};
use crate::web::notice::notice;

/// A form that an operator has sent from a page of ours. Whoever takes it as an argument needs no further check.
#[derive(Debug)]
pub struct Change {
    /// Who wants it.
    pub operator: Session,
    pub fields: Fields,
}

/// The fields of a form, without the one called `csrf`.
#[derive(Debug)]
pub struct Fields(Vec<(String, String)>);

/// Why a change is refused before anything is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no session.
    NotLoggedIn,
    /// The session is that of somebody who may only look.
    NotAnOperator,
    /// The form has no CSRF token, or another session's.
    NotOurForm,
    /// A field of the form is missing or wrong.
    Field(String),
}

impl Fields {
    /// The field's text without space around it; empty where there is none.
    #[must_use]
    pub fn text(&self, name: &str) -> &str {
        self.all(name).next().unwrap_or_default()
    }

    /// The texts of all fields of this name.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        let fields = self.0.iter().filter(move |(known, _)| known == name);
        fields.map(|(_, value)| value.trim())
    }

    /// The field as a value; `None` where it is empty or missing.
    ///
    /// # Errors
    /// It is no such value.
    pub fn parse<T: FromStr>(&self, name: &str) -> Result<Option<T>, Refusal> {
        let text = self.text(name);
        if text.is_empty() {
            return Ok(None);
        }
        let parsed = text.parse().map(Some);
        parsed.map_err(|_| Refusal::Field(format!("the field `{name}` has a value that cannot be used")))
    }

    /// Makes sure that the person has typed the name of what the change destroys.
    ///
    /// # Errors
    /// The field `confirm` is not this name.
    pub fn confirmed(&self, name: &str) -> Result<(), Refusal> {
        if self.text("confirm") == name {
            return Ok(());
        }
        Err(Refusal::Field(format!(
            "Type `{name}` to confirm. Go back, and send the form once more."
        )))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, text) = match self {
            Self::NotLoggedIn => (
                StatusCode::UNAUTHORIZED,
                "Log in first: every change needs a token.".to_owned(),
            ),
            Self::NotAnOperator => (StatusCode::FORBIDDEN, "Your token may look and not change.".to_owned()),
            Self::NotOurForm => (
                StatusCode::FORBIDDEN,
                "The form is not of this session. Go back, load the page again, and send the form once more."
                    .to_owned(),
            ),
            Self::Field(what) => (StatusCode::UNPROCESSABLE_ENTITY, what),
        };
        notice(status, "Nothing is changed", &text)
    }
}

impl<S> FromRequest<S> for Change
where
    S: Send + Sync,
    Access: FromRef<S>,
{
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let (mut parts, body) = request.into_parts();
        let Ok(Visitor(session)) = Visitor::from_request_parts(&mut parts, state).await;
        let operator = session.ok_or(Refusal::NotLoggedIn)?;
        if !Access::may_change(&operator) {
            return Err(Refusal::NotAnOperator);
        }
        let request = Request::from_parts(parts, body);
        let Form(mut fields) = Form::<Vec<(String, String)>>::from_request(request, state)
            .await
            .map_err(|err| Refusal::Field(err.body_text()))?;
        let is_ours = |(name, value): &(String, String)| name == "csrf" && is_equal(value, &operator.csrf);
        if !fields.iter().any(is_ours) {
            return Err(Refusal::NotOurForm);
        }
        fields.retain(|(name, _)| name != "csrf");
        Ok(Self {
            operator,
            fields: Fields(fields),
        })
    }
}

/// Compares without telling by its time where the first difference is.
fn is_equal(given: &str, expected: &str) -> bool {
    given.len() == expected.len() && given.bytes().zip(expected.bytes()).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::{Fields, Refusal, is_equal};

    #[test]
    fn fields_are_read_by_name() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let fields = Fields(vec![
            pair("id", " 7 "),
            pair("id", "8"),
            pair("confirm", "user_view"),
            pair("n", "x"),
        ]);
        assert_eq!(fields.parse::<i64>("id"), Ok(Some(7)));
        assert_eq!(fields.all("id").collect::<Vec<_>>(), ["7", "8"]);
        assert_eq!(fields.parse::<i64>("other"), Ok(None));
        assert!(matches!(fields.parse::<i64>("n"), Err(Refusal::Field(what)) if what.contains("`n`")));
        assert_eq!(fields.confirmed("user_view"), Ok(()));
        assert!(fields.confirmed("user_vie").is_err());
    }

    #[test]
    fn tokens_are_equal_only_as_a_whole() {
        assert!(is_equal("abc", "abc"));
        assert!(!is_equal("abd", "abc") && !is_equal("ab", "abc") && !is_equal("", "abc"));
    }
}
