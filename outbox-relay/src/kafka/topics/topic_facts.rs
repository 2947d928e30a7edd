//! Asks what topics there are and where they end, with a client of its own.

use std::collections::BTreeMap;

use anyhow::Context;
use kafka_client::{Ends, TopicFacts, ends_by, facts_by};
use rdkafka::consumer::BaseConsumer;

use super::open_transactions::wait_until_nothing_is_open;
use crate::kafka::client::KafkaSettings;
use crate::kafka::client::ReaderContext;
use crate::process::stop::RelayError;

/// The client that asks; it may be kept and asked again.
pub struct TopicAsker(BaseConsumer<ReaderContext>);

impl TopicAsker {
    /// Makes a client. It connects when it is asked.
    ///
    /// # Errors
    /// A wrong setting, or a token that cannot be used now.
    pub fn open(settings: &KafkaSettings) -> anyhow::Result<Self> {
        Ok(Self(settings.open_reader("read_committed")?))
    }

    /// Those of `names` that exist. Blocks.
    ///
    /// # Errors
    /// Kafka does not answer, or refuses.
    pub fn ask(
        &self,
        names: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> anyhow::Result<BTreeMap<String, TopicFacts>> {
        let names: Vec<String> = names.into_iter().map(|name| name.as_ref().to_owned()).collect();
        facts_by(&self.0, &names)
    }

    /// Where the partitions end that are counted for each topic. Blocks.
    ///
    /// # Errors
    /// Kafka does not answer, or refuses.
    pub fn ends(&self, partitions: &BTreeMap<String, i32>) -> anyhow::Result<Vec<Ends>> {
        let places = partitions
            .iter()
            .flat_map(|(topic, count)| (0..*count).map(|partition| (topic.as_str(), partition)));
        ends_by(&self.0, places)
    }

    /// As [`super::open_transactions::wait_until_nothing_is_open`]. Blocks.
    ///
    /// # Errors
    /// [`crate::process::stop::Stop::TransactionHangs`]; anything else is worth another try.
    pub fn wait_until_nothing_is_open(
        &self,
        settings: &KafkaSettings,
        partitions: &BTreeMap<String, i32>,
        gives_up: &dyn Fn() -> bool,
    ) -> Result<(), RelayError> {
        wait_until_nothing_is_open(settings, &self.0, partitions, gives_up)
    }
}

/// As [`TopicAsker::ask`], by a client for this question alone, on a thread of its own.
///
/// # Errors
/// As [`TopicAsker::ask`].
pub async fn topic_facts(settings: &KafkaSettings, names: Vec<String>) -> anyhow::Result<BTreeMap<String, TopicFacts>> {
    let settings = settings.clone();
    tokio::task::spawn_blocking(move || TopicAsker::open(&settings)?.ask(&names))
        .await
        .context("task that describes topics")?
}
