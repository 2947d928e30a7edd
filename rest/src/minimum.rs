//! `minVersion` and `wait` in the query of a read: which version the answer must have at least, and how long the client waits
//! for it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use percent_encoding::percent_decode_str;

use crate::Problem;

/// How long a read waits when it does not say.
const WAIT_DEFAULT_MS: u64 = 2000;
/// Longest wait that may be asked for.
const WAIT_MAX_MS: u64 = 10_000;
/// Most ids that a list may name. Each is looked up whenever the list is tried again.
const IDS_MAX: usize = 20;

/// What a read of one thing asks for: `?minVersion=N&wait=MILLISECONDS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MinVersion {
    /// At least this version; 0 where none was named, which everything has.
    pub version: i64,
    /// From the request's arrival.
    pub wait: Duration,
}

/// What a read of a list asks for: `?minVersion=ID:VERSION`, repeated or with commas between, and `wait` as in [`MinVersion`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MinVersions {
    /// Each of these ids, at most `IDS_MAX`, must be at least at this version. One that was named twice has the greater.
    pub versions: BTreeMap<i64, i64>,
    /// From the request's arrival.
    pub wait: Duration,
}

impl<S: Send + Sync> FromRequestParts<S> for MinVersion {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        one(parts.uri.query().unwrap_or_default())
    }
}

impl<S: Send + Sync> FromRequestParts<S> for MinVersions {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        many(parts.uri.query().unwrap_or_default())
    }
}

fn one(query: &str) -> Result<MinVersion, Problem> {
    let mut given = values(query, "minVersion");
    let version = match (given.next(), given.next()) {
        (None, _) => Some(0),
        (Some(text), None) => positive(&text),
        (Some(_), Some(_)) => None,
    };
    Ok(MinVersion {
        version: version.ok_or_else(|| {
            Problem::bad_request("minVersion must be one whole number from 1 to 9223372036854775807: the version alone")
        })?,
        wait: wait(query)?,
    })
}

fn many(query: &str) -> Result<MinVersions, Problem> {
    let mut versions = BTreeMap::new();
    for text in values(query, "minVersion") {
        for pair in text.split(',') {
            let (id, version) = pair
                .split_once(':')
                .and_then(|(id, version)| Some((positive(id)?, positive(version)?)))
                .ok_or_else(|| {
                    Problem::bad_request(
                        "minVersion must be ID:VERSION, like 7:3, two whole numbers from 1 to 9223372036854775807, \
                        since a list has many ids; several are separated by commas",
                    )
                })?;
            let least = versions.entry(id).or_insert(version);
            *least = version.max(*least);
            if versions.len() > IDS_MAX {
                return Err(Problem::bad_request(format!(
                    "minVersion must name at most {IDS_MAX} ids"
                )));
            }
        }
    }
    Ok(MinVersions {
        versions,
        wait: wait(query)?,
    })
}

fn wait(query: &str) -> Result<Duration, Problem> {
    let mut given = values(query, "wait");
    let wait_ms = match (given.next(), given.next()) {
        (None, _) => Some(WAIT_DEFAULT_MS),
        (Some(text), None) => digits(&text),
        (Some(_), Some(_)) => None,
    };
    match wait_ms {
        Some(wait_ms) if wait_ms <= WAIT_MAX_MS => Ok(Duration::from_millis(wait_ms)),
        _ => Err(Problem::bad_request(format!(
            "wait must be one whole number of milliseconds from 0 to {WAIT_MAX_MS}"
        ))),
    }
}

/// The values of `name`, percent-decoded. What is no UTF-8 is left as it came: no number is among that.
fn values<'q>(query: &'q str, name: &'static str) -> impl Iterator<Item = Cow<'q, str>> {
    query.split('&').filter_map(move |pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then(|| percent_decode_str(value).decode_utf8().unwrap_or(value.into()))
    })
}

fn positive(text: &str) -> Option<i64> {
    digits(text).filter(|number| *number > 0)
}

/// Decimal digits and no sign.
fn digits<T: std::str::FromStr>(text: &str) -> Option<T> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{many, one};

    #[test]
    fn one_version_is_asked_for_by_its_number() {
        let asked = |query| one(query).map(|asked| (asked.version, asked.wait)).unwrap();
        let ms = Duration::from_millis;
        assert_eq!(asked(""), (0, ms(2000)));
        assert_eq!(asked("x=1&minVersion=3"), (3, ms(2000)));
        assert_eq!(asked("wait=0&minVersion=9223372036854775807"), (i64::MAX, ms(0)));
        assert_eq!(asked("minVersion=%33&wait=10000"), (3, ms(10_000)));
    }

    #[test]
    fn a_list_asks_for_ids_with_their_versions() {
        let asked = |query| many(query).unwrap().versions.into_iter().collect::<Vec<_>>();
        assert_eq!(asked("limit=1"), []);
        assert_eq!(asked("minVersion=7:3"), [(7, 3)]);
        assert_eq!(
            asked("minVersion=7:3,1:2&minVersion=9%3A9%2C8%3A1"),
            [(1, 2), (7, 3), (8, 1), (9, 9)]
        );
        assert_eq!(asked("minVersion=7:3,7:5,7:4"), [(7, 5)]);
        let twenty: Vec<_> = (1..=20).map(|id| format!("{id}:1")).collect();
        assert_eq!(asked(&format!("minVersion={}", twenty.join(","))).len(), 20);
        let problem = many(&format!("minVersion={},21:1", twenty.join(","))).unwrap_err();
        assert!(problem.detail().contains("at most 20 ids"), "{problem:?}");
    }

    #[test]
    fn anything_else_is_refused_by_the_parameters_name() {
        for value in [
            "",
            "0",
            "-1",
            "+1",
            "1.0",
            "x",
            "1:1",
            "1,2",
            "9223372036854775808",
            "%FF",
            "1&minVersion=1",
        ] {
            let problem = one(&format!("minVersion={value}")).unwrap_err();
            assert_eq!(problem.status(), 400);
            assert!(
                problem.detail().starts_with("minVersion must be"),
                "{value}: {problem:?}"
            );
        }
        assert!(one("minVersion").is_err());
        for value in [
            "", "7", ":", "7:", ":3", "0:3", "7:0", "7:3,", "7:3:1", "a:b", "7:3;8:1", "7: 3", "-7:3",
        ] {
            let problem = many(&format!("minVersion={value}")).unwrap_err();
            assert_eq!(problem.status(), 400);
            assert!(
                problem.detail().starts_with("minVersion must be ID:VERSION"),
                "{value}: {problem:?}"
            );
        }
        for value in ["", "-1", "10001", "1s", "1.5", "1&wait=1"] {
            for problem in [
                one(&format!("wait={value}")).unwrap_err(),
                many(&format!("wait={value}")).unwrap_err(),
            ] {
                assert_eq!(problem.status(), 400);
                assert!(problem.detail().starts_with("wait must be"), "{value}: {problem:?}");
            }
        }
    }
}
