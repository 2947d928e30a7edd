//! Watching for topics that do not exist yet.

use std::sync::Weak;
use std::time::Duration;

use rdkafka::consumer::Consumer;
use service::Readiness;

use crate::kafka::{GroupConsumer, REQUEST_TIMEOUT};
use crate::postgres::outage::Outage;
use crate::process::measure::Trouble;

/// How often Kafka is asked. Somebody may be waiting at a terminal for a topic to be found.
const INTERVAL: Duration = Duration::from_secs(2);

/// Says which of the topics are missing until all are there. The consumer finds them by itself; this is for people.
pub(crate) async fn watch(consumer: Weak<GroupConsumer>, mut missing: Vec<String>, readiness: Readiness) {
    let mut outage = Outage::of("topics", Trouble::Kafka, readiness);
    loop {
        // Weak, so that the consumer's last handle is the builder's, which leaves the group with it.
        let (Some(asking), asked) = (consumer.upgrade(), missing.clone()) else {
            return;
        };
        let answer = tokio::task::spawn_blocking(move || {
            let absent = |topic: &String| {
                let metadata = asking.fetch_metadata(Some(topic), REQUEST_TIMEOUT)?;
                let there = metadata
                    .topics()
                    .iter()
                    .any(|found| found.name() == topic && found.error().is_none() && !found.partitions().is_empty());
                Ok::<_, rdkafka::error::KafkaError>((!there).then(|| topic.clone()))
            };
            asked
                .iter()
                .filter_map(|topic| absent(topic).transpose())
                .collect::<Result<Vec<_>, _>>()
        });
        // Where Kafka does not answer, the reason "kafka" says so.
        if let Ok(Ok(absent)) = answer.await {
            if absent.is_empty() {
                outage.ends();
                return;
            }
            missing = absent;
            outage.goes_on(format!(
                "kafka has no topic {}: create it, or start the relay that does",
                missing.join(", ")
            ));
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
