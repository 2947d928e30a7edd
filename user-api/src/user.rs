//! What a client may say about a user.

use rest::{Fields, Object, Problem};

/// A name, an e-mail address and a department have at most this many characters. This is the width of their columns.
const TEXT_MAX_CHARS: usize = 255;

/// A user as a request describes it, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UserInput {
    pub(crate) name: String,
    pub(crate) email: String,
    /// None: the user belongs to no department.
    pub(crate) department: Option<String>,
    /// `ACTIVE` or `INACTIVE`.
    pub(crate) status: String,
}

impl UserInput {
    /// Reads the four fields that a client sets. `id`, `createdAt`, `updatedAt` and unknown fields are not looked at:
    /// clients send back what they were given.
    ///
    /// # Errors
    /// 422 naming every field that cannot be taken.
    pub(crate) fn parse(object: Object) -> Result<Self, Problem> {
        let mut fields = Fields::of(object);
        let user = Self {
            name: fields.text("name", TEXT_MAX_CHARS),
            email: fields.text_like("email", TEXT_MAX_CHARS, is_email, "must be like name@example.com"),
            department: fields.optional_text("department", TEXT_MAX_CHARS),
            status: fields.text_like("status", TEXT_MAX_CHARS, is_status, STATUS_RULE),
        };
        fields.check()?;
        Ok(user)
    }
}

/// Completes the sentence that starts with `status`.
pub(crate) const STATUS_RULE: &str = "must be ACTIVE or INACTIVE";

fn is_status(text: &str) -> bool {
    matches!(text, "ACTIVE" | "INACTIVE")
}

/// Whether the text has exactly one `@`, something before and behind it, and no blanks. Only a mail that arrives proves more.
fn is_email(text: &str) -> bool {
    text.split_once('@').is_some_and(|(local, domain)| {
        !local.is_empty()
            && !domain.is_empty()
            && !domain.contains('@')
            && !text.chars().any(|c| c.is_whitespace() || c.is_control())
    })
}

#[cfg(test)]
mod tests {
    use super::{is_email, is_status};

    #[test]
    fn an_email_has_one_at_sign_between_two_parts() {
        for yes in ["hong@example.com", "a@b", "이름@예시.한국", "o'neil+x@x.org"] {
            assert!(is_email(yes), "{yes}");
        }
        for no in ["hong", "@example.com", "hong@", "a@b@c", "a b@c", "a@b\n"] {
            assert!(!is_email(no), "{no}");
        }
    }

    #[test]
    fn a_status_is_written_exactly() {
        assert!(is_status("ACTIVE") && is_status("INACTIVE"));
        for no in ["active", "SUSPENDED", " ACTIVE", ""] {
            assert!(!is_status(no), "{no}");
        }
    }
}
