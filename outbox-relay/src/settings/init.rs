//! What `init` asks for.

use clap::{Args, ValueEnum};

use super::Settings;
use super::accept::AcceptOptions;
use super::poison::PoisonOptions;
use super::recover::Undecided;
use super::sink::check_topic_name;
use crate::kafka::NewTopic;
use crate::process::stop::Stop;

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
        value_delimiter = '\n'
    )]
    pub topics: Vec<String>,
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

impl InitOptions {
    /// The topics to create.
    ///
    /// # Errors
    /// [`Stop::Config`] for a `--topic` that is none.
    pub fn topics(&self, template: &NewTopic) -> Result<Vec<NewTopic>, Stop> {
        let mut topics = Vec::new();
        for text in self
            .topics
            .iter()
            .map(|text| text.trim())
            .filter(|text| !text.is_empty())
        {
            let (name, partitions) = match text.split_once(':') {
                None => (text, template.partitions),
                Some((name, partitions)) => {
                    let count = partitions.parse().ok().filter(|count| (1..=10_000).contains(count));
                    (
                        name,
                        count.ok_or_else(|| Stop::Config {
                            what: format!("--topic `{text}`: partitions are a number from 1 to 10000"),
                        })?,
                    )
                }
            };
            check_topic_name("--topic", name)?;
            topics.push(NewTopic {
                name: name.to_owned(),
                partitions,
                settings: template.settings.clone(),
            });
        }
        Ok(topics)
    }
}
