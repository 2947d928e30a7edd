//! How figures and times are written. A figure has its unit, thousands have a space between, a time has its zone and how long ago it was.

use std::time::Duration;

use maud::{Markup, html};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A whole number: `12 345`. The space is a narrow one that does not break.
#[must_use]
pub fn count(number: impl TryInto<i128>) -> String {
    let number: i128 = number.try_into().unwrap_or(i128::MAX);
    let digits = number.unsigned_abs().to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    if number < 0 { format!("\u{2212}{text}") } else { text }
}

/// Bytes with a binary unit: `1.5 GB` is 1.5 × 2³⁰ bytes, as Postgres prints them.
#[must_use]
pub fn bytes(bytes: impl TryInto<i128>) -> String {
    let bytes: i128 = bytes.try_into().unwrap_or(i128::MAX);
    let units = ["bytes", "kB", "MB", "GB", "TB", "PB"];
    let mut unit = 0;
    let mut divisor: i128 = 1;
    while unit + 1 < units.len() && bytes.abs() >= divisor * 1024 {
        divisor *= 1024;
        unit += 1;
    }
    if unit == 0 {
        return format!("{} bytes", count(bytes));
    }
    let tenths = bytes * 10 / divisor;
    if tenths.abs() >= 1000 {
        format!("{} {}", count(tenths / 10), units[unit])
    } else {
        format!("{}.{} {}", tenths / 10, (tenths % 10).abs(), units[unit])
    }
}

/// A length of time: `0.4 s`, `12 s`, `3 min`, `5 h`, `2 days`.
#[must_use]
pub fn seconds(seconds: f64) -> String {
    let seconds = seconds.max(0.0);
    match seconds {
        s if s < 0.05 => "0 s".to_owned(),
        s if s < 9.95 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7_200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3_600.0),
        s => format!("{:.0} days", s / 86_400.0),
    }
}

/// As [`seconds`].
#[must_use]
pub fn duration(time: Duration) -> String {
    seconds(time.as_secs_f64())
}

/// A rate: `0.3/s`, `1 200/s`.
#[must_use]
pub fn rate(per_second: f64) -> String {
    if per_second < 9.95 {
        format!("{:.1}/s", per_second.max(0.0))
    } else {
        let whole = per_second.round() as i64;
        format!("{}/s", count(whole))
    }
}

/// A moment with its zone and how long ago it was, as `2026-11-30 10:15:02 UTC (12 s ago)`.
#[must_use]
pub fn moment(at: OffsetDateTime) -> Markup {
    let at = at.to_offset(time::UtcOffset::UTC);
    let machine = at.replace_nanosecond(at.millisecond() as u32 * 1_000_000).unwrap_or(at);
    let machine = machine.format(&Rfc3339).unwrap_or_default();
    let ago = (OffsetDateTime::now_utc() - at).as_seconds_f64();
    html! {
        time datetime=(machine) {
            (at.date()) " " (clock(at)) " UTC "
            span.ago { "(" (ago_text(ago)) ")" }
        }
    }
}

/// How long ago a moment was, with the moment itself for whoever points at it.
#[must_use]
pub fn ago(at: OffsetDateTime) -> Markup {
    let at = at.to_offset(time::UtcOffset::UTC);
    let machine = at.format(&Rfc3339).unwrap_or_default();
    let ago = (OffsetDateTime::now_utc() - at).as_seconds_f64();
    html! { time datetime=(machine) title=(format!("{} {} UTC", at.date(), clock(at))) { (ago_text(ago)) } }
}

fn clock(at: OffsetDateTime) -> String {
    format!("{:02}:{:02}:{:02}", at.hour(), at.minute(), at.second())
}

fn ago_text(ago: f64) -> String {
    if ago < -1.0 {
        format!("in {}", seconds(-ago))
    } else {
        format!("{} ago", seconds(ago))
    }
}

/// A moment of microseconds since 1970, as headers and metrics have it.
#[must_use]
pub fn moment_of_us(us: i64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(us) * 1_000).ok()
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::{ago, bytes, count, moment, rate, seconds};

    #[test]
    fn thousands_have_a_space_between() {
        let texts = [0, 7, 999, 1_000, 12_345, 1_234_567, -1_000].map(|number: i64| count(number));
        assert_eq!(
            texts,
            [
                "0",
                "7",
                "999",
                "1\u{202f}000",
                "12\u{202f}345",
                "1\u{202f}234\u{202f}567",
                "\u{2212}1\u{202f}000"
            ]
        );
    }

    #[test]
    fn bytes_have_the_largest_unit_of_which_there_is_one() {
        let texts = [0, 1_023, 1_024, 1_536, 1 << 20, 107_374_182_400, 3 << 40].map(|number: i64| bytes(number));
        assert_eq!(
            texts,
            [
                "0 bytes",
                "1\u{202f}023 bytes",
                "1.0 kB",
                "1.5 kB",
                "1.0 MB",
                "100 GB",
                "3.0 TB"
            ]
        );
    }

    #[test]
    fn times_have_a_unit_that_people_would_choose() {
        let texts = [0.0, 0.04, 0.4, 9.9, 12.3, 119.0, 180.0, 7_300.0, 200_000.0].map(seconds);
        assert_eq!(
            texts,
            [
                "0 s", "0 s", "0.4 s", "9.9 s", "12 s", "119 s", "3 min", "2 h", "2 days"
            ]
        );
        assert_eq!(
            [0.0, 0.34, 9.96, 1_200.4].map(rate),
            ["0.0/s", "0.3/s", "10/s", "1\u{202f}200/s"]
        );
    }

    #[test]
    fn a_moment_has_its_zone_and_how_long_ago_it_was() {
        let at = OffsetDateTime::now_utc() - std::time::Duration::from_secs(12);
        let shown = moment(at).into_string();
        assert!(
            shown.contains(" UTC ") && shown.contains("(12 s ago)") && shown.contains("datetime=\"20"),
            "{shown}"
        );
        assert!(ago(at).into_string().contains(">12 s ago<"));
    }
}
