//! Watches the topics while the relay streams.
//!
//! Neither Kafka nor librdkafka reports these three changes to a producer:
//!
//! - A topic was deleted and made anew. The producer asks where the topic's partitions are, and goes on.
//! - Partitions were added. From then on other producers send a key's records to another partition than the relay does.
//! - An open transaction hides records.
//!
//! So a task of its own asks every few seconds, with a client of its own. A finding counts only if a second look finds it too, since a broker that has just
//! started may not know the newest state yet.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::continuity::checkpoint::Lineage;
use crate::findings::topic_check;
use crate::kafka::{TopicAsker, settings_of_topics};
use crate::process::stop::{RelayError, Stop};
use crate::settings::Config;
use crate::topics::hidden_records::HiddenRecords;
use crate::topics::identity::{self, Topics};

/// How often the topics are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// How long after a finding the second look comes.
const SECOND_LOOK_AFTER: Duration = Duration::from_secs(1);
/// How often we ask where the partitions end.
const ENDS_INTERVAL: Duration = Duration::from_secs(15);
/// How often the settings of the topics are looked at.
const SETTINGS_INTERVAL: Duration = Duration::from_secs(60);

/// The running watch. It ends when this is dropped.
pub struct TopicWatch {
    findings: watch::Receiver<Finding>,
    pinned: Arc<Mutex<Lineage>>,
    task: JoinHandle<()>,
}

/// What the watch has found.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Finding {
    AsPinned,
    /// A topic does not exist. The next start finds out what that means.
    Missing(String),
    /// A transaction that has lost its end hides records of the checkpoint topic. The next start finds out what that means.
    CheckpointHidden(String),
    /// A topic was made anew, or has another number of partitions.
    NotAsPinned(Stop),
}

impl TopicWatch {
    /// Starts to watch the topics of `lineage` and the checkpoint topic.
    #[must_use]
    pub fn start(config: &Config, lineage: &Lineage) -> Self {
        metrics::describe_gauge!(
            "relay_checkpoint_topic_unsafe",
            "1 while the settings of the checkpoints' topic let Kafka delete the last checkpoint."
        );
        metrics::describe_gauge!(
            "relay_topic_dangers",
            "How many dangers the settings of the relay's topics have, as `check` tells them."
        );
        metrics::describe_gauge!(
            "relay_records_hidden_seconds",
            metrics::Unit::Seconds,
            "For how long an open transaction has hidden what lies behind it in a partition of the relay's topics: the longest, in seconds."
        );
        let (sender, findings) = watch::channel(Finding::AsPinned);
        let pinned = Arc::new(Mutex::new(lineage.clone()));
        let task = Task {
            config: config.clone(),
            pinned: Arc::clone(&pinned),
            sender,
        };
        Self {
            findings,
            pinned,
            task: tokio::spawn(task.run()),
        }
    }

    /// Compares with this lineage from now on, which may have pinned more topics.
    pub fn compare_with(&self, lineage: &Lineage) {
        self.pinned
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone_from(lineage);
    }

    /// Fails if the last look found that the topics are not as they were pinned. Never waits.
    ///
    /// # Errors
    /// [`Stop::TopicRecreated`] or [`Stop::PartitionsChanged`]. A transient error if a topic is missing or hides records.
    pub fn ensure_as_pinned(&self) -> Result<(), RelayError> {
        match &*self.findings.borrow() {
            Finding::AsPinned => Ok(()),
            Finding::Missing(topic) => Err(anyhow::anyhow!("topic `{topic}` does not exist any more").into()),
            Finding::CheckpointHidden(topic) => {
                Err(anyhow::anyhow!("an open transaction hides the end of topic `{topic}`").into())
            }
            Finding::NotAsPinned(stop) => Err(stop.clone().into()),
        }
    }
}

impl Drop for TopicWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Task {
    config: Config,
    pinned: Arc<Mutex<Lineage>>,
    sender: watch::Sender<Finding>,
}

impl Task {
    async fn run(self) {
        let mut asker = None;
        let mut hidden = HiddenRecords::default();
        let mut settings_due = Instant::now();
        let mut logged_dangers = BTreeSet::new();
        let mut ends_due = Instant::now();
        loop {
            if Instant::now() >= settings_due {
                settings_due = Instant::now() + SETTINGS_INTERVAL;
                if let Err(err) = self.look_at_settings(&mut asker, &mut logged_dangers).await {
                    tracing::debug!(error = format!("{err:#}"), "cannot look at the topics' settings");
                }
            }
            sleep(LOOK_INTERVAL).await;
            if Instant::now() >= ends_due {
                ends_due = Instant::now() + ENDS_INTERVAL;
                match self.look_at_ends(&mut asker, &mut hidden).await {
                    Ok(Finding::AsPinned) => {}
                    Ok(found) => {
                        self.sender.send_replace(found);
                        return;
                    }
                    Err(err) => {
                        asker = None;
                        tracing::debug!(error = format!("{err:#}"), "cannot look at the topics' ends");
                    }
                }
            }
            let mut finding = self.look(&mut asker).await;
            if matches!(&finding, Ok(finding) if *finding != Finding::AsPinned) {
                sleep(SECOND_LOOK_AFTER).await;
                let again = self.look(&mut asker).await;
                if again.as_ref().ok() != finding.as_ref().ok() {
                    finding = Ok(Finding::AsPinned);
                }
            }
            match finding {
                Ok(Finding::AsPinned) => {}
                Ok(found) => {
                    self.sender.send_replace(found);
                    return;
                }
                Err(err) => {
                    asker = None;
                    tracing::debug!(error = format!("{err:#}"), "cannot look at the topics");
                }
            }
        }
    }

    async fn look(&self, asker: &mut Option<TopicAsker>) -> anyhow::Result<Finding> {
        if planted::looks_at_topics_only_at_start() {
            return Ok(Finding::AsPinned);
        }
        let lineage = self.lineage();
        let names = identity::names_of_topics(&lineage, &self.config.sink.checkpoint_topic);
        let answer = self.ask(asker, move |asker| {
            let topics = asker.ask(&names)?;
            let missing = names.into_iter().find(|name| !topics.contains_key(name));
            Ok((topics, missing))
        });
        let (topics, missing) = answer.await?;
        Ok(compare_with_lineage(&lineage, &topics, missing))
    }

    /// Asks with the client that we keep, on a thread of its own. A client that failed is not kept.
    async fn ask<T: Send + 'static>(
        &self,
        kept: &mut Option<TopicAsker>,
        question: impl FnOnce(&TopicAsker) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let (kafka, asker) = (self.config.sink.kafka.clone(), kept.take());
        let asked = tokio::task::spawn_blocking(move || {
            let asker = match asker {
                Some(asker) => asker,
                None => TopicAsker::open(&kafka)?,
            };
            let answer = question(&asker)?;
            anyhow::Ok((asker, answer))
        });
        let (asker, answer) = asked.await.context("task that looks at topics")??;
        *kept = Some(asker);
        Ok(answer)
    }

    /// Finds out whether open transactions hide records, and for how long. If a transaction hides checkpoints for good, the relay has to begin anew: its next
    /// start could not read the checkpoint.
    async fn look_at_ends(
        &self,
        asker: &mut Option<TopicAsker>,
        hidden: &mut HiddenRecords,
    ) -> anyhow::Result<Finding> {
        let mut partitions = self.lineage().partitions;
        partitions.insert(self.config.sink.checkpoint_topic.to_string(), 1);
        let ends = self.ask(asker, move |asker| asker.ends(&partitions)).await?;
        let now = Instant::now();
        hidden.note(ends, now);
        hidden.log_news(now);
        let longest = hidden.longest(now).map_or(Duration::ZERO, |longest| longest.lasted);
        metrics::gauge!("relay_records_hidden_seconds").set(longest.as_secs_f64());
        let topic = &self.config.sink.checkpoint_topic;
        Ok(
            if hidden.lasted(topic, now) > self.config.sink.kafka.transactions_end_within() {
                Finding::CheckpointHidden(topic.to_string())
            } else {
                Finding::AsPinned
            },
        )
    }

    /// Logs each danger once, as long as it lasts. Settings that the cluster does not tell count as no danger.
    ///
    /// # Errors
    /// Kafka does not answer.
    async fn look_at_settings(
        &self,
        asker: &mut Option<TopicAsker>,
        logged_dangers: &mut BTreeSet<String>,
    ) -> anyhow::Result<()> {
        let names = self.names_of_topics();
        let settings = settings_of_topics(&self.config.sink.kafka, &names).await?;
        if let Some(settings) = settings.get(self.config.sink.checkpoint_topic.as_str()) {
            let is_unsafe = settings.retention_danger().is_some();
            metrics::gauge!("relay_checkpoint_topic_unsafe").set(f64::from(u8::from(is_unsafe)));
        }
        let topics = self.ask(asker, move |asker| asker.ask(&names)).await?;
        let dangers: BTreeSet<String> = topic_check::find_dangers(&self.config, &topics, &settings)
            .into_iter()
            .collect();
        metrics::gauge!("relay_topic_dangers").set(dangers.len() as f64);
        for danger in dangers.difference(logged_dangers) {
            tracing::warn!("{danger}");
        }
        *logged_dangers = dangers;
        Ok(())
    }

    fn lineage(&self) -> Lineage {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The names of the topics that we watch.
    fn names_of_topics(&self) -> Vec<String> {
        identity::names_of_topics(&self.lineage(), &self.config.sink.checkpoint_topic)
    }
}

fn compare_with_lineage(lineage: &Lineage, topics: &Topics, missing: Option<String>) -> Finding {
    match (missing, identity::find_breaks(lineage, topics).into_iter().next()) {
        (Some(topic), _) => Finding::Missing(topic),
        (None, Some(stop)) => Finding::NotAsPinned(stop),
        (None, None) => Finding::AsPinned,
    }
}

/// The planted bugs of this file. Without the feature `faults` none of them is there.
mod planted {
    use crate::process::faults::{self, Bug};

    pub(super) fn looks_at_topics_only_at_start() -> bool {
        faults::is_planted(Bug::LookAtTopicsOnlyAtStart)
    }
}
