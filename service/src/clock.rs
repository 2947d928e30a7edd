//! This machine's clock. It is only for measurements and for display. Nothing is ordered by it.

use std::time::{SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Microseconds since 1970-01-01 UTC; 0 if the clock is set to an earlier time.
#[must_use]
pub fn now_us() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        // 63 bits hold the microseconds of 292,000 years.
        .map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// A time (microseconds since 1970) for people and scripts: RFC 3339 in UTC, in milliseconds, such as `2026-11-30T10:31:00.123Z`.
#[must_use]
pub fn rfc3339(us: i64) -> String {
    let ms = us.div_euclid(1_000);
    let moment = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000);
    let text = moment.ok().and_then(|moment| moment.format(&Rfc3339).ok());
    // A year has four digits: a later time is none that a clock shows.
    text.unwrap_or_else(|| "9999-12-31T23:59:59Z".to_owned())
}

#[cfg(test)]
mod tests {
    use super::rfc3339;

    #[test]
    fn a_time_is_told_in_utc_and_milliseconds() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_795_344_833_217_210), "2026-11-22T10:53:53.217Z");
        assert_eq!(rfc3339(i64::MAX), "9999-12-31T23:59:59Z");
    }
}
