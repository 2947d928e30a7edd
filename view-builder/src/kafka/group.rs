//! What librdkafka tells the member of the group: its partitions, their ends, the state of its connections.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kafka_client::{ClientSettings, Reasons, Tokens};
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaRespErr;
use tokio::sync::Notify;

use super::end::End;
use crate::contract::place::{TopicPartition, place};

/// State older than this says that nothing is known.
const STATE_AGE_MAX: Duration = Duration::from_secs(8);
/// So long after a reading has begun librdkafka's state may still be that of the reading before, which ends on another thread.
const FORMER_READING_MAX: Duration = Duration::from_secs(1);

/// What librdkafka's callbacks tell.
#[derive(Debug)]
pub struct GroupContext {
    /// Before librdkafka has made the client: its state says how long after that it was taken.
    made_at: Instant,
    /// When the partitions were assigned last, with the offsets to read from.
    reading_since: Mutex<Instant>,
    /// Counts assignments and revocations.
    generation: AtomicU64,
    assigned: Mutex<Vec<TopicPartition>>,
    changed: Notify,
    state: Mutex<Option<State>>,
    reasons: Reasons,
    /// Whether a broker has refused the client since that was asked last.
    is_refused: AtomicBool,
    tokens: Tokens,
    settings: ClientSettings,
    /// What the files held that the client was made with, see [`ClientSettings::fingerprint_of_files`].
    files: u64,
}

/// The client's state as of its last statistics.
#[derive(Debug)]
struct State {
    at: Instant,
    /// It was taken at this time at the earliest. It may have waited for long to be told.
    taken_at: Instant,
    broker_up: bool,
    member: bool,
    ends: HashMap<TopicPartition, End>,
}

impl GroupContext {
    /// Of a client that is made with these settings, when their files had this fingerprint.
    #[must_use]
    pub fn of(settings: &ClientSettings, files: u64) -> Self {
        let now = Instant::now();
        Self {
            reasons: Reasons::default(),
            tokens: settings.tokens(),
            is_refused: AtomicBool::default(),
            settings: settings.clone(),
            files,
            made_at: now,
            reading_since: Mutex::new(now),
            generation: AtomicU64::default(),
            assigned: Mutex::default(),
            changed: Notify::default(),
            state: Mutex::default(),
        }
    }

    /// Waits until the assignment has changed since the last call.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// The assignment and its generation.
    pub fn assigned(&self) -> (u64, Vec<TopicPartition>) {
        let assigned = lock(&self.assigned);
        (self.generation(), assigned.clone())
    }

    /// The partition's end. State from before the partitions were assigned last does not tell that it is reached: what was handed over until
    /// then has been dropped, and may be read again from an earlier offset, before which the partition looks settled.
    pub fn end(&self, place: &TopicPartition) -> Option<End> {
        let reading_since = *lock(&self.reading_since);
        let state = lock(&self.state);
        let state = state.as_ref()?;
        let end = state.ends.get(place).copied()?;
        let is_of_this_reading = state.taken_at > reading_since + FORMER_READING_MAX;
        Some(End {
            reached: end.reached && is_of_this_reading,
            ..end
        })
    }

    /// Notes that the partitions are read anew from now on.
    pub(super) fn note_that_reading_begins_anew(&self) {
        *lock(&self.reading_since) = Instant::now();
    }

    /// Why this process cannot get events now; none when it can.
    pub fn trouble(&self) -> Option<String> {
        let away = match &*lock(&self.state) {
            None => "no broker has answered yet",
            Some(state) if state.at.elapsed() > STATE_AGE_MAX || !state.broker_up => "no broker can be reached",
            Some(state) if !state.member => return Some("this process is no settled member of its group".to_owned()),
            Some(_) => return None,
        };
        let refused = self.reasons.refused();
        Some(refused.map_or_else(|| away.to_owned(), |refused| refused.to_string()))
    }

    /// Whether a broker refuses this client, or `is_other_refused` another one that was made with it, and the files of its password or certificate
    /// hold something else since: new clients may be let in. While a file is missing there is nothing to make them with.
    pub fn is_outdated(&self, is_other_refused: bool) -> bool {
        let is_refused = self.is_refused.swap(false, Ordering::SeqCst) || is_other_refused;
        is_refused && self.settings.fingerprint_of_files() != self.files && self.settings.with_files_read().is_ok()
    }

    /// Forgets the assignment: what is still being done for it is outdated.
    pub fn forget(&self) {
        let mut assigned = lock(&self.assigned);
        assigned.clear();
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    fn set(&self, places: Vec<TopicPartition>) {
        let mut assigned = lock(&self.assigned);
        *assigned = places;
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_one();
    }
}

impl ClientContext for GroupContext {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, config: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.tokens.issue(config)
    }

    fn stats(&self, statistics: Statistics) {
        let broker_up = statistics
            .brokers
            .values()
            .any(|broker| broker.nodeid >= 0 && broker.state == "UP");
        if broker_up {
            self.reasons.forget();
        }
        let member = statistics
            .cgrp
            .as_ref()
            .is_some_and(|group| group.state == "up" && group.join_state == "steady");
        let mut ends = HashMap::new();
        for topic in statistics.topics.values() {
            for partition in topic.partitions.values().filter(|partition| partition.ls_offset >= 0) {
                let place = TopicPartition {
                    topic: topic.topic.as_str().into(),
                    partition: partition.partition,
                };
                // librdkafka counts a transaction marker as handed over when it passes it.
                let end = End {
                    end: partition.ls_offset,
                    reached: partition.app_offset >= partition.ls_offset,
                };
                ends.insert(place, end);
            }
        }
        // In microseconds since the client was made, so never negative. If it were, 0 would make the state look old, and only delay what rests on
        // it.
        let age = Duration::from_micros(u64::try_from(statistics.age).unwrap_or(0));
        *lock(&self.state) = Some(State {
            at: Instant::now(),
            taken_at: self.made_at + age,
            broker_up,
            member,
            ends,
        });
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.reasons.note(&error, reason);
        if self.reasons.refused().is_some() {
            self.is_refused.store(true, Ordering::SeqCst);
        }
        tracing::debug!(error = %error, reason, "kafka client");
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(kafka.level = ?level, kafka.facility = facility, message, "kafka client");
    }
}

impl ConsumerContext for GroupContext {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, event: RDKafkaRespErr, list: &mut TopicPartitionList) {
        if event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            self.set(places(list));
            return;
        }
        if let Err(err) = consumer.unassign() {
            tracing::warn!(error = %err, "partitions cannot be given back");
        }
        self.set(Vec::new());
    }
}

fn places(list: &TopicPartitionList) -> Vec<TopicPartition> {
    list.elements()
        .into_iter()
        .map(|element| place(element.topic(), element.partition()))
        .collect()
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Duration;

    use kafka_client::ClientSettings;
    use rdkafka::client::ClientContext;
    use rdkafka::error::{KafkaError, RDKafkaErrorCode};
    use rdkafka::statistics::{Partition, Statistics, Topic};

    use super::{End, FORMER_READING_MAX, GroupContext};
    use crate::contract::place::place;

    /// State that was taken so long after the client was made: everything before offset 12 is handed over.
    fn state(age: Duration) -> Statistics {
        let partition = Partition {
            partition: 3,
            ls_offset: 12,
            app_offset: 12,
            ..Partition::default()
        };
        let topic = Topic {
            topic: "user-events".to_owned(),
            partitions: HashMap::from([(3, partition)]),
            ..Topic::default()
        };
        Statistics {
            age: i64::try_from(age.as_micros()).expect("an age"),
            topics: HashMap::from([("user-events".to_owned(), topic)]),
            ..Statistics::default()
        }
    }

    #[test]
    fn a_client_is_outdated_once_it_is_refused_and_a_file_holds_something_else() {
        let path = std::env::temp_dir().join(format!("view-builder-password-{}", std::process::id()));
        std::fs::write(&path, "first").unwrap();
        let lines = [format!("sasl.password={}", path.display())];
        let settings = ClientSettings::new("localhost:9092")
            .with_property_files(&lines, &[])
            .unwrap();
        let context = GroupContext::of(&settings, settings.fingerprint_of_files());
        let refuse = || context.error(KafkaError::Global(RDKafkaErrorCode::Authentication), "wrong password");
        refuse();
        assert!(!context.is_outdated(false), "the file is the same");
        assert!(context.trouble().unwrap().contains("wrong password"));
        std::fs::write(&path, "second").unwrap();
        assert!(!context.is_outdated(false), "nobody has refused it since");
        assert!(context.is_outdated(true), "but the one that was made with it");
        refuse();
        assert!(context.is_outdated(false));
        std::fs::remove_file(&path).unwrap();
        refuse();
        assert!(!context.is_outdated(false), "there is no password to try");
    }

    #[test]
    fn an_end_that_was_reached_in_a_former_reading_is_not_reached_in_this_one() {
        let context = GroupContext::of(&ClientSettings::new("localhost:9092"), 0);
        let place = place("user-events", 3);
        let hour = Duration::from_secs(3_600);
        context.stats(state(hour));
        assert_eq!(context.end(&place), Some(End { end: 12, reached: true }));
        *super::lock(&context.reading_since) = context.made_at + 2 * hour;
        assert_eq!(
            context.end(&place),
            Some(End {
                end: 12,
                reached: false
            })
        );
        // Told only now, and taken before.
        context.stats(state(2 * hour));
        assert_eq!(
            context.end(&place),
            Some(End {
                end: 12,
                reached: false
            })
        );
        context.stats(state(2 * hour + 2 * FORMER_READING_MAX));
        assert_eq!(context.end(&place), Some(End { end: 12, reached: true }));
    }
}
