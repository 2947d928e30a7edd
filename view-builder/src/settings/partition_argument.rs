//! A partition as it is typed, and where a paused one goes on.

use std::str::FromStr;

use crate::contract::name::TopicName;
use crate::contract::place::{TopicPartition, place};

/// Where a partition goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptFrom {
    Beginning,
    Offset(i64),
}

impl FromStr for AcceptFrom {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "beginning" {
            return Ok(Self::Beginning);
        }
        let offset = text.parse().ok().filter(|offset| *offset >= 0);
        offset
            .map(Self::Offset)
            .ok_or_else(|| "expected beginning, or an offset such as 1200".to_owned())
    }
}

/// A partition as it is typed: `user-events/3`.
///
/// # Errors
/// It is none.
pub fn partition(text: &str) -> Result<TopicPartition, String> {
    let parts = text.rsplit_once('/');
    let place = parts.and_then(|(topic, number)| {
        let topic: TopicName = topic.parse().ok()?;
        let number: i32 = number.parse().ok().filter(|number| *number >= 0)?;
        Some(place(&topic, number))
    });
    place.ok_or_else(|| "expected a topic, `/` and a partition, such as user-events/3".to_owned())
}

#[cfg(test)]
mod tests {
    use super::{AcceptFrom, partition};
    use crate::contract::place::place;

    #[test]
    fn a_partition_and_an_offset_are_read_as_the_messages_write_them() {
        assert_eq!(partition("user-events/12"), Ok(place("user-events", 12)));
        for wrong in [
            "user-events",
            "user-events/",
            "/1",
            "user-events/-1",
            "user-events/x",
            "a/b-events/1",
        ] {
            assert!(partition(wrong).is_err(), "{wrong}");
        }
        assert_eq!("beginning".parse(), Ok(AcceptFrom::Beginning));
        assert_eq!("12".parse(), Ok(AcceptFrom::Offset(12)));
        for wrong in ["", "-1", "end"] {
            assert!(wrong.parse::<AcceptFrom>().is_err(), "{wrong}");
        }
    }
}
