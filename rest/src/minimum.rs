//! `minVersion` and `wait` in the query of a read: which version the answer must have at least, and how long the client waits
//! for it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use percent_encoding::percent_decode_str;

use crate::Problem;

/// How long a read waits if its query has no `wait`.
const WAIT_DEFAULT_MS: u64 = 2000;
/// A client may ask for a wait of this length, at most.
const WAIT_MAX_MS: u64 = 10_000;
/// A read of a list may name so many ids, at most. All of them are looked up again at each try.
const IDS_MAX: usize = 20;

/// What a read of one thing asks for: `?minVersion=N&wait=MILLISECONDS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MinVersion {
    /// At least this version. 0 if the query names none: every version is at least 0.
    pub version: i64,
    /// How long to wait, from the arrival of the request on.
    pub wait: Duration,
}

/// What a read of a list asks for: `?minVersion=ID:VERSION`, repeated or with commas between, and `wait` as in [`MinVersion`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MinVersions {
    /// By id: the version that it must have at least. At most `IDS_MAX` ids. If the query names an id twice, the greater version counts.
    pub versions: BTreeMap<i64, i64>,
    /// How long to wait, from the arrival of the request on.
    pub wait: Duration,
}

impl<S: Send + Sync> FromRequestParts<S> for MinVersion {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parse_one(parts.uri.query().unwrap_or_default())
    }
}

impl<S: Send + Sync> FromRequestParts<S> for MinVersions {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parse_many(parts.uri.query().unwrap_or_default())
    }
}

fn parse_one(query: &str) -> Result<MinVersion, Problem> {
    let mut values = values_of(query, "minVersion");
    let version = match (values.next(), values.next()) {
        (None, _) => Some(0),
        (Some(text), None) => parse_positive(&text),
        (Some(_), Some(_)) => None,
    };
    Ok(MinVersion {
        version: version.ok_or_else(|| {
            Problem::bad_request("minVersion must be one whole number from 1 to 9223372036854775807: the version alone")
        })?,
        wait: parse_wait(query)?,
    })
}

fn parse_many(query: &str) -> Result<MinVersions, Problem> {
    let mut versions = BTreeMap::new();
    for text in values_of(query, "minVersion") {
        for pair in text.split(',') {
            let (id, version) = pair
                .split_once(':')
                .and_then(|(id, version)| Some((parse_positive(id)?, parse_positive(version)?)))
                .ok_or_else(|| {
                    Problem::bad_request(
                        "minVersion must be ID:VERSION, like 7:3, two whole numbers from 1 to 9223372036854775807, \
                        since a list has many ids; several are separated by commas",
                    )
                })?;
            let version_of_id = versions.entry(id).or_insert(version);
            *version_of_id = version.max(*version_of_id);
            if versions.len() > IDS_MAX {
                return Err(Problem::bad_request(format!(
                    "minVersion must name at most {IDS_MAX} ids"
                )));
            }
        }
    }
    Ok(MinVersions {
        versions,
        wait: parse_wait(query)?,
    })
}

fn parse_wait(query: &str) -> Result<Duration, Problem> {
    let mut values = values_of(query, "wait");
    let wait_ms = match (values.next(), values.next()) {
        (None, _) => Some(WAIT_DEFAULT_MS),
        (Some(text), None) => parse_digits(&text),
        (Some(_), Some(_)) => None,
    };
    match wait_ms {
        Some(wait_ms) if wait_ms <= WAIT_MAX_MS => Ok(Duration::from_millis(wait_ms)),
        _ => Err(Problem::bad_request(format!(
            "wait must be one whole number of milliseconds from 0 to {WAIT_MAX_MS}"
        ))),
    }
}

/// All values of the parameter `name`, percent-decoded. A value that is not UTF-8 is not decoded. It is no number either way.
fn values_of<'q>(query: &'q str, name: &'static str) -> impl Iterator<Item = Cow<'q, str>> {
    query.split('&').filter_map(move |pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then(|| percent_decode_str(value).decode_utf8().unwrap_or(value.into()))
    })
}

/// A whole number that is greater than 0.
fn parse_positive(text: &str) -> Option<i64> {
    parse_digits(text).filter(|number| *number > 0)
}

/// A number that is written in decimal digits, without a sign.
fn parse_digits<T: std::str::FromStr>(text: &str) -> Option<T> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{parse_many, parse_one};

    #[test]
    fn one_version_is_asked_for_by_its_number() {
        let asked = |query| parse_one(query).map(|asked| (asked.version, asked.wait)).unwrap();
        let ms = Duration::from_millis;
        assert_eq!(asked(""), (0, ms(2000)));
        assert_eq!(asked("x=1&minVersion=3"), (3, ms(2000)));
        assert_eq!(asked("wait=0&minVersion=9223372036854775807"), (i64::MAX, ms(0)));
        assert_eq!(asked("minVersion=%33&wait=10000"), (3, ms(10_000)));
    }

    #[test]
    fn a_list_asks_for_ids_with_their_versions() {
        let asked = |query| parse_many(query).unwrap().versions.into_iter().collect::<Vec<_>>();
        assert_eq!(asked("limit=1"), []);
        assert_eq!(asked("minVersion=7:3"), [(7, 3)]);
        assert_eq!(
            asked("minVersion=7:3,1:2&minVersion=9%3A9%2C8%3A1"),
            [(1, 2), (7, 3), (8, 1), (9, 9)]
        );
        assert_eq!(asked("minVersion=7:3,7:5,7:4"), [(7, 5)]);
        let twenty: Vec<_> = (1..=20).map(|id| format!("{id}:1")).collect();
        assert_eq!(asked(&format!("minVersion={}", twenty.join(","))).len(), 20);
        let problem = parse_many(&format!("minVersion={},21:1", twenty.join(","))).unwrap_err();
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
            let problem = parse_one(&format!("minVersion={value}")).unwrap_err();
            assert_eq!(problem.status(), 400);
            assert!(
                problem.detail().starts_with("minVersion must be"),
                "{value}: {problem:?}"
            );
        }
        assert!(parse_one("minVersion").is_err());
        for value in [
            "", "7", ":", "7:", ":3", "0:3", "7:0", "7:3,", "7:3:1", "a:b", "7:3;8:1", "7: 3", "-7:3",
        ] {
            let problem = parse_many(&format!("minVersion={value}")).unwrap_err();
            assert_eq!(problem.status(), 400);
            assert!(
                problem.detail().starts_with("minVersion must be ID:VERSION"),
                "{value}: {problem:?}"
            );
        }
        for value in ["", "-1", "10001", "1s", "1.5", "1&wait=1"] {
            for problem in [
                parse_one(&format!("wait={value}")).unwrap_err(),
                parse_many(&format!("wait={value}")).unwrap_err(),
            ] {
                assert_eq!(problem.status(), 400);
                assert!(problem.detail().starts_with("wait must be"), "{value}: {problem:?}");
            }
        }
    }
}
