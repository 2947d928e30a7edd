//! The names that Kafka allows for topics.

/// Kafka's limit for a name, in bytes.
const BYTES_MAX: usize = 249;

/// Whether a topic can have this name, by the rule of Kafka's class `Topic`: 1 to 249 of a-z, A-Z, 0-9, dot, _ and -, and neither `.` nor `..`. This
/// does not say whether the topic exists.
#[must_use]
pub fn is_topic_name(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=BYTES_MAX).contains(&text.len()) && text.bytes().all(is_allowed) && !matches!(text, "." | "..")
}
