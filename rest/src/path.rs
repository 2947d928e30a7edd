//! Reads ids and names out of a request's path.

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use percent_encoding::percent_decode_str;

use crate::Problem;

/// An id as the path's only parameter, in decimal digits. A negative number is accepted too. No row has it, so the answer is 404.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id(pub i64);

/// A name as the path's only parameter, percent-decoded; it may contain a slash (`%2F`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Segment(text) = Segment::from_request_parts(parts, state).await?;
        parse_id(&text).map(Self)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| Problem::bad_request("the path must be UTF-8"))?;
        Ok(Self(text))
    }
}

fn parse_id(text: &str) -> Result<i64, Problem> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Problem::bad_request("an id must be decimal digits"));
    }
    text.parse()
        .map_err(|_| Problem::bad_request("an id must be at most 9223372036854775807"))
}

/// Checks a path's percent-encoding: each `%` has its two digits, and the decoded path is UTF-8 without NUL, since no text in the database can
/// contain NUL.
pub(crate) fn check_encoding(path: &str) -> Result<(), Problem> {
    if !path.contains('%') {
        return Ok(());
    }
    let mut rest = path;
    while let Some((_, after)) = rest.split_once('%') {
        match after.as_bytes() {
            [b'0', b'0', ..] => {
                return Err(Problem::bad_request("the path must not contain NUL (%00)"));
            }
            [high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => rest = after,
            _ => {
                return Err(Problem::bad_request(
                    "a % in the path must be followed by two hexadecimal digits",
                ));
            }
        }
    }
    if percent_decode_str(path).decode_utf8().is_err() {
        return Err(Problem::bad_request("the path must be UTF-8 after percent-decoding"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{check_encoding, parse_id};

    #[test]
    fn an_id_is_digits() {
        for (text, id) in [("1", 1), ("01", 1), ("0", 0), ("-1", -1)] {
            assert_eq!(parse_id(text).unwrap(), id);
        }
        assert_eq!(parse_id("9223372036854775807").unwrap(), i64::MAX);
        for text in [
            "",
            "-",
            "abc",
            "1.0",
            " 1",
            "1 ",
            "+1",
            "0x1",
            "1;v=2",
            "이",
            "١",
            "9223372036854775808",
            "--1",
        ] {
            assert_eq!(parse_id(text).unwrap_err().status(), 400, "{text}");
        }
    }

    #[test]
    fn a_path_is_utf8_without_nul() {
        for path in ["/a", "/개발팀", "/%EA%B0%9C", "/R%2FD", "/100%25", "/%25zz"] {
            assert!(check_encoding(path).is_ok(), "{path}");
        }
        for path in ["/%", "/%4", "/%zz", "/%00", "/a%00b", "/%FF", "/%EA%B0"] {
            assert_eq!(check_encoding(path).unwrap_err().status(), 400, "{path}");
        }
    }
}
