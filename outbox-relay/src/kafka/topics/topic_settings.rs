//! The settings that decide whether a topic keeps the relay's records. We ask for them by DescribeConfigs.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use rdkafka::admin::{AdminOptions, ConfigResource, OwnedResourceSpecifier, ResourceSpecifier};

use crate::kafka::client::KafkaSettings;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Settings of a topic, see <https://kafka.apache.org/documentation/#topicconfigs>.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSettings {
    /// `compact`, `delete`, both with a comma, or nothing.
    pub cleanup_policy: String,
    /// In milliseconds. -1: no limit.
    pub retention_ms: i64,
    /// In bytes. -1: no limit.
    pub retention_bytes: i64,
    /// Replicas that must have a record before it is acknowledged.
    pub min_insync_replicas: i32,
}

/// Asks the broker to describe a topic, by DescribeConfigs.
///
/// # Errors
/// Kafka does not answer, or does not let this client ask.
pub(in crate::kafka) async fn describe_topic(settings: &KafkaSettings, topic: &str) -> anyhow::Result<ConfigResource> {
    let admin = settings.open_admin()?;
    let options = AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT));
    let described = admin
        .describe_configs([&ResourceSpecifier::Topic(topic)], &options)
        .await
        .context("cannot read topics' settings")?;
    described
        .into_iter()
        .next()
        .context("the broker described no topic")?
        .map_err(|code| anyhow::anyhow!("the settings of topic `{topic}` cannot be read: {code}"))
}

/// Asks for the settings of several topics in one request. If the broker does not tell a topic's settings, or one of them is no number, the topic is left out.
///
/// # Errors
/// Kafka does not answer.
pub(crate) async fn settings_of_topics(
    settings: &KafkaSettings,
    topics: &[String],
) -> anyhow::Result<BTreeMap<String, TopicSettings>> {
    let admin = settings.open_admin()?;
    let options = AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT));
    let requests: Vec<ResourceSpecifier<'_>> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
    let described = admin
        .describe_configs(&requests, &options)
        .await
        .context("cannot read topics' settings")?;
    let known = described.into_iter().flatten().filter_map(|config| {
        let OwnedResourceSpecifier::Topic(topic) = &config.specifier else {
            return None;
        };
        Some((topic.clone(), TopicSettings::from_described(&config, topic).ok()?))
    });
    Ok(known.collect())
}

/// Asks for a topic's settings.
///
/// # Errors
/// Kafka does not answer, or does not let this client ask (the operation DescribeConfigs of the topic).
pub async fn topic_settings(settings: &KafkaSettings, topic: &str) -> anyhow::Result<TopicSettings> {
    TopicSettings::from_described(&describe_topic(settings, topic).await?, topic)
}

/// Asks for a topic's settings and returns [`TopicSettings::retention_danger`]. If Kafka does not tell them, there is only a warning in the log. `whether`
/// begins its text: `WHETHER is not known`.
pub(crate) async fn retention_danger(settings: &KafkaSettings, topic: &str, whether: &str) -> Option<String> {
    match topic_settings(settings, topic).await {
        Ok(settings) => settings.retention_danger(),
        Err(err) => {
            tracing::warn!(error = format!("{err:#}"), "{whether} is not known");
            None
        }
    }
}

impl TopicSettings {
    fn from_described(config: &ConfigResource, topic: &str) -> anyhow::Result<Self> {
        let value = |name: &str| {
            let value = config.get(name).and_then(|entry| entry.value.clone());
            value.with_context(|| format!("the broker does not say {name} of topic `{topic}`"))
        };
        Ok(Self {
            cleanup_policy: value("cleanup.policy")?,
            retention_ms: value("retention.ms")?.parse().context("retention.ms")?,
            retention_bytes: value("retention.bytes")?.parse().context("retention.bytes")?,
            min_insync_replicas: value("min.insync.replicas")?.parse().context("min.insync.replicas")?,
        })
    }

    fn has_cleanup_policy(&self, policy: &str) -> bool {
        self.cleanup_policy.split(',').any(|word| word.trim() == policy)
    }

    /// How the topic may lose its last record. `None`: it keeps it.
    #[must_use]
    pub fn retention_danger(&self) -> Option<String> {
        let limit = match (self.retention_ms, self.retention_bytes) {
            (-1, -1) => return None,
            (-1, bytes) => format!("retention.bytes is {bytes}"),
            (ms, _) => format!("retention.ms is {ms}"),
        };
        self.has_cleanup_policy("delete")
            .then(|| format!("its cleanup.policy is `{}` and its {limit}", self.cleanup_policy))
    }

    /// Whether a key's older records are removed one day.
    #[must_use]
    pub fn is_compacted(&self) -> bool {
        self.has_cleanup_policy("compact")
    }
}

#[cfg(test)]
mod tests {
    use super::TopicSettings;

    fn with(cleanup_policy: &str, retention_ms: i64, retention_bytes: i64) -> TopicSettings {
        TopicSettings {
            cleanup_policy: cleanup_policy.to_owned(),
            retention_ms,
            retention_bytes,
            min_insync_replicas: 1,
        }
    }

    #[test]
    fn only_what_is_deleted_by_age_or_size_may_lose_its_last_record() {
        assert_eq!(with("compact", 60_000, 1).retention_danger(), None);
        assert_eq!(with("delete", -1, -1).retention_danger(), None);
        let danger = with("compact, delete", 60_000, -1).retention_danger();
        assert_eq!(
            danger.as_deref(),
            Some("its cleanup.policy is `compact, delete` and its retention.ms is 60000")
        );
        assert!(with("delete", -1, 1_000).retention_danger().is_some());
        assert!(with("compact,delete", 1, 1).is_compacted());
    }
}
