//! What `init` asks for.

use std::str::FromStr;

use clap::{Args, ValueEnum};

use super::Settings;
use super::accept::AcceptOptions;
use super::names::TopicName;
use super::poison::PoisonOptions;
use super::recover::Undecided;
use crate::kafka::NewTopic;

#[derive(Clone, Debug, Args)]
pub struct InitArgs {
    #[command(flatten)]
    pub settings: Settings,
    #[command(flatten)]
    pub init: InitOptions,
    #[command(flatten)]
    pub accept: AcceptOptions,
    #[command(flatten)]
    pub poison: PoisonOptions,
}

#[derive(Clone, Debug, Args)]
pub struct InitOptions {
    /// What to do with the rows that are in the outbox already.
    #[arg(long, env = "EXISTING_ROWS", value_enum, default_value_t = ExistingRows::Publish)]
    pub existing_rows: ExistingRows,
    /// Topic to create where it is missing, NAME or NAME:PARTITIONS, repeatable; in the environment one a line.
    #[arg(
        long = "topic",
        env = "TOPICS",
        value_name = "NAME[:PARTITIONS]",
        value_delimiter = '\n',
        value_parser = parse_topic_line
    )]
    pub topics: Vec<Option<TopicToCreate>>,
    /// Continue an existing, inactive pgoutput slot of this database from its confirmed position, instead of making one.
    #[arg(long)]
    pub adopt_slot: bool,
    /// Publish this outbox although the checkpoint topic says that another slot publishes it: each row is published by both.
    #[arg(long)]
    pub another_slot: bool,
    /// Make the slot a failover slot, which standbys keep a copy of, so that the relay goes on after a promotion (PostgreSQL 17 and
    /// later; docs/failover.md says what the servers have to be set to). An existing slot is made one.
    #[arg(long, env = "OUTBOX_FAILOVER")]
    pub failover: bool,
    /// When an init that was interrupted goes on: what to do with rows that it may have published before, and removed from their topic since. Needed
    /// only where a topic is cleaned sooner than init was finished.
    #[arg(long, value_enum)]
    pub undecided: Option<Undecided>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExistingRows {
    /// Publish them once, in the order of their created_at (clock of their insert), before anything newer.
    Publish,
    /// Leave them.
    Skip,
}

/// A topic that `--topic` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicToCreate {
    pub name: TopicName,
    /// `None`: as many as `--topic-partitions` says.
    pub partitions: Option<i32>,
}

impl FromStr for TopicToCreate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, partitions) = match text.split_once(':') {
            None => (text, None),
            Some((name, partitions)) => {
                let count = partitions.parse().ok().filter(|count| (1..=10_000).contains(count));
                let count = count.ok_or("partitions are a number from 1 to 10000")?;
                (name, Some(count))
            }
        };
        Ok(Self {
            name: name.parse()?,
            partitions,
        })
    }
}

/// One line of `TOPICS`; `None` for an empty one.
fn parse_topic_line(line: &str) -> Result<Option<TopicToCreate>, String> {
    match line.trim() {
        "" => Ok(None),
        text => text.parse().map(Some),
    }
}

impl InitOptions {
    /// The topics to create.
    #[must_use]
    pub fn topics(&self, template: &NewTopic) -> Vec<NewTopic> {
        let named = self.topics.iter().flatten();
        named
            .map(|topic| NewTopic {
                name: topic.name.to_string(),
                partitions: topic.partitions.unwrap_or(template.partitions),
                settings: template.settings.clone(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{TopicToCreate, parse_topic_line};

    #[test]
    fn a_topic_is_named_with_or_without_its_partitions() {
        let topic = |name: &str, partitions| TopicToCreate {
            name: name.parse().unwrap(),
            partitions,
        };
        assert_eq!(parse_topic_line("users"), Ok(Some(topic("users", None))));
        assert_eq!(parse_topic_line(" users:12 "), Ok(Some(topic("users", Some(12)))));
        assert_eq!(parse_topic_line(" "), Ok(None));
        for wrong in [
            "users:",
            "users:0",
            "users:10001",
            "users:-1",
            "users:1:2",
            ":3",
            "a b",
            "..",
        ] {
            assert!(parse_topic_line(wrong).is_err(), "{wrong}");
        }
    }
}
