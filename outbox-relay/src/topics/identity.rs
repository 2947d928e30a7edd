//! Compares the topics with those that the checkpoint knows. Records are written to a topic by its name. A topic that was deleted and made anew has the
//! same name, but none of the events that were published to the former one. Kafka's id of a topic shows the difference.

use std::collections::BTreeMap;

use super::planted;
use crate::continuity::checkpoint::{Checkpoint, Lineage};
use crate::kafka::{TopicFacts, topic_facts};
use crate::process::stop::{PARTITIONS_CURE, Stop};
use crate::settings::Config;

const CURE: &str = "`outbox-relay recover` publishes what is missing from the outbox table, or, where nothing is to be published again, `outbox-relay init --accept-topic-recreated` goes on with the topic as it is now";
const CHECKPOINT_CURE: &str = "find out who did that; where the topic holds a checkpoint again, `outbox-relay init --accept-topic-recreated` goes on from it, and where it holds none, `outbox-relay init --accept-checkpoint-loss` goes on from the slot's confirmed position";

/// What Kafka says of topics, by their names. A topic that does not exist is left out.
pub type Topics = BTreeMap<String, TopicFacts>;

/// Names of all topics that the lineage depends on. The topic of the checkpoints is one of them.
#[must_use]
pub fn names_of_topics(lineage: &Lineage, checkpoint_topic: &str) -> Vec<String> {
    let mut names: Vec<String> = lineage.partitions.keys().cloned().collect();
    if !lineage.partitions.contains_key(checkpoint_topic) {
        names.push(checkpoint_topic.to_owned());
    }
    names
}

/// The topics that were deleted ([`Stop::TopicGone`]), or deleted and made anew ([`Stop::TopicRecreated`]), since the lineage pinned them. If the id was
/// not known then, or is not known now, the topic counts as the same.
#[must_use]
pub fn find_recreated(lineage: &Lineage, topics: &Topics) -> Vec<Stop> {
    let pinned = lineage.topic_ids.iter();
    pinned
        .filter_map(|(topic, expected)| {
            let holds_records = lineage.partitions.contains_key(topic);
            let Some(facts) = topics.get(topic) else {
                return holds_records.then(|| Stop::TopicGone {
                    topic: topic.clone(),
                    expected: expected.clone(),
                    cure: CURE,
                });
            };
            let found = facts.id.as_ref()?;
            (found != expected && !planted::knows_topics_by_name()).then(|| Stop::TopicRecreated {
                topic: topic.clone(),
                expected: expected.clone(),
                found: found.clone(),
                cure: if holds_records { CURE } else { CHECKPOINT_CURE },
            })
        })
        .collect()
}

/// Everything that is not as the lineage pins it: first the topics that were deleted or made anew, then those with another number of partitions. If a topic
/// is gone and its id was never known, it is reported as having 0 partitions.
#[must_use]
pub fn find_breaks(lineage: &Lineage, topics: &Topics) -> Vec<Stop> {
    let changed = lineage.partitions.iter().filter_map(|(topic, expected)| {
        let found = topics.get(topic).map_or(0, |facts| facts.partitions);
        let is_reported_as_gone = found == 0 && lineage.topic_ids.contains_key(topic);
        (found != *expected && !is_reported_as_gone).then(|| Stop::PartitionsChanged {
            topic: topic.clone(),
            expected: *expected,
            found,
            cure: PARTITIONS_CURE,
        })
    });
    find_recreated(lineage, topics).into_iter().chain(changed).collect()
}

/// As [`find_breaks`], of the topics as they are now.
///
/// # Errors
/// Kafka does not answer, or refuses.
pub(crate) async fn find_breaks_now(config: &Config, checkpoint: Option<&Checkpoint>) -> anyhow::Result<Vec<Stop>> {
    let Some(Checkpoint { lineage, .. }) = checkpoint else {
        return Ok(Vec::new());
    };
    let topics = topic_facts(
        &config.sink.kafka,
        names_of_topics(lineage, &config.sink.checkpoint_topic),
    )
    .await?;
    Ok(find_breaks(lineage, &topics))
}

/// As [`find_recreated`], of the topics as they are now.
///
/// # Errors
/// Kafka does not answer, or refuses.
pub(crate) async fn find_recreated_now(config: &Config, checkpoint: Option<&Checkpoint>) -> anyhow::Result<Vec<Stop>> {
    let Some(Checkpoint { lineage, .. }) = checkpoint else {
        return Ok(Vec::new());
    };
    let topics = topic_facts(
        &config.sink.kafka,
        names_of_topics(lineage, &config.sink.checkpoint_topic),
    )
    .await?;
    Ok(find_recreated(lineage, &topics))
}

/// Whether the topic of this name was made anew.
#[must_use]
pub(crate) fn is_recreated(recreated: &[Stop], name: &str) -> bool {
    let mut topics = recreated.iter();
    topics
        .any(|stop| matches!(stop, Stop::TopicRecreated { topic, .. } | Stop::TopicGone { topic, .. } if topic == name))
}

/// Forgets everything about topics that were deleted or made anew.
pub(crate) fn release_recreated(lineage: &mut Lineage, recreated: &[Stop]) {
    for stop in recreated {
        if let Stop::TopicRecreated { topic, .. } | Stop::TopicGone { topic, .. } = stop {
            lineage.unpin(topic);
        }
    }
}

/// Pins the ids of those topics for which the lineage has none yet. An earlier version of this program pinned none.
pub fn pin_ids(lineage: &mut Lineage, topics: &Topics) {
    for (topic, facts) in topics {
        if let Some(id) = &facts.id {
            lineage.topic_ids.entry(topic.clone()).or_insert_with(|| id.clone());
        }
    }
}

/// As [`pin_ids`], for all topics of the lineage and that of the checkpoints. Asks Kafka for the ids.
///
/// # Errors
/// Kafka does not answer, or refuses.
pub(crate) async fn pin_all_ids(config: &Config, lineage: &mut Lineage) -> anyhow::Result<()> {
    let topics = topic_facts(
        &config.sink.kafka,
        names_of_topics(lineage, &config.sink.checkpoint_topic),
    )
    .await?;
    pin_ids(lineage, &topics);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Topics, find_breaks, names_of_topics, pin_ids};
    use crate::continuity::checkpoint::{Lineage, tests::example};
    use crate::kafka::TopicFacts;
    use crate::process::stop::Stop;

    const ID: &str = "vGuc7jKlTiyJvbXyzhhPUg";

    fn topics(id: Option<&str>, partitions: i32) -> Topics {
        let facts = TopicFacts {
            id: id.map(str::to_owned),
            partitions,
            replicas: 1,
        };
        [("user-events".to_owned(), facts)].into()
    }

    fn codes(lineage: &Lineage, topics: &Topics) -> Vec<u8> {
        find_breaks(lineage, topics).iter().map(Stop::exit_code).collect()
    }

    #[test]
    fn a_topic_with_another_id_was_made_anew() {
        let lineage = example().lineage;
        assert_eq!(codes(&lineage, &topics(Some(ID), 8)), [0; 0]);
        assert_eq!(codes(&lineage, &topics(Some("other"), 8)), [23]);
        assert_eq!(codes(&lineage, &topics(Some("other"), 9)), [23, 19]);
        assert_eq!(codes(&lineage, &topics(Some(ID), 9)), [19]);
        assert_eq!(codes(&lineage, &Topics::new()), [23], "it is gone");
    }

    #[test]
    fn an_id_that_nobody_tells_says_nothing() {
        let mut lineage = example().lineage;
        assert_eq!(codes(&lineage, &topics(None, 8)), [0; 0]);
        lineage.topic_ids.clear();
        assert_eq!(codes(&lineage, &topics(Some("other"), 8)), [0; 0]);
        assert_eq!(codes(&lineage, &Topics::new()), [19], "it is gone");
        pin_ids(&mut lineage, &topics(None, 8));
        assert!(lineage.topic_ids.is_empty());
        pin_ids(&mut lineage, &topics(Some("first"), 8));
        pin_ids(&mut lineage, &topics(Some("second"), 8));
        assert_eq!(lineage.topic_ids["user-events"], "first", "what is pinned stays");
    }

    #[test]
    fn the_checkpoints_topic_belongs_to_the_lineage() {
        assert_eq!(
            names_of_topics(&example().lineage, "checkpoints"),
            ["user-events", "checkpoints"]
        );
    }
}
