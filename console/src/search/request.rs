//! What a person asks for: the fields of the form on the page of events, checked.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use events::Position;
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::filter::{Field, Filter};
use crate::settings::mask::Mask;

/// So many records are shown if nothing is said.
pub const COUNT_DEFAULT: usize = 50;
/// A page shows so many records at most.
pub const COUNT_MAX: usize = 500;
/// A search looks for so long if nothing is said.
pub const SECONDS_DEFAULT: u64 = 3;
/// A search looks for so long at most. It says how far it looked, and can go on from there.
pub const SECONDS_MAX: u64 = 30;

/// The fields as they were typed. An empty one says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Form {
    pub topic: String,
    pub key: String,
    pub id: String,
    /// `NAME=VALUE`.
    pub header: String,
    /// `PATH=VALUE`.
    pub field: String,
    /// A time, or how long ago.
    pub from: String,
    pub partition: String,
    pub offset: String,
    /// `LSN` or `LSN:INDEX`.
    pub position: String,
    /// `newest` or `oldest`.
    pub order: String,
    pub n: String,
    pub seconds: String,
    /// A [`Cursor`]: where an earlier search stopped.
    pub at: String,
}

/// A search, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub topic: String,
    /// Only this partition.
    pub partition: Option<i32>,
    pub filter: Filter,
    pub start: Start,
    pub order: Order,
    /// Stop after so many.
    pub count: usize,
    pub time_limit: Duration,
    pub cursor: Option<Cursor>,
}

/// Where the records that are looked at begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the topic's first record.
    Beginning,
    /// At the first record of this time or later: milliseconds since 1970.
    Time(i64),
    /// In each partition that is looked at.
    Offset(i64),
    /// At the first record of this place in the source's write-ahead log, or above it.
    Position { commit_lsn: u64, index: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    NewestFirst,
    OldestFirst,
}

/// Where a search stopped: of each partition, the offset where the next one goes on. With the newest first it lies behind the first record to look at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor(pub BTreeMap<i32, i64>);

impl Form {
    /// Checks the fields. `topics`: those that may be searched, of which the first is searched if none is named. `now`: for times that are given as an age.
    ///
    /// # Errors
    /// Says of each wrong field what would be right.
    pub fn check(&self, topics: &[&str], mask: &Mask, now: OffsetDateTime) -> Result<Request, Vec<String>> {
        let mut wrong = Vec::new();
        let mut note = |field: &str, what: String| wrong.push(format!("{field}: {what}"));
        let topic = match given(&self.topic) {
            None => topics.first().map_or_else(String::new, |topic| (*topic).to_owned()),
            Some(topic) if topics.contains(&topic) => topic.to_owned(),
            Some(_) => {
                note("Topic", format!("expected one of {}", topics.join(", ")));
                String::new()
            }
        };
        let header = given(&self.header).and_then(|text| match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => Some((name.to_owned(), value.to_owned())),
            _ => {
                note(
                    "Header",
                    "expected NAME=VALUE, such as eventType=USER_CREATED".to_owned(),
                );
                None
            }
        });
        let field = given(&self.field).and_then(|text| match Field::parse(text, mask) {
            Ok(field) => Some(field),
            Err(what) => {
                note("Field", what);
                None
            }
        });
        let mut starts = Vec::new();
        if let Some(text) = given(&self.from) {
            match time_of(text, now) {
                Ok(time_ms) => starts.push(Start::Time(time_ms)),
                Err(what) => note("From", what),
            }
        }
        if let Some(text) = given(&self.offset) {
            match text.parse::<u32>().map(i64::from).or_else(|_| text.parse::<i64>()) {
                Ok(offset) if offset >= 0 => starts.push(Start::Offset(offset)),
                _ => note("Offset", "expected a number from 0".to_owned()),
            }
        }
        if let Some(text) = given(&self.position) {
            match position_of(text) {
                Some((commit_lsn, index)) => starts.push(Start::Position { commit_lsn, index }),
                None => note(
                    "Position",
                    "expected an LSN or LSN:INDEX, such as 16/B374D848:0".to_owned(),
                ),
            }
        }
        if starts.len() > 1 {
            note("From, offset, position", "give one of them, to begin there".to_owned());
        }
        let start = starts.first().copied().unwrap_or(Start::Beginning);
        let order = match given(&self.order) {
            // Who names a place wants to see what stands there.
            None if matches!(start, Start::Offset(_) | Start::Position { .. }) => Order::OldestFirst,
            None | Some("newest") => Order::NewestFirst,
            Some("oldest") => Order::OldestFirst,
            Some(_) => {
                note("Order", "expected newest or oldest".to_owned());
                Order::NewestFirst
            }
        };
        let partition = number(&self.partition, 0, i32::MAX as u64, &mut |what| note("Partition", what));
        let count = number(&self.n, 1, COUNT_MAX as u64, &mut |what| note("Stop after", what));
        let seconds = number(&self.seconds, 1, SECONDS_MAX, &mut |what| note("Seconds", what));
        let cursor = given(&self.at).and_then(|text| match text.parse() {
            Ok(cursor) => Some(cursor),
            Err(()) => {
                note("at", "expected PARTITION:OFFSET separated by commas".to_owned());
                None
            }
        });
        if !wrong.is_empty() {
            return Err(wrong);
        }
        Ok(Request {
            topic,
            partition: partition.and_then(|number| i32::try_from(number).ok()),
            filter: Filter {
                key: given(&self.key).map(|key| key.as_bytes().to_vec()),
                id: given(&self.id).map(str::to_owned),
                header,
                field,
            },
            start,
            order,
            count: count
                .and_then(|count| usize::try_from(count).ok())
                .unwrap_or(COUNT_DEFAULT),
            time_limit: Duration::from_secs(seconds.unwrap_or(SECONDS_DEFAULT)),
            cursor,
        })
    }
}

fn given(text: &str) -> Option<&str> {
    let text = text.trim();
    (!text.is_empty()).then_some(text)
}

fn number(text: &str, min: u64, max: u64, wrong: &mut dyn FnMut(String)) -> Option<u64> {
    let text = given(text)?;
    match text.parse() {
        Ok(number) if (min..=max).contains(&number) => Some(number),
        _ => {
            wrong(format!("expected a number from {min} to {max}"));
            None
        }
    }
}

/// Milliseconds since 1970 of `2026-11-25T08:00:00Z`, `2026-11-25 08:00` (UTC), or an age such as `15m`, `2h`, `3d`.
fn time_of(text: &str, now: OffsetDateTime) -> Result<i64, String> {
    let wrong = || {
        "expected a time such as 2026-11-25T08:00:00Z or 2026-11-25 08:00 (UTC), or an age such as 15m, 2h or 3d"
            .to_owned()
    };
    let now_ms = i64::try_from(now.unix_timestamp_nanos() / 1_000_000).map_err(|_| wrong())?;
    if let Some((number, unit_ms)) = age_of(text) {
        return number
            .checked_mul(unit_ms)
            .map(|age_ms| now_ms - age_ms)
            .ok_or_else(wrong);
    }
    let mut text = text.replacen(' ', "T", 1);
    if text.len() == "2026-11-25T08:00".len() {
        text.push_str(":00");
    }
    let has_zone = text.ends_with(['Z', 'z']) || text.get(19..).is_some_and(|rest| rest.contains(['+', '-']));
    if !has_zone {
        text.push('Z');
    }
    let time = OffsetDateTime::parse(&text, &Rfc3339).map_err(|_| wrong())?;
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).map_err(|_| wrong())
}

fn age_of(text: &str) -> Option<(i64, i64)> {
    let unit_ms = match text.chars().last()? {
        's' => 1_000,
        'm' => 60_000,
        'h' => 3_600_000,
        'd' => 86_400_000,
        _ => return None,
    };
    let number: i64 = text[..text.len() - 1].trim().parse().ok()?;
    (number >= 0).then_some((number, unit_ms))
}

/// The commit LSN and index of `16/B374D848`, `16/B374D848:7`, or a whole header `position`.
fn position_of(text: &str) -> Option<(u64, u64)> {
    let whole = match text.split(':').count() {
        1 => format!("{text}:0:0"),
        2 => format!("{text}:0"),
        _ => text.to_owned(),
    };
    let position: Position = whole.parse().ok()?;
    Some((position.commit_lsn, position.index))
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (partition, offset)) in self.0.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            write!(f, "{comma}{partition}:{offset}")?;
        }
        Ok(())
    }
}

impl FromStr for Cursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let pair = |pair: &str| {
            let (partition, offset) = pair.split_once(':').ok_or(())?;
            let (partition, offset) = (partition.parse().map_err(|_| ())?, offset.parse().map_err(|_| ())?);
            if partition < 0 || offset < 0 {
                Err(())
            } else {
                Ok((partition, offset))
            }
        };
        text.split(',').map(pair).collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use time::OffsetDateTime;

    use super::{Cursor, Form, Order, Start};
    use crate::settings::mask::Mask;

    const TOPICS: [&str; 2] = ["user-events", "post-events"];

    fn now() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
    }

    fn check(form: &Form) -> Result<super::Request, Vec<String>> {
        form.check(&TOPICS, &Mask::parse(&["user.email".to_owned()]).unwrap(), now())
    }

    #[test]
    fn an_empty_form_asks_for_the_newest_records_of_the_first_topic() {
        let request = check(&Form::default()).unwrap();
        assert_eq!(
            (request.topic.as_str(), request.order, request.count),
            ("user-events", Order::NewestFirst, 50)
        );
        assert_eq!(
            (request.start, request.time_limit),
            (Start::Beginning, Duration::from_secs(3))
        );
        assert!(request.filter.is_empty());
    }

    #[test]
    fn a_time_is_one_with_a_zone_or_in_utc_or_an_age() {
        let start = |from: &str| {
            check(&Form {
                from: from.to_owned(),
                ..Form::default()
            })
            .map(|request| request.start)
        };
        let eight = Ok(Start::Time(1_795_593_600_000));
        assert_eq!(start("2026-11-25T08:00:00Z"), eight);
        assert_eq!(start("2026-11-25 08:00"), eight);
        assert_eq!(start("2026-11-25T08:00:00"), eight);
        assert_eq!(start("2026-11-25T09:00:00+01:00"), eight);
        assert_eq!(start("15m"), Ok(Start::Time(1_800_000_000_000 - 900_000)));
        for wrong in ["yesterday", "2026-13-01T00:00:00Z", "-5m", "m", "99999999999999999d"] {
            assert!(start(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_place_is_looked_at_from_there_on() {
        let form = Form {
            position: "16/B374D848:7".to_owned(),
            ..Form::default()
        };
        let request = check(&form).unwrap();
        let wanted = Start::Position {
            commit_lsn: 0x16_B374_D848,
            index: 7,
        };
        assert_eq!((request.start, request.order), (wanted, Order::OldestFirst));
        let form = Form {
            partition: "3".to_owned(),
            offset: "1000".to_owned(),
            ..Form::default()
        };
        let request = check(&form).unwrap();
        assert_eq!(
            (request.partition, request.start, request.order),
            (Some(3), Start::Offset(1_000), Order::OldestFirst)
        );
    }

    #[test]
    fn each_wrong_field_is_named() {
        let form = Form {
            topic: "secrets".to_owned(),
            header: "noequals".to_owned(),
            field: "user.email=a@b".to_owned(),
            from: "soon".to_owned(),
            partition: "-1".to_owned(),
            offset: "x".to_owned(),
            position: "7".to_owned(),
            order: "random".to_owned(),
            n: "501".to_owned(),
            seconds: "0".to_owned(),
            at: "1".to_owned(),
            ..Form::default()
        };
        let wrong = check(&form).unwrap_err();
        for field in [
            "Topic",
            "Header",
            "Field",
            "From",
            "Partition",
            "Offset",
            "Position",
            "Order",
            "Stop after",
            "Seconds",
            "at",
        ] {
            assert!(
                wrong.iter().any(|line| line.starts_with(&format!("{field}:"))),
                "{field}: {wrong:?}"
            );
        }
        let two = Form {
            from: "1h".to_owned(),
            offset: "7".to_owned(),
            ..Form::default()
        };
        assert_eq!(check(&two).unwrap_err().len(), 1);
    }

    #[test]
    fn a_cursor_survives_its_text() {
        let cursor = Cursor([(0, 17), (7, 4)].into());
        assert_eq!(cursor.to_string(), "0:17,7:4");
        assert_eq!("0:17,7:4".parse(), Ok(cursor));
        for wrong in ["", "0", "0:x", "0:-1", "-1:0"] {
            assert_eq!(wrong.parse::<Cursor>(), Err(()), "{wrong}");
        }
    }
}
