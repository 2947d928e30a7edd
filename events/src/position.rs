//! The place in the source's WAL from which a record comes. A header of the record carries it.

use std::fmt;
use std::str::FromStr;

/// Name of the record header that carries a [`Position`].
pub const POSITION_HEADER: &str = "position";

/// A row's place in the source: `(commit LSN, index in the transaction)` orders all rows of one database. An LSN alone does not, since the rows of
/// one COPY share one. The commit's time lets a reader measure latency from the commit.
///
/// Its text is `16/B374D848:0:1795344833217210`: LSN as Postgres writes it, index from 0, microseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// LSN of the transaction's commit record (`Begin.final_lsn` of pgoutput).
    pub commit_lsn: u64,
    /// The row's index among the transaction's outbox rows, from 0.
    pub index: u64,
    /// When the transaction committed, by the database's clock: microseconds since 1970-01-01 UTC.
    pub commit_timestamp_us: i64,
}

/// The value of a position header that is not a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidPosition;

impl fmt::Display for InvalidPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a position: expected LSN:INDEX:MICROSECONDS, like 16/B374D848:0:1795344833217210")
    }
}

impl std::error::Error for InvalidPosition {}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:X}/{:X}:{}:{}",
            self.commit_lsn >> 32,
            self.commit_lsn & 0xFFFF_FFFF,
            self.index,
            self.commit_timestamp_us
        )
    }
}

impl FromStr for Position {
    type Err = InvalidPosition;

    fn from_str(text: &str) -> Result<Self, InvalidPosition> {
        let mut parts = text.split(':');
        let mut next = || parts.next().ok_or(InvalidPosition);
        let (lsn, index, timestamp) = (next()?, next()?, next()?);
        let (high, low) = lsn.split_once('/').ok_or(InvalidPosition)?;
        let half = |text: &str| u32::from_str_radix(text, 16).map_err(|_| InvalidPosition);
        let position = Self {
            commit_lsn: (u64::from(half(high)?) << 32) | u64::from(half(low)?),
            index: index.parse().map_err(|_| InvalidPosition)?,
            commit_timestamp_us: timestamp.parse().map_err(|_| InvalidPosition)?,
        };
        if parts.next().is_some() {
            return Err(InvalidPosition);
        }
        Ok(position)
    }
}

#[cfg(test)]
mod tests {
    use super::{InvalidPosition, Position};

    #[test]
    fn a_position_survives_its_text() {
        let position = Position {
            commit_lsn: 0x16_B374_D848,
            index: 7,
            commit_timestamp_us: 1_795_344_833_217_210,
        };
        assert_eq!(position.to_string(), "16/B374D848:7:1795344833217210");
        assert_eq!(position.to_string().parse(), Ok(position));
    }

    #[test]
    fn what_is_no_position_is_refused() {
        for text in ["", "0/1", "0/1:2", "0/1:2:3:4", "1:2:3", "0/X:1:2", "0/1:-1:2"] {
            assert_eq!(text.parse::<Position>(), Err(InvalidPosition), "{text}");
        }
    }
}
