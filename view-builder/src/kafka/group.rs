//! What librdkafka tells a member of the group in callbacks: its partitions, their ends, and the state of its connections.

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

/// A state that is older than this is not believed.
const STATE_AGE_MAX: Duration = Duration::from_secs(8);
/// The reading before ends on another thread. So librdkafka's state may still be of that reading for this long after the new one has begun.
const FORMER_READING_MAX: Duration = Duration::from_secs(1);

/// The callbacks that librdkafka calls, and what they have told.
#[derive(Debug)]
pub struct GroupContext {
    /// The time right before librdkafka made the client. A state tells how long after this it was taken.
    made_at: Instant,
    /// When the partitions were last assigned with the offsets to read from.
    reading_since: Mutex<Instant>,
    /// Counts assignments and revocations.
    generation: AtomicU64,
    assigned: Mutex<Vec<TopicPartition>>,
    changed: Notify,
    state: Mutex<Option<State>>,
    reasons: Reasons,
    /// Whether a broker has refused the client since the last call of [`GroupContext::is_outdated`].
    is_refused: AtomicBool,
    tokens: Tokens,
    settings: ClientSettings,
    /// The [`ClientSettings::fingerprint_of_files`] at the time when the client was made.
    files_fingerprint: u64,
}

/// The client's state as of its last statistics.
#[derive(Debug)]
struct State {
    told_at: Instant,
    /// librdkafka took the state at this time or later. It may have told it much later.
    taken_at: Instant,
    has_broker: bool,
    is_member: bool,
    ends: HashMap<TopicPartition, End>,
}

impl GroupContext {
    /// The context of a client that is about to be made with these settings, whose files have this fingerprint now.
    #[must_use]
    pub fn new(settings: &ClientSettings, files_fingerprint: u64) -> Self {
        let now = Instant::now();
        Self {
            reasons: Reasons::default(),
            tokens: settings.tokens(),
            is_refused: AtomicBool::default(),
            settings: settings.clone(),
            files_fingerprint,
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

    /// The partition's end. A state from before the last assignment does not prove that the end is reached. The records that were handed over
    /// before it were dropped, and may be read again from an earlier offset. Until then the partition would wrongly look settled.
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

    /// Why this process cannot get events now. `None`: it can.
    pub fn trouble(&self) -> Option<String> {
        let away = match &*lock(&self.state) {
            None => "no broker has answered yet",
            Some(state) if state.told_at.elapsed() > STATE_AGE_MAX || !state.has_broker => "no broker can be reached",
            Some(state) if !state.is_member => {
                return Some("this process is no settled member of its group".to_owned());
            }
            Some(_) => return None,
        };
        let refused = self.reasons.refused();
        Some(refused.map_or_else(|| away.to_owned(), |refused| refused.to_string()))
    }

    /// Whether new clients should replace this one: a broker refuses it, and the files of its password or certificate have changed since it was
    /// made, so a new client may be accepted. `is_other_refused`: a broker refuses another client that was made together with this one. It is
    /// false while a file is missing, since no client could be made then.
    pub fn is_outdated(&self, is_other_refused: bool) -> bool {
        let is_refused = self.is_refused.swap(false, Ordering::SeqCst) || is_other_refused;
        is_refused
            && self.settings.fingerprint_of_files() != self.files_fingerprint
            && self.settings.with_files_read().is_ok()
    }

    /// Forgets the assignment. What is still being done for it is outdated from now on.
    pub fn forget(&self) {
        let mut assigned = lock(&self.assigned);
        assigned.clear();
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    fn set_assigned(&self, places: Vec<TopicPartition>) {
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
        let has_broker = statistics
            .brokers
            .values()
            .any(|broker| broker.nodeid >= 0 && broker.state == "UP");
        if has_broker {
            self.reasons.forget();
        }
        let is_member = statistics
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
        // In microseconds since the client was made, so it is never negative. If it were, 0 would make the state look old, which only causes
        // delays.
        let age = Duration::from_micros(u64::try_from(statistics.age).unwrap_or(0));
        *lock(&self.state) = Some(State {
            told_at: Instant::now(),
            taken_at: self.made_at + age,
            has_broker,
            is_member,
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
            self.set_assigned(places_of(list));
            return;
        }
        if let Err(err) = consumer.unassign() {
            tracing::warn!(error = %err, "partitions cannot be given back");
        }
        self.set_assigned(Vec::new());
    }
}

fn places_of(list: &TopicPartitionList) -> Vec<TopicPartition> {
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
        let context = GroupContext::new(&settings, settings.fingerprint_of_files());
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
        let context = GroupContext::new(&ClientSettings::new("localhost:9092"), 0);
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
