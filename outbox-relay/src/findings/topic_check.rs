//! What `check` says of the topics: whether they are those that the checkpoint knows, and whether their settings endanger the records in them.

use std::collections::BTreeMap;

use crate::continuity::checkpoint::Checkpoint;
use crate::findings::Finding;
use crate::kafka::{TopicFacts, TopicSettings, topic_facts, topic_settings};
use crate::settings::Config;
use crate::topics::compaction;
use crate::topics::identity::{self, Topics};

/// Looks at the topics that the checkpoint names, and at the topic that holds the checkpoints.
pub(crate) async fn findings(config: &Config, checkpoint: Option<&Checkpoint>) -> Vec<Finding> {
    let lineage = checkpoint.map(|checkpoint| &checkpoint.lineage);
    let names = lineage.map_or_else(
        || vec![config.sink.checkpoint_topic.to_string()],
        |lineage| identity::names_of_topics(lineage, &config.sink.checkpoint_topic),
    );
    let topics = match topic_facts(&config.sink.kafka, names).await {
        Ok(topics) => topics,
        Err(err) => return vec![Finding::Problem(format!("{err:#}"))],
    };
    let mut findings: Vec<Finding> = match lineage {
        Some(lineage) => identity::find_breaks(lineage, &topics)
            .into_iter()
            .map(|stop| Finding::Problem(stop.to_string()))
            .collect(),
        None => Vec::new(),
    };
    if findings.is_empty()
        && let Some(lineage) = lineage
    {
        findings.push(topics_are_as_pinned(lineage.partitions.len(), &topics));
    }
    for (topic, facts) in &topics {
        match topic_settings(&config.sink.kafka, topic).await {
            Ok(settings) => findings.extend(judge_settings(config, topic, facts, &settings)),
            Err(err) => findings.push(Finding::Warning(format!(
                "{err:#}; whether it keeps its records is not known"
            ))),
        }
    }
    findings
}

/// Says for each topic what its settings endanger. A topic whose settings are not in `settings` is left out.
pub(crate) fn find_dangers(
    config: &Config,
    topics: &Topics,
    settings: &BTreeMap<String, TopicSettings>,
) -> Vec<String> {
    let known = topics
        .iter()
        .filter_map(|(topic, facts)| Some((topic, facts, settings.get(topic)?)));
    let findings = known.flat_map(|(topic, facts, settings)| judge_settings(config, topic, facts, settings));
    findings
        .filter_map(|finding| match finding {
            Finding::Problem(what) | Finding::Warning(what) => Some(what),
            Finding::Good(_) => None,
        })
        .collect()
}

fn topics_are_as_pinned(count: usize, topics: &Topics) -> Finding {
    if topics.values().any(|facts| facts.id.is_none()) {
        return Finding::Warning(
            "the cluster tells no topic ids: a topic that is deleted and made anew goes unnoticed".to_owned(),
        );
    }
    Finding::Good(format!("{count} topics of records are those that the checkpoint knows"))
}

fn judge_settings(config: &Config, topic: &str, facts: &TopicFacts, settings: &TopicSettings) -> Vec<Finding> {
    let mut findings = Vec::new();
    if topic == config.sink.checkpoint_topic.as_str() {
        findings.push(match settings.retention_danger() {
            Some(what) => Finding::Problem(compaction::checkpoint_topic_unsafe(config, what).to_string()),
            None if settings.is_compacted() => Finding::Good(format!("checkpoint topic {topic} is compacted")),
            None => Finding::Warning(format!(
                "checkpoint topic {topic} is not compacted: it grows with each transaction; {}",
                compaction::compact_command(config, &config.sink.checkpoint_topic)
            )),
        });
    }
    let (replicas, insync) = (facts.replicas, settings.min_insync_replicas);
    if insync > replicas {
        findings.push(Finding::Warning(format!(
            "topic {topic}: min.insync.replicas is {insync}, and its partitions have {replicas} replicas: nothing can be published"
        )));
    } else if insync == 1 && replicas > 1 {
        findings.push(Finding::Warning(format!(
            "topic {topic}: min.insync.replicas is 1 of {replicas} replicas: what one broker alone has acknowledged is lost with it; set it to {}",
            replicas - 1
        )));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::judge_settings;
    use crate::findings::Finding;
    use crate::kafka::{TopicFacts, TopicSettings};
    use crate::settings::{Cli, Command, Config};
    use clap::Parser;

    fn config() -> Config {
        let arguments = [
            "outbox-relay",
            "check",
            "--database-url",
            "postgres://u@h/d",
            "--checkpoint-topic",
            "c",
        ];
        match Cli::try_parse_from(arguments).unwrap().command {
            Command::Check(settings) => settings.check().unwrap(),
            _ => panic!("no check"),
        }
    }

    fn of(topic: &str, replicas: i32, cleanup_policy: &str, min_insync_replicas: i32) -> Vec<Finding> {
        let facts = TopicFacts {
            id: None,
            partitions: 1,
            replicas,
        };
        let settings = TopicSettings {
            cleanup_policy: cleanup_policy.to_owned(),
            retention_ms: 60_000,
            retention_bytes: -1,
            min_insync_replicas,
        };
        judge_settings(&config(), topic, &facts, &settings)
    }

    #[test]
    fn a_checkpoint_that_retention_may_delete_is_a_problem_with_its_cure() {
        assert!(matches!(&of("c", 1, "compact", 1)[..], [Finding::Good(_)]));
        let found = of("c", 1, "delete", 1);
        let [Finding::Problem(what)] = &found[..] else {
            panic!("{found:?}")
        };
        assert!(
            what.contains("--entity-name c --add-config cleanup.policy=compact"),
            "{what}"
        );
        assert!(of("data", 1, "delete", 1).is_empty(), "records may grow old");
    }

    #[test]
    fn too_few_or_too_many_replicas_in_sync_are_warned_of() {
        assert!(of("data", 3, "delete", 2).is_empty());
        assert!(matches!(&of("data", 3, "delete", 1)[..], [Finding::Warning(what)] if what.contains("set it to 2")));
        assert!(matches!(&of("data", 1, "delete", 2)[..], [Finding::Warning(what)] if what.contains("nothing can be")));
    }
}
