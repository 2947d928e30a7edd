//! Where a replay begins, as it is typed.

use std::str::FromStr;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// `earliest`, `latest`, an offset, or a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayFrom {
    Earliest,
    Latest,
    Offset(i64),
    /// Milliseconds since 1970: the first record that is not older.
    Time(i64),
}

impl FromStr for ReplayFrom {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let offset = text.parse::<i64>().ok().filter(|offset| *offset >= 0);
        let time = || {
            let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
            i64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok()
        };
        match text {
            "earliest" => Ok(Self::Earliest),
            "latest" => Ok(Self::Latest),
            _ => offset
                .map(Self::Offset)
                .or_else(|| time().map(Self::Time))
                .ok_or_else(|| {
                    "expected earliest, latest, an offset such as 1200, or a time such as 2026-11-25T08:00:00Z"
                        .to_owned()
                }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ReplayFrom;

    #[test]
    fn a_start_is_a_word_an_offset_or_a_time() {
        assert_eq!("earliest".parse(), Ok(ReplayFrom::Earliest));
        assert_eq!("latest".parse(), Ok(ReplayFrom::Latest));
        assert_eq!("12".parse(), Ok(ReplayFrom::Offset(12)));
        assert_eq!("1970-01-01T09:00:01.5+09:00".parse(), Ok(ReplayFrom::Time(1_500)));
        for wrong in ["", "-1", "begin", "2026-11-25", "1.5"] {
            assert!(wrong.parse::<ReplayFrom>().is_err(), "{wrong}");
        }
    }
}
