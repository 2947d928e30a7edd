//! The contract of a topic: what its events look like. It follows from the topic's name alone.
//!
//! Topic `user-events` carries events of the aggregate `user`: `{"eventType":"USER_CREATED","userId":7,"user":{…},"version":1}`,
//! with the types `USER_CREATED`, `USER_UPDATED` and `USER_DELETED`. Any topic that follows this pattern can feed a view.

pub mod batch;
pub mod event;
pub mod letter;
pub mod moment;
pub mod name;
pub mod place;
pub mod position;
pub(crate) mod record;

use std::collections::HashMap;

/// The last part of every topic's name.
const SUFFIX: &str = "-events";

/// The names in the events of one topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contract {
    pub topic: String,
    /// Field of the entity after the change, such as `user`.
    pub entity: String,
    /// Field of the aggregate's id, such as `userId`.
    pub id: String,
    pub created: String,
    pub updated: String,
    pub deleted: String,
}

/// What happened to the entity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Created,
    Updated,
    Deleted,
}

/// Contracts by topic.
pub type Contracts = HashMap<String, Contract>;

/// The contracts of these topics. A topic whose name fits no contract is left out.
#[must_use]
pub fn contracts_of(topics: &[String]) -> Contracts {
    topics
        .iter()
        .filter_map(|topic| Contract::of(topic).map(|contract| (topic.clone(), contract)))
        .collect()
}

impl Contract {
    /// The contract of `topic`. `None`: the name is not `<aggregate>-events` in lower-case letters, digits and hyphens.
    #[must_use]
    pub fn of(topic: &str) -> Option<Self> {
        let aggregate = topic.strip_suffix(SUFFIX)?;
        let is_word_of_a_name = |word: &str| {
            word.starts_with(|first: char| first.is_ascii_lowercase())
                && word
                    .chars()
                    .all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit())
        };
        let mut words = aggregate.split('-');
        if !aggregate.split('-').all(is_word_of_a_name) {
            return None;
        }
        let mut entity = words.next()?.to_owned();
        for word in words {
            let (first, rest) = word.split_at(1);
            entity.push_str(&first.to_ascii_uppercase());
            entity.push_str(rest);
        }
        let prefix = aggregate.replace('-', "_").to_ascii_uppercase();
        Some(Self {
            topic: topic.to_owned(),
            id: format!("{entity}Id"),
            entity,
            created: format!("{prefix}_CREATED"),
            updated: format!("{prefix}_UPDATED"),
            deleted: format!("{prefix}_DELETED"),
        })
    }

    /// The change that `event_type` names in this topic.
    #[must_use]
    pub fn change(&self, event_type: &str) -> Option<Change> {
        if event_type == self.created {
            Some(Change::Created)
        } else if event_type == self.updated {
            Some(Change::Updated)
        } else if event_type == self.deleted {
            Some(Change::Deleted)
        } else {
            None
        }
    }

    /// The name of the event type for this change, as events and views write it.
    #[must_use]
    pub fn event_type(&self, change: Change) -> &str {
        match change {
            Change::Created => &self.created,
            Change::Updated => &self.updated,
            Change::Deleted => &self.deleted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Change, Contract};

    #[test]
    fn the_topics_name_tells_the_names_in_its_events() {
        let users = Contract::of(events::USER_TOPIC).unwrap();
        assert_eq!((&*users.entity, &*users.id), ("user", "userId"));
        assert_eq!(users.change("USER_DELETED"), Some(Change::Deleted));
        assert_eq!(users.change("user_deleted"), None);
        let lines = Contract::of("order-line-events").unwrap();
        assert_eq!((&*lines.entity, &*lines.id), ("orderLine", "orderLineId"));
        assert_eq!(lines.event_type(Change::Created), "ORDER_LINE_CREATED");
    }

    #[test]
    fn a_name_of_another_pattern_has_no_contract() {
        for topic in ["users", "-events", "User-events", "a--b-events", "a.b-events"] {
            assert_eq!(Contract::of(topic), None, "{topic}");
        }
    }
}
