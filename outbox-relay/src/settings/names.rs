//! Names that an operator gives: each is checked when it is read, so whoever gets one of these types does not check it again.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

/// Why a text is no such name: says what would be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct WrongName(&'static str);

/// Declares a type of names: a text, the rule that it keeps, and what to say of a text that does not keep it.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $keeps_rule:path, $rule:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = WrongName;

            fn from_str(text: &str) -> Result<Self, WrongName> {
                if $keeps_rule(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(WrongName($rule))
                }
            }
        }

        impl Deref for $name {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A replication slot's name, by the rule that Postgres has for each: 1 to 63 of a-z, 0-9 and _.
    /// See <https://www.postgresql.org/docs/current/warm-standby.html#STREAMING-REPLICATION-SLOTS-MANIPULATION>.
    SlotName,
    is_slot_name,
    "expected 1 to 63 of a-z, 0-9 and _"
);

name!(
    /// A publication's name. Postgres takes any text but the empty one, and cuts a long one.
    PublicationName,
    is_publication_name,
    "expected the name of a publication"
);

name!(
    /// A topic's name, by Kafka's rule: 1 to 249 of a-z, A-Z, 0-9, dot, _ and -, and neither `.` nor `..`.
    TopicName,
    is_topic_name,
    "a topic's name is 1 to 249 of a-z, A-Z, 0-9, dot, _ and -"
);

fn is_slot_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

fn is_publication_name(text: &str) -> bool {
    !text.is_empty()
}

fn is_topic_name(text: &str) -> bool {
    (1..=249).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
        && text != "."
        && text != ".."
}

#[cfg(test)]
mod tests {
    use super::{PublicationName, SlotName, TopicName};

    #[test]
    fn a_slots_name_is_one_that_postgres_takes() {
        let longest = "s".repeat(63);
        for right in ["outbox_relay", "debezium", "2", "_", longest.as_str()] {
            assert_eq!(right.parse::<SlotName>().unwrap().as_str(), right);
        }
        let too_long = "s".repeat(64);
        for wrong in ["", "Users", "a-b", "a b", "ü", too_long.as_str()] {
            let err = wrong.parse::<SlotName>().unwrap_err().to_string();
            assert_eq!(err, "expected 1 to 63 of a-z, 0-9 and _", "{wrong}");
        }
    }

    #[test]
    fn a_publication_has_a_name() {
        for right in ["outbox", "dbz_publication", "My Publication"] {
            assert_eq!(right.parse::<PublicationName>().unwrap().as_str(), right);
        }
        assert!("".parse::<PublicationName>().is_err());
    }

    #[test]
    fn a_topics_name_is_one_that_kafka_takes() {
        let longest = "t".repeat(249);
        for right in ["user-events", "outbox.event.Order", "...", "_", longest.as_str()] {
            assert_eq!(right.parse::<TopicName>().unwrap().as_str(), right);
        }
        let too_long = "t".repeat(250);
        for wrong in ["", ".", "..", "a b", "a/b", "ü", too_long.as_str()] {
            let err = wrong.parse::<TopicName>().unwrap_err().to_string();
            assert!(err.contains("1 to 249"), "{wrong}: {err}");
        }
    }
}
