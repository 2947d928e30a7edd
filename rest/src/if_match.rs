//! `If-Match` of a change (RFC 9110, section 13.1.1): which state of the thing the client has seen. The change is made only to that state, so that
//! the client overwrites no other.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};

use crate::Problem;

/// The change is made only if the thing has one of these versions. `None`: it may have any version.
///
/// An entity tag is `"VERSION"` or `"VERSION.MORE"`. What is behind the point stands for other things that the answer shows. The change neither reads
/// nor writes them, so only the version is compared. Any other tag, also a weak one, matches no version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IfMatch(pub Option<Vec<i64>>);

impl IfMatch {
    /// 412: the thing exists, but has none of the versions. `tag` is its entity tag now.
    #[must_use]
    pub fn failed(tag: &str, version: i64) -> Problem {
        let problem = Problem::new(
            StatusCode::PRECONDITION_FAILED,
            format!("somebody has changed it since: it is at version {version}; nothing was changed now"),
        )
        .with_type("urn:problem-type:version-changed", "Version Changed")
        .with_member("version", version);
        match HeaderValue::try_from(format!("\"{tag}\"")) {
            Ok(tag) => problem.with_header(header::ETAG, tag),
            Err(_) => problem,
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for IfMatch {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let mut versions = None;
        for line in parts.headers.get_all(header::IF_MATCH) {
            match line.to_str().map(str::trim) {
                Ok("*") => return Ok(Self(None)),
                Ok(line) => versions.get_or_insert_with(Vec::new).extend(
                    split_tags(line)
                        .ok_or_else(malformed)?
                        .into_iter()
                        .filter_map(version_of),
                ),
                Err(_) => return Err(malformed()),
            }
        }
        Ok(Self(versions))
    }
}

fn malformed() -> Problem {
    Problem::bad_request("If-Match must be entity tags as answers have them, like \"3\", with commas between, or *")
}

/// The entity tags of a list, with their quotes.
fn split_tags(line: &str) -> Option<Vec<&str>> {
    let mut tags = Vec::new();
    let mut rest = line;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            return (!tags.is_empty()).then_some(tags);
        }
        let opaque = rest.strip_prefix("W/").unwrap_or(rest).strip_prefix('"')?;
        let end = rest.len() - opaque.len() + opaque.find('"')? + 1;
        tags.push(&rest[..end]);
        rest = rest[end..].trim_start_matches([' ', '\t']);
        if !rest.is_empty() && !rest.starts_with(',') {
            return None;
        }
    }
}

fn version_of(tag: &str) -> Option<i64> {
    let opaque = tag.strip_prefix('"')?.strip_suffix('"')?;
    let version = opaque.split_once('.').map_or(opaque, |(version, _)| version);
    let is_number = version.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| version.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use axum::extract::FromRequestParts;
    use axum::http::Request;

    use super::IfMatch;

    async fn parsed(lines: &[&str]) -> Option<Option<Vec<i64>>> {
        let request = lines
            .iter()
            .fold(Request::builder(), |request, line| request.header("if-match", *line));
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        let asked = IfMatch::from_request_parts(&mut parts, &()).await;
        asked.ok().map(|IfMatch(versions)| versions)
    }

    #[tokio::test]
    async fn tags_name_versions_and_a_star_names_any() {
        assert_eq!(parsed(&[]).await, Some(None));
        assert_eq!(parsed(&["*"]).await, Some(None));
        assert_eq!(parsed(&["\"3\""]).await, Some(Some(vec![3])));
        assert_eq!(parsed(&["\"3.17\" ,\"4\"", "\"5\""]).await, Some(Some(vec![3, 4, 5])));
        // Tags that match no version.
        assert_eq!(
            parsed(&["W/\"3\", \"a,b\", \"-1\", \"+1\", \"\""]).await,
            Some(Some(vec![]))
        );
        for malformed in ["", "3", "\"3", "\"3\" \"4\"", "* , \"3\"", "w/\"3\""] {
            assert_eq!(parsed(&[malformed]).await, None, "{malformed}");
        }
    }
}
