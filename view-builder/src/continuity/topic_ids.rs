//! Whether a topic is the one that a position is of, by the ids that Kafka gives topics.

use crate::process::faults::{self, Bug};

/// The topic that Kafka tells of, against the one that a position is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// It is the same, or nothing says otherwise.
    Same,
    /// It was deleted and made anew: its offsets begin again, and every event in it is new.
    MadeAnew,
    /// It is one that another has replaced: the broker that answers lags behind.
    Former,
}

/// The ids of the topics that a position was of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicIds {
    /// The one that it is of; none where Kafka has never told an id.
    pub now: Option<String>,
    /// Those before, which never come back.
    pub former: Vec<String>,
}

impl TopicIds {
    /// What the id that Kafka tells, if any, means for the position.
    #[must_use]
    pub fn compare(&self, told: Option<&str>) -> Topic {
        let (Some(now), Some(told)) = (&self.now, told) else {
            return Topic::Same;
        };
        if now == told || knows_topics_by_name() {
            Topic::Same
        } else if self.former.iter().any(|former| former == told) {
            Topic::Former
        } else {
            Topic::MadeAnew
        }
    }

    /// The ids once the position is of the topic with the id that Kafka tells.
    #[must_use]
    pub fn followed_by(mut self, told: Option<&str>, is_anew: bool) -> Self {
        if is_anew {
            self.former.extend(self.now.take());
        }
        self.now = self.now.or_else(|| told.map(str::to_owned));
        self
    }
}

/// True only where that bug is planted.
fn knows_topics_by_name() -> bool {
    faults::is_planted(Bug::KnowTopicsByName)
}

#[cfg(test)]
mod tests {
    use super::{Topic, TopicIds};

    #[test]
    fn a_topic_is_known_by_its_id_and_the_same_where_nobody_tells_one() {
        let ids = TopicIds {
            now: Some("b".to_owned()),
            former: vec!["a".to_owned()],
        };
        let told = [Some("b"), None, Some("a"), Some("c")];
        let expected = [Topic::Same, Topic::Same, Topic::Former, Topic::MadeAnew];
        assert_eq!(told.map(|told| ids.compare(told)), expected);
        assert_eq!(TopicIds::default().compare(Some("c")), Topic::Same);
    }
}
