//! The topics that records go to, and how many partitions each has.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use anyhow::Context;
use rdkafka::admin::{AdminOptions, NewTopic as RdNewTopic, TopicReplication};
use rdkafka::consumer::Consumer;
use rdkafka::error::RDKafkaErrorCode;

use super::destination::{Amount, Destination};
use crate::kafka::client::KafkaSettings;
use crate::kafka::client::ask;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// A topic that we create if it is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTopic {
    pub name: String,
    pub partitions: i32,
    /// Topic settings, see <https://kafka.apache.org/documentation/#topicconfigs>.
    pub settings: Vec<(String, String)>,
}

impl NewTopic {
    /// A topic of one partition that keeps the last record of each key. Its segments are small, so that compaction keeps up and a start
    /// reads little.
    #[must_use]
    pub fn compacted(name: &str) -> Self {
        let settings = [
            ("cleanup.policy", "compact"),
            ("segment.bytes", "16777216"),
            ("min.cleanable.dirty.ratio", "0.1"),
        ];
        Self {
            name: name.to_owned(),
            partitions: 1,
            settings: settings
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .to_vec(),
        }
    }
}

/// Why a route leads to no topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoDestination {
    /// No topic can have the name, or no row may go there.
    Never { what: String },
    /// The topic does not exist, and we may not create it.
    Missing { topic: String },
    /// Kafka does not let us use or create the topic.
    Refused { topic: String, what: String },
}

/// The destinations that we know, by the value of `route.by.field`. So no topic's name has to be built for each row.
#[derive(Debug, Default)]
pub struct KnownRoutes {
    by_route: HashMap<String, usize>,
    destinations: Vec<Destination>,
    /// The last route that leads to no topic. One is enough, since its row is the next one. To remember all of them would need memory without a limit.
    dead_end: Option<(String, NoDestination)>,
}

impl KnownRoutes {
    /// Where the route leads. `None`: it was not seen before.
    #[must_use]
    pub fn get(&self, route: &str) -> Option<Result<&Destination, &NoDestination>> {
        match self.by_route.get(route) {
            Some(index) => self.destinations.get(*index).map(Ok),
            None => {
                let (_, why) = self.dead_end.as_ref().filter(|(known, _)| known == route)?;
                Some(Err(why))
            }
        }
    }

    /// What was sent to each topic since this was called last. Topics to which nothing was sent are left out.
    #[must_use]
    pub fn take_sent(&self) -> Vec<(String, Amount)> {
        let sent = self.destinations.iter().map(|known| (&known.topic, known.take_sent()));
        sent.filter(|(_, amount)| amount.records > 0)
            .map(|(topic, amount)| (topic.clone(), amount))
            .collect()
    }

    /// Remembers where a route leads.
    pub fn insert(&mut self, route: String, found: Result<Destination, NoDestination>) {
        let destination = match found {
            Ok(destination) => destination,
            Err(why) => {
                self.dead_end = Some((route, why));
                return;
            }
        };
        let known = self
            .destinations
            .iter()
            .position(|known| known.topic == destination.topic);
        let index = known.unwrap_or_else(|| {
            self.destinations.push(destination);
            self.destinations.len() - 1
        });
        self.by_route.insert(route, index);
    }
}

/// Kafka has answered a question about one topic with an error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("topic `{topic}`: {code}")]
pub struct TopicError {
    pub topic: String,
    pub code: RDKafkaErrorCode,
}

impl TopicError {
    /// Whether the same question will have the same answer until somebody changes something in the cluster. Too few brokers, or a broker that answers
    /// too late, are no such errors: they can go away by themselves.
    #[must_use]
    pub fn is_definite(&self) -> bool {
        matches!(
            self.code,
            RDKafkaErrorCode::InvalidTopic
                | RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed
                | RDKafkaErrorCode::PolicyViolation
                | RDKafkaErrorCode::InvalidConfig
                | RDKafkaErrorCode::InvalidPartitions
        )
    }

    /// Whether Kafka refuses the name itself. It refuses it as long as the cluster's other topics have the names that they have.
    #[must_use]
    pub fn refuses_the_name(&self) -> bool {
        self.code == RDKafkaErrorCode::InvalidTopic
    }

    /// The error in words, and what an operator can do about it.
    #[must_use]
    pub fn describe(&self) -> String {
        let code = self.code;
        match self.code {
            RDKafkaErrorCode::InvalidTopic => format!(
                "{code}: Kafka refuses the name, as it does where a topic exists whose name differs in dots and underscores alone"
            ),
            RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::ClusterAuthorizationFailed => {
                format!("{code}: allow the relay's user to describe and create it, or create it, and start again")
            }
            RDKafkaErrorCode::PolicyViolation => {
                format!(
                    "{code}: create it by the cluster's own rules, or adapt --topic-partitions and --topic-config to them, and start again"
                )
            }
            RDKafkaErrorCode::InvalidConfig => format!("{code}: correct --topic-config, and start again"),
            RDKafkaErrorCode::InvalidPartitions => format!("{code}: correct --topic-partitions, and start again"),
            _ => code.to_string(),
        }
    }
}

/// How many partitions each topic of `names` has. Topics that do not exist are left out. Blocks.
///
/// # Errors
/// Kafka does not answer.
pub fn partition_counts(settings: &KafkaSettings, names: &[String]) -> anyhow::Result<BTreeMap<String, i32>> {
    let client = settings.open_reader("read_committed")?;
    let mut counts = BTreeMap::new();
    for name in names {
        // One question for each topic, since librdkafka can only ask for one topic or for the whole cluster.
        let metadata = ask(&client, REQUEST_TIMEOUT, |timeout| {
            client.fetch_metadata(Some(name), timeout)
        })
        .context("cannot read topics' metadata")?;
        for topic in metadata.topics().iter().filter(|topic| topic.name() == name) {
            match topic.error().map(RDKafkaErrorCode::from) {
                Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {}
                Some(code) => {
                    let topic = name.clone();
                    return Err(anyhow::Error::new(TopicError { topic, code }).context("cannot read topics' metadata"));
                }
                None => {
                    let count = i32::try_from(topic.partitions().len());
                    counts.insert(name.clone(), count.context("too many partitions")?);
                }
            }
        }
    }
    Ok(counts)
}

/// Creates those of `topics` that are missing, and waits until they can be written to. Returns the names of those that were missing.
///
/// # Errors
/// A [`TopicError`] if Kafka refuses. Any other error is worth another try.
pub async fn create_missing(settings: &KafkaSettings, topics: &[NewTopic]) -> anyhow::Result<Vec<String>> {
    let names: Vec<String> = topics.iter().map(|topic| topic.name.clone()).collect();
    let existing = partition_counts_off_thread(settings, &names).await?;
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
            Err((topic, code)) => {
                let what = format!("cannot create topic `{topic}`");
                return Err(anyhow::Error::new(TopicError { topic, code }).context(what));
            }
        }
    }
    let missing_names: Vec<String> = missing.iter().map(|topic| topic.name.clone()).collect();
    for _ in 0..100 {
        if partition_counts_off_thread(settings, &missing_names).await?.len() == missing_names.len() {
            return Ok(missing_names);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!(
        "new topics do not appear in the cluster's metadata: {}",
        missing_names.join(", ")
    )
}

/// How many partitions a topic has. If the topic is missing, it is created from `template`. `None`: it is missing, and there is no template.
///
/// # Errors
/// As [`create_missing`].
pub async fn find_or_create(
    settings: &KafkaSettings,
    name: &str,
    template: Option<&NewTopic>,
) -> anyhow::Result<Option<i32>> {
    let names = [name.to_owned()];
    let existing = partition_counts_off_thread(settings, &names).await?.get(name).copied();
    let (None, Some(template)) = (existing, template) else {
        return Ok(existing);
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
    Ok(partition_counts_off_thread(settings, &names).await?.get(name).copied())
}

async fn partition_counts_off_thread(
    settings: &KafkaSettings,
    names: &[String],
) -> anyhow::Result<BTreeMap<String, i32>> {
    let (settings, names) = (settings.clone(), names.to_vec());
    tokio::task::spawn_blocking(move || partition_counts(&settings, &names))
        .await
        .context("metadata task")?
}

#[cfg(test)]
mod tests {
    use rdkafka::error::RDKafkaErrorCode;

    use super::{Amount, Destination, KnownRoutes, NoDestination, TopicError};
    use crate::kafka::TopicRules;

    #[test]
    fn what_the_cluster_cannot_do_now_is_told_from_what_it_will_not_do() {
        let is_definite = |code| {
            let topic = "t".to_owned();
            TopicError { topic, code }.is_definite()
        };
        for code in [
            RDKafkaErrorCode::InvalidTopic,
            RDKafkaErrorCode::PolicyViolation,
            RDKafkaErrorCode::TopicAuthorizationFailed,
            RDKafkaErrorCode::InvalidConfig,
        ] {
            assert!(is_definite(code), "{code}");
        }
        for code in [
            RDKafkaErrorCode::InvalidReplicationFactor,
            RDKafkaErrorCode::RequestTimedOut,
            RDKafkaErrorCode::NotController,
        ] {
            assert!(!is_definite(code), "{code}");
        }
    }

    #[test]
    fn a_route_that_leads_nowhere_is_known_until_another_does() {
        let mut routes = KnownRoutes::default();
        let missing = |topic: &str| NoDestination::Missing {
            topic: topic.to_owned(),
        };
        routes.insert("a".to_owned(), Err(missing("a")));
        assert_eq!(routes.get("a"), Some(Err(&missing("a"))));
        let destination = Destination::new("b".to_owned(), 1, u64::MAX, TopicRules::default());
        routes.insert("b".to_owned(), Ok(destination.clone()));
        assert_eq!(routes.get("b"), Some(Ok(&destination)));
        routes.insert("c".to_owned(), Err(missing("c")));
        assert_eq!(routes.get("a"), None, "asked for again");
        assert_eq!(routes.get("c"), Some(Err(&missing("c"))));
    }

    #[test]
    fn what_was_sent_to_each_topic_is_taken_once() {
        let mut routes = KnownRoutes::default();
        for (route, topic) in [("a", "t"), ("b", "t"), ("c", "u")] {
            let destination = Destination::new(topic.to_owned(), 1, u64::MAX, TopicRules::default());
            routes.insert(route.to_owned(), Ok(destination));
        }
        for route in ["a", "b"] {
            routes.get(route).unwrap().unwrap().count_sent(5);
        }
        let sent = Amount { records: 2, bytes: 10 };
        assert_eq!(routes.take_sent(), [("t".to_owned(), sent)]);
        assert_eq!(routes.take_sent(), []);
    }
}
