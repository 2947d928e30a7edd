//! Names that an operator gives: each is checked when it is read, so whoever gets one of these types does not check it again.

use kafka_client::is_topic_name;
use service::checked_name;

checked_name!(
    /// A replication slot's name, by the rule that Postgres has for each: 1 to 63 of a-z, 0-9 and _.
    /// See <https://www.postgresql.org/docs/current/warm-standby.html#STREAMING-REPLICATION-SLOTS-MANIPULATION>.
    SlotName,
    is_slot_name,
    expected: "expected 1 to 63 of a-z, 0-9 and _"
);

checked_name!(
    /// A publication's name. Postgres takes any text but the empty one, and cuts a long one.
    PublicationName,
    is_publication_name,
    expected: "expected the name of a publication"
);

checked_name!(
    /// A topic's name, by Kafka's rule: 1 to 249 of a-z, A-Z, 0-9, dot, _ and -, and neither `.` nor `..`.
    TopicName,
    is_topic_name,
    expected: "a topic's name is 1 to 249 of a-z, A-Z, 0-9, dot, _ and -"
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
            let err = wrong.parse::<SlotName>().unwrap_err();
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
            let err = wrong.parse::<TopicName>().unwrap_err();
            assert!(err.contains("1 to 249"), "{wrong}: {err}");
        }
    }
}
