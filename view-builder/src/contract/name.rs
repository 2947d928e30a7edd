//! Names that can be right, by the rule of whoever keeps what they name. Whether there is such a thing is another question.

use kafka_client::is_topic_name;
use service::checked_name;

checked_name!(
    /// A topic's name.
    TopicName,
    is_topic_name,
    expected: "expected a topic's name: letters, digits, `.`, `_` and `-`, at most 249 of them, such as user-events"
);
checked_name!(
    /// A view's name, which is its folder's.
    ViewName,
    is_view_name,
    expected: "expected a view's name: lower-case letters, digits and underscores, a letter first, such as user_view"
);
checked_name!(
    /// A consumer group's name.
    GroupName,
    is_group_name,
    expected: "expected a consumer group's name, such as view-builder"
);

/// Whether a view can have this name.
#[must_use]
pub(crate) fn is_view_name(text: &str) -> bool {
    let is_allowed = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_';
    text.starts_with(|first: char| first.is_ascii_lowercase()) && text.chars().all(is_allowed)
}

/// Kafka takes any other text.
fn is_group_name(text: &str) -> bool {
    !text.trim().is_empty()
}

#[cfg(test)]
mod tests {
    use super::{GroupName, TopicName, ViewName};

    #[test]
    fn a_topics_name_is_as_kafka_allows_it() {
        for right in ["user-events", "a.b_C-7", "_", "a".repeat(249).as_str()] {
            assert!(right.parse::<TopicName>().is_ok(), "{right}");
        }
        for wrong in [
            "",
            ".",
            "..",
            "user events",
            "user/events",
            "사용자",
            "postgres://h/d",
            "a".repeat(250).as_str(),
        ] {
            let said = wrong.parse::<TopicName>().expect_err(wrong);
            assert!(said.contains("such as user-events"), "{said}");
        }
    }

    #[test]
    fn a_views_name_is_as_its_folder_may_be_called() {
        for right in ["user_view", "a", "view2"] {
            assert!(right.parse::<ViewName>().is_ok(), "{right}");
        }
        for wrong in ["", "2view", "_view", "User", "user-view", "user view", "a;b", "뷰"] {
            let said = wrong.parse::<ViewName>().expect_err(wrong);
            assert!(said.contains("such as user_view"), "{said}");
        }
    }

    #[test]
    fn a_groups_name_is_not_blank() {
        assert_eq!(
            "view-builder".parse::<GroupName>().map(|name| name.to_string()),
            Ok("view-builder".to_owned())
        );
        for wrong in ["", " ", "\n"] {
            assert!(wrong.parse::<GroupName>().is_err(), "{wrong:?}");
        }
    }
}
