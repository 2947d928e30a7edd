//! What a topic's settings say of the records that it takes: asked for once, when the topic's first row comes.
//!
//! The broker judges a whole batch and refuses all of it, and a refusal costs the Kafka transaction. So a row that breaks a rule is found
//! before it is sent, by name. Where the cluster does not tell, nothing is ruled out here, and what the broker refuses is found by its
//! delivery report (see `kafka::client::refused_records`).

use std::time::Duration;

use rdkafka::admin::{AdminOptions, ConfigResource, ResourceSpecifier};

use crate::kafka::client::KafkaSettings;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The rules of one topic. The default rules nothing out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicRules {
    /// `max.message.bytes`: the largest batch, compressed where it is compressed; `None` where the cluster does not tell.
    pub batch_bytes_max: Option<u64>,
    /// `cleanup.policy` has `compact`: every record needs a key.
    pub is_compacted: bool,
    /// `message.timestamp.before.max.ms`: how much older than the broker's clock a time stamp may be; `None`: as old as it likes.
    pub older_ms_max: Option<i64>,
    /// `message.timestamp.after.max.ms`: how far ahead of the broker's clock a time stamp may be; `None`: as far as it likes.
    pub newer_ms_max: Option<i64>,
}

/// How a record breaks its topic's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breach {
    NoKey,
    /// Its time stamp is this many milliseconds old, and may be `allowed_ms`.
    TooOld {
        age_ms: i64,
        allowed_ms: i64,
    },
    /// Its time stamp is this many milliseconds ahead, and may be `allowed_ms`.
    TooNew {
        ahead_ms: i64,
        allowed_ms: i64,
    },
}

impl TopicRules {
    /// Asks the cluster, by DescribeConfigs. What it does not tell, as to a client that may not ask, is not ruled out.
    pub async fn ask(settings: &KafkaSettings, topic: &str) -> Self {
        if planted::asks_for_no_settings() {
            return Self::default();
        }
        let asked = async {
            let admin = settings.open_admin()?;
            let options = AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT));
            let mut described = admin
                .describe_configs(&[ResourceSpecifier::Topic(topic)], &options)
                .await?;
            let resource = described.pop().transpose().map_err(anyhow::Error::msg)?;
            // An answer without the topic tells nothing of it.
            Ok(resource.as_ref().map(Self::read).unwrap_or_default())
        };
        asked.await.unwrap_or_else(|err: anyhow::Error| {
            tracing::debug!(
                topic,
                error = format!("{err:#}"),
                "the cluster does not tell a topic's settings"
            );
            Self::default()
        })
    }

    fn read(resource: &ConfigResource) -> Self {
        Self::of(|name| resource.get(name)?.value.clone())
    }

    fn of(setting: impl Fn(&str) -> Option<String>) -> Self {
        let bounded = |name: &str| {
            let value = setting(name)?.parse::<i64>().ok()?;
            (value < i64::MAX).then_some(value)
        };
        // One that is not told asks for no key.
        let policy = setting("cleanup.policy").unwrap_or_default();
        // The broker's own clock is the time stamp then, whatever the record says.
        let is_broker_time = setting("message.timestamp.type").as_deref() == Some("LogAppendTime");
        // Before Kafka 3.6 there was one limit for both sides; until 4.0 it counts where the newer two are not set.
        let difference = bounded("message.timestamp.difference.max.ms");
        let limit = |name: &str| bounded(name).or(difference).filter(|_| !is_broker_time);
        Self {
            batch_bytes_max: setting("max.message.bytes").and_then(|value| value.parse().ok()),
            is_compacted: policy.split(',').any(|word| word.trim() == "compact"),
            older_ms_max: limit("message.timestamp.before.max.ms"),
            newer_ms_max: limit("message.timestamp.after.max.ms"),
        }
    }

    /// How a record with this time stamp (milliseconds since 1970) breaks the rules, if it does; its size is looked at elsewhere.
    ///
    /// What is too new is left to the broker: a clock of ours that is behind would rule out good rows. The time is asked for only where the topic
    /// limits a record's age.
    #[must_use]
    pub fn breach(&self, has_key: bool, timestamp_ms: i64, now_ms: impl Fn() -> i64) -> Option<Breach> {
        if self.is_compacted && !has_key {
            return Some(Breach::NoKey);
        }
        let allowed_ms = self.older_ms_max?;
        let age_ms = now_ms().saturating_sub(timestamp_ms);
        (age_ms > allowed_ms).then_some(Breach::TooOld { age_ms, allowed_ms })
    }

    /// Whether it is for its time stamp that the broker has refused a record: it is ahead of our clock as well.
    #[must_use]
    pub fn too_new(&self, timestamp_ms: i64, now_ms: i64) -> Option<Breach> {
        let allowed_ms = self.newer_ms_max?;
        let ahead_ms = timestamp_ms.saturating_sub(now_ms);
        (ahead_ms > allowed_ms).then_some(Breach::TooNew { ahead_ms, allowed_ms })
    }
}

/// The planted bugs of this file. Without the feature `faults` none of them is there.
mod planted {
    use crate::process::faults::{self, Bug};

    pub(super) fn asks_for_no_settings() -> bool {
        faults::is_planted(Bug::AskNoSettings) || faults::is_planted(Bug::ForgetRefused)
    }
}

#[cfg(test)]
mod tests {
    use super::{Breach, TopicRules};

    fn rules(settings: &[(&str, &str)]) -> TopicRules {
        TopicRules::of(|name| {
            let found = settings.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    const NOW: i64 = 1_000_000;

    fn breach(rules: &TopicRules, has_key: bool, timestamp_ms: i64) -> Option<Breach> {
        rules.breach(has_key, timestamp_ms, || NOW)
    }

    #[test]
    fn what_is_not_told_is_not_ruled_out() {
        assert_eq!(rules(&[]), TopicRules::default());
        assert_eq!(breach(&TopicRules::default(), false, i64::MAX), None);
    }

    #[test]
    fn a_compacted_topic_takes_no_record_without_a_key() {
        for policy in ["compact", "compact,delete", "delete, compact"] {
            let rules = rules(&[("cleanup.policy", policy)]);
            assert_eq!(breach(&rules, false, NOW), Some(Breach::NoKey), "{policy}");
            assert_eq!(breach(&rules, true, NOW), None);
        }
        assert_eq!(breach(&rules(&[("cleanup.policy", "delete")]), false, NOW), None);
    }

    #[test]
    fn a_time_stamp_may_be_as_old_and_as_new_as_the_topic_says() {
        let rules = rules(&[
            ("message.timestamp.type", "CreateTime"),
            ("message.timestamp.before.max.ms", "100"),
            ("message.timestamp.after.max.ms", "10"),
        ]);
        assert_eq!(breach(&rules, true, NOW - 100), None);
        assert!(matches!(
            breach(&rules, true, NOW - 101),
            Some(Breach::TooOld { age_ms: 101, .. })
        ));
        assert_eq!(breach(&rules, true, NOW + 11), None, "our clock may be behind");
        assert_eq!(rules.too_new(NOW + 10, NOW), None);
        assert!(matches!(
            rules.too_new(NOW + 11, NOW),
            Some(Breach::TooNew { ahead_ms: 11, .. })
        ));
    }

    #[test]
    fn the_brokers_own_time_knows_no_limits_and_an_older_broker_has_one_for_both() {
        let append = ("message.timestamp.type", "LogAppendTime");
        let unlimited = rules(&[append, ("message.timestamp.before.max.ms", "100")]);
        assert_eq!(breach(&unlimited, true, 0), None);
        let older = rules(&[("message.timestamp.difference.max.ms", "100")]);
        assert!(breach(&older, true, NOW - 101).is_some() && older.too_new(NOW + 101, NOW).is_some());
        let both = rules(&[
            ("message.timestamp.difference.max.ms", "100"),
            ("message.timestamp.before.max.ms", &i64::MAX.to_string()),
        ]);
        assert!(breach(&both, true, NOW - 101).is_some());
    }

    #[test]
    fn the_time_is_asked_for_only_where_it_may_matter() {
        let rules = rules(&[("message.timestamp.after.max.ms", "10")]);
        let never = || panic!("needless");
        assert_eq!(rules.breach(true, NOW, never), None);
    }
}
