//! The topics that records go to, and how many partitions each has.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use anyhow::Context;
use rdkafka::admin::{AdminOptions, NewTopic as RdNewTopic, TopicReplication};
use rdkafka::consumer::Consumer;
use rdkafka::error::RDKafkaErrorCode;

use super::refusal::ask;
use super::settings::KafkaSettings;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// A topic to create where it is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTopic {
    pub name: String,
    pub partitions: i32,
    /// Topic settings, see <https://kafka.apache.org/documentation/#topicconfigs>.
    pub settings: Vec<(String, String)>,
}

/// The topics that are known, found by the value of `route.by.field` without building a name for each row.
#[derive(Debug, Default)]
pub struct Topics {
    by_route: HashMap<String, usize>,
    topics: Vec<(String, i32, u64)>,
}

impl Topics {
    /// Name, partition count and the largest batch in bytes for a route that was seen before.
    #[must_use]
    pub fn get(&self, route: &str) -> Option<(&str, i32, u64)> {
        let (name, partitions, batch_bytes_max) = &self.topics[*self.by_route.get(route)?];
        Some((name, *partitions, *batch_bytes_max))
    }

    /// Remembers where a route leads.
    pub fn insert(&mut self, route: String, name: String, partitions: i32, batch_bytes_max: u64) {
        let index = self
            .topics
            .iter()
            .position(|(known, ..)| *known == name)
            .unwrap_or_else(|| {
                self.topics.push((name, partitions, batch_bytes_max));
                self.topics.len() - 1
            });
        self.by_route.insert(route, index);
    }
}

/// Partition counts of those of `names` that exist. Blocks.
///
/// # Errors
/// Kafka does not answer.
pub fn partition_counts(settings: &KafkaSettings, names: &[String]) -> anyhow::Result<BTreeMap<String, i32>> {
    let client = settings.open_reader("read_committed")?;
    let mut counts = BTreeMap::new();
    for name in names {
        // Asked for one by one: asking for all would list a whole cluster.
        let metadata = ask(&client, REQUEST_TIMEOUT, |timeout| {
            client.fetch_metadata(Some(name), timeout)
        })
        .context("cannot read topics' metadata")?;
        for topic in metadata.topics().iter().filter(|topic| topic.name() == name) {
            match topic.error().map(RDKafkaErrorCode::from) {
                Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {}
                Some(code) => return Err(anyhow::Error::new(code).context(format!("topic `{name}`"))),
                None => {
                    counts.insert(
                        name.clone(),
                        i32::try_from(topic.partitions().len()).unwrap_or(i32::MAX),
                    );
                }
            }
        }
    }
    Ok(counts)
}

/// Creates those of `topics` that are missing, and waits until they can be written to. Returns the names of the new ones.
///
/// # Errors
/// Kafka does not answer or refuses.
pub async fn create_missing(settings: &KafkaSettings, topics: &[NewTopic]) -> anyhow::Result<Vec<String>> {
    let names: Vec<String> = topics.iter().map(|topic| topic.name.clone()).collect();
    let existing = counts_off_thread(settings, &names).await?;
    let missing: Vec<&NewTopic> = topics
        .iter()
        .filter(|topic| !existing.contains_key(&topic.name))
        .collect();
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    let admin = settings.open_admin()?;
    let requests: Vec<RdNewTopic<'_>> = missing
        .iter()
        .map(|topic| {
            // -1: the broker's own default.
            let request = RdNewTopic::new(&topic.name, topic.partitions, TopicReplication::Fixed(-1));
            topic
                .settings
                .iter()
                .fold(request, |request, (name, value)| request.set(name, value))
        })
        .collect();
    let options = AdminOptions::new()
        .operation_timeout(Some(REQUEST_TIMEOUT))
        .request_timeout(Some(REQUEST_TIMEOUT));
    for outcome in admin
        .create_topics(&requests, &options)
        .await
        .context("cannot create topics")?
    {
        match outcome {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((name, code)) => {
                return Err(anyhow::Error::new(code).context(format!("topic `{name}` cannot be created")));
            }
        }
    }
    let missing_names: Vec<String> = missing.iter().map(|topic| topic.name.clone()).collect();
    for _ in 0..100 {
        if counts_off_thread(settings, &missing_names).await?.len() == missing_names.len() {
            return Ok(missing_names);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!(
        "new topics do not appear in the cluster's metadata: {}",
        missing_names.join(", ")
    )
}

/// Partition count of a topic, which is created from `template` where it is missing; `None` where it is missing and there is no template.
///
/// # Errors
/// Kafka does not answer or refuses.
pub async fn find_or_create(
    settings: &KafkaSettings,
    name: &str,
    template: Option<&NewTopic>,
) -> anyhow::Result<Option<i32>> {
    let names = [name.to_owned()];
    let found = counts_off_thread(settings, &names).await?.get(name).copied();
    let (None, Some(template)) = (found, template) else {
        return Ok(found);
    };
    create_missing(
        settings,
        &[NewTopic {
            name: name.to_owned(),
            ..template.clone()
        }],
    )
    .await?;
    tracing::info!(topic = name, partitions = template.partitions, "created a topic");
    Ok(counts_off_thread(settings, &names).await?.get(name).copied())
}

async fn counts_off_thread(settings: &KafkaSettings, names: &[String]) -> anyhow::Result<BTreeMap<String, i32>> {
    let (settings, names) = (settings.clone(), names.to_vec());
    tokio::task::spawn_blocking(move || partition_counts(&settings, &names))
        .await
        .context("metadata task")?
}
