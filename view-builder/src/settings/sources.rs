//! For each topic: the database whose outbox feeds it, and the slot of its relay. Both are given as lines TOPIC=VALUE.

use std::collections::BTreeMap;

use clap::Args;
use service::Secret;

use crate::contract::name::TopicName;
use crate::process::checked::Check;

/// The source of each topic, and its relay's slot. Clap does not check the lines, since its error would print a wrong one, and that may be a URL
/// with a password.
#[derive(Clone, Debug)]
pub struct Sources {
    urls: BTreeMap<TopicName, Secret>,
    slots: BTreeMap<TopicName, Secret>,
}

#[derive(Args)]
pub struct SourcesArgs {
    /// The database whose outbox feeds a topic, such as user-events=postgres://view_verifier@localhost:15432/users_db. It
    /// must be a primary, since only a primary says where its write-ahead log ends. Repeat the flag for several topics; in the variable write one
    /// on each line.
    #[arg(
        long = "source",
        env = "SOURCES",
        value_delimiter = '\n',
        hide_env_values = true,
        value_name = "TOPIC=URL"
    )]
    sources: Vec<Secret>,
    /// The replication slot of the relay that publishes a topic, such as user-events=users_relay. It is needed only if the topic's database has
    /// several pgoutput slots. Repeat the flag for several topics; in the variable write one on each line.
    #[arg(long = "slot", env = "SLOTS", value_delimiter = '\n', value_name = "TOPIC=NAME")]
    slots: Vec<Secret>,
}

impl Check for Sources {
    type Given = SourcesArgs;

    fn check(SourcesArgs { sources, slots }: SourcesArgs) -> Result<Self, String> {
        Ok(Self {
            urls: by_topic("SOURCES", "postgres://view_verifier@localhost:15432/users_db", &sources)?,
            slots: by_topic("SLOTS", "users_relay", &slots)?,
        })
    }
}

impl Sources {
    /// The URL of the database whose outbox feeds the topic.
    #[must_use]
    pub fn url_of(&self, topic: &str) -> Option<&Secret> {
        self.urls.get(topic)
    }

    /// The slot of the relay that publishes the topic.
    #[must_use]
    pub fn slot_of(&self, topic: &str) -> Option<&str> {
        self.slots.get(topic).map(Secret::reveal)
    }
}

/// Reads the lines, and passes over empty ones. If a topic comes twice, the first line counts.
fn by_topic(setting: &str, example: &str, lines: &[Secret]) -> Result<BTreeMap<TopicName, Secret>, String> {
    let mut values = BTreeMap::new();
    for (index, line) in lines.iter().enumerate() {
        if line.reveal().trim().is_empty() {
            continue;
        }
        let (topic, value) = topic_and_value(line.reveal()).ok_or_else(|| {
            format!(
                "{setting}, number {}: expected a topic, `=` and a value, such as user-events={example}",
                index + 1
            )
        })?;
        values.entry(topic).or_insert(value);
    }
    Ok(values)
}

fn topic_and_value(line: &str) -> Option<(TopicName, Secret)> {
    let (topic, value) = line.split_once('=')?;
    let topic = topic.trim().parse().ok()?;
    let value = value.trim();
    (!value.is_empty()).then(|| (topic, Secret::from(value.to_owned())))
}

#[cfg(test)]
mod tests {
    use service::Secret;

    use super::by_topic;

    #[test]
    fn a_value_of_a_topic_is_found_and_a_wrong_line_is_told_by_its_number() {
        let find = |lines: &[&str]| {
            let lines: Vec<Secret> = lines.iter().map(|line| Secret::from((*line).to_owned())).collect();
            let values = by_topic("SOURCES", "a value", &lines)?;
            Ok::<_, String>(values.get("b").map(|value| value.reveal().to_owned()))
        };
        assert_eq!(find(&["a=1", " b = x=y ", "b=z"]), Ok(Some("x=y".to_owned())));
        assert_eq!(find(&["a=1"]), Ok(None));
        // A block of lines ends with a line's end.
        assert_eq!(find(&["", "b=1", " "]), Ok(Some("1".to_owned())));
        for wrong in [
            "postgres://u:hunter2@h/d",
            "postgres://u:hunter2@h/d?sslmode=require",
            "b=",
        ] {
            let said = find(&["b=1", wrong]).expect_err(wrong);
            assert!(said.starts_with("SOURCES, number 2: expected a topic"), "{said}");
            assert!(!said.contains("hunter2"), "{said}");
        }
    }
}
