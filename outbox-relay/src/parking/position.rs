//! The text of a row's position: as a person types it, and as a key of the parking topic has it.

use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::continuity::progress::Published;
use crate::process::row_name::RowPosition;
use pg_replication::Lsn;

/// The text is not a row's position.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no position: expected LSN:INDEX, like 16/B374D848:7")]
pub struct InvalidRowPosition(String);

impl RowPosition {
    /// The position as text, with a fixed number of digits. So the texts sort as the positions do.
    #[must_use]
    pub fn sortable_text(&self) -> String {
        let lsn = self.commit_lsn.0;
        format!("{:08X}/{:08X}:{:010}", lsn >> 32, lsn & 0xFFFF_FFFF, self.index)
    }

    /// Whether a checkpoint that says `published` has passed the row. A passed row is published or parked, or the relay does not publish such rows.
    #[must_use]
    pub fn is_passed_by(&self, published: &Published) -> bool {
        let is_in_published_part = published
            .partial
            .is_some_and(|partial| (self.commit_lsn, self.index) < (partial.commit_lsn, partial.rows));
        self.commit_lsn < published.lsn || is_in_published_part
    }
}

impl FromStr for RowPosition {
    type Err = InvalidRowPosition;

    /// Reads `LSN:INDEX`. In the header `position` a second colon and the commit's time may follow. The time is ignored.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidRowPosition(text.to_owned());
        let mut parts = text.split(':');
        let (lsn, index) = (parts.next().ok_or_else(invalid)?, parts.next().ok_or_else(invalid)?);
        let time_is_valid = parts.next().is_none_or(|time| time.parse::<i64>().is_ok());
        if !time_is_valid || parts.next().is_some() {
            return Err(invalid());
        }
        Ok(Self {
            commit_lsn: lsn.parse::<Lsn>().map_err(|_| invalid())?,
            index: index.parse().map_err(|_| invalid())?,
        })
    }
}

impl Serialize for RowPosition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RowPosition {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::RowPosition;
    use crate::continuity::progress::{Partial, Published};
    use pg_replication::Lsn;

    fn at(lsn: u64, index: u64) -> RowPosition {
        RowPosition {
            commit_lsn: Lsn(lsn),
            index,
        }
    }

    #[test]
    fn a_position_is_read_as_a_stop_names_it_as_a_header_has_it_and_as_a_key_has_it() {
        let position = at(0x16_B374_D848, 7);
        assert_eq!(position.to_string().parse(), Ok(position));
        assert_eq!("16/B374D848:7:1795344833217210".parse(), Ok(position));
        assert_eq!(position.sortable_text().parse(), Ok(position));
        for text in [
            "",
            "16/B374D848",
            "16/B374D848:",
            "16/B374D848:x",
            "1:2",
            "0/1:2:3:4",
            "0/1:2:x",
        ] {
            assert!(text.parse::<RowPosition>().is_err(), "{text}");
        }
    }

    #[test]
    fn sortable_texts_sort_as_positions() {
        let ascending = [at(9, 10), at(0x10, 2), at(0x10, 10), at(0x1_0000_0000, 0)];
        assert!(
            ascending
                .windows(2)
                .all(|pair| pair[0].sortable_text() < pair[1].sortable_text())
        );
    }

    #[test]
    fn a_checkpoint_passes_whole_transactions_and_the_part_that_it_names() {
        let published = Published {
            lsn: Lsn(100),
            partial: Some(Partial {
                commit_lsn: Lsn(200),
                rows: 3,
            }),
        };
        let passed = [at(99, 9), at(100, 0), at(200, 2), at(200, 3), at(201, 0)];
        assert_eq!(
            passed.map(|position| position.is_passed_by(&published)),
            [true, true, true, false, false]
        );
        let whole = Published {
            partial: None,
            ..published
        };
        assert_eq!(
            passed.map(|position| position.is_passed_by(&whole)),
            [true, false, false, false, false]
        );
    }
}
