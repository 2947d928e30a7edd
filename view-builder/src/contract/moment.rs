//! Checks the date-times in events.

/// Whether `text` is an ISO 8601 date-time that a view can take, such as `2026-11-22T10:53:53.21721`. The year is from 0001 to 9999. Seconds are
/// optional, and so is their fraction of up to 9 digits. At the end there may be a `Z` or an offset (`+09:00`).
///
/// It is checked here, since Postgres takes more (`now`, `infinity`, `tomorrow`), and since it refuses a whole batch for one date such as the 30th
/// of February.
#[must_use]
pub fn is_moment(text: &str) -> bool {
    check_date_time(text.as_bytes()).is_some()
}

/// `Some` if `text` is such a date-time.
fn check_date_time(text: &[u8]) -> Option<()> {
    let (date, time) = (text.get(..10)?, text.get(11..)?);
    if date[4] != b'-' || date[7] != b'-' || !matches!(text[10], b'T' | b' ') {
        return None;
    }
    let (year, month, day) = (
        parse_digits(&date[..4])?,
        parse_digits(&date[5..7])?,
        parse_digits(&date[8..])?,
    );
    if year == 0 || !(1..=12).contains(&month) || day == 0 || day > days_in_month(year, month) {
        return None;
    }
    let zone = time
        .iter()
        .position(|&byte| matches!(byte, b'Z' | b'+' | b'-'))
        .unwrap_or(time.len());
    check_time(&time[..zone])?;
    check_zone(&time[zone..])
}

/// `Some` if `text` is `hh:mm`, `hh:mm:ss` or `hh:mm:ss.fraction`.
fn check_time(text: &[u8]) -> Option<()> {
    let minutes = text.get(..5)?;
    if minutes[2] != b':' || parse_digits(&minutes[..2])? > 23 || parse_digits(&minutes[3..])? > 59 {
        return None;
    }
    let Some((b':', seconds)) = text[5..].split_first() else {
        return text[5..].is_empty().then_some(());
    };
    if parse_digits(seconds.get(..2)?)? > 59 {
        return None;
    }
    match seconds[2..].split_first() {
        None => Some(()),
        Some((b'.', fraction)) if fraction.len() <= 9 => parse_digits(fraction).map(|_| ()),
        Some(_) => None,
    }
}

/// `Some` if `text` is empty, `Z`, `+hh`, `+hhmm` or `+hh:mm` (or the same with `-`). Postgres takes offsets up to 15:59.
fn check_zone(text: &[u8]) -> Option<()> {
    match text {
        [] | [b'Z'] => return Some(()),
        [b'+' | b'-', ..] => {}
        _ => return None,
    }
    let (hours, minutes) = match text.len() {
        3 => (&text[1..3], &b"00"[..]),
        5 => (&text[1..3], &text[3..5]),
        6 if text[3] == b':' => (&text[1..3], &text[4..6]),
        _ => return None,
    };
    (parse_digits(hours)? <= 15 && parse_digits(minutes)? <= 59).then_some(())
}

fn parse_digits(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0, |sum: u32, digit| {
        digit.is_ascii_digit().then(|| sum * 10 + u32::from(digit - b'0'))
    })
}

fn days_in_month(year: u32, month: u32) -> u32 {
    match month {
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::is_moment;

    #[test]
    fn takes_what_the_events_of_both_systems_carry() {
        for text in [
            "2026-11-22T10:53:53.217210451",
            "2026-11-22T10:53:53.21721",
            "2026-11-22T10:53:53",
            "2026-11-22T10:53",
            "2024-02-29 00:00:00",
            "2025-01-01T00:00:00Z",
            "2025-01-01T00:00:00.5+09:00",
            "2025-01-01T00:00:00-0330",
        ] {
            assert!(is_moment(text), "{text}");
        }
    }

    #[test]
    fn refuses_what_postgres_would_refuse_or_take_for_something_else() {
        for text in [
            "",
            "now",
            "infinity",
            "2026-11-22",
            "2026-11-22T",
            "2025-02-29T00:00:00",
            "2025-13-01T00:00:00",
            "2025-01-01T24:00:00",
            "2025-01-01T00:00:60",
            "2025-01-01T00:00:00Z09",
            "2025-01-01T00:00:00Z09:00",
            "2025-01-01T00:00:00.",
            "2025-01-01T00:00:00.1234567890",
            "2025-01-01T00:00:00+9",
            "2025-01-01T00:00:00+16:00",
            "2025-01-01T00:00:00 KST",
            "0000-01-01T00:00:00",
            "1735689600000",
            "２０２５-01-01T00:00:00",
        ] {
            assert!(!is_moment(text), "{text}");
        }
    }
}
