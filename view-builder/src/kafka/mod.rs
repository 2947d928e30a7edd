//! The consumer: a member of the group whose partitions are assigned by [`crate::builder`], with explicit offsets.
//!
//! librdkafka tells a new assignment in a callback. The callback only notes it down: until `assign` is called with the
//! positions from Postgres nothing is fetched, so no record from another offset can slip in. A revocation is obeyed at once.

pub mod servers;

use crate::contract::place::place;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, StreamConsumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use tokio::sync::Notify;

use crate::contract::place::TopicPartition;
use crate::contract::position::Position;
use crate::contract::position::Reached;
use crate::kafka::servers::Kafka;
use crate::process::failure::Failure;
use crate::process::faults;

/// Limit of each request that this program makes itself.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How often librdkafka tells its state.
const STATISTICS_INTERVAL_MS: &str = "1000";
/// State older than this says that nothing is known.
const STATE_AGE_MAX: Duration = Duration::from_secs(8);
/// So long after a reading has begun librdkafka's state may still be that of the reading before, which ends on another thread.
const FORMER_READING_MAX: Duration = Duration::from_secs(1);

pub type GroupConsumer = StreamConsumer<GroupContext>;

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

/// The end of a partition as of the last fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// One past the last offset that a read_committed reader sees, transaction markers included.
    pub end: i64,
    /// Everything before `end` has been handed to this program.
    pub reached: bool,
}

impl End {
    /// The offset that stands for "everything before is applied": the end, where all that was handed over is applied
    /// (between the position and the end are transaction markers only), else the position.
    #[must_use]
    pub fn applied_up_to(&self, position: &Position<'_>) -> i64 {
        if self.reached && position.settled {
            self.end.max(position.next_offset)
        } else {
            position.next_offset
        }
    }
}

impl Default for GroupContext {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            made_at: now,
            reading_since: Mutex::new(now),
            generation: AtomicU64::default(),
            assigned: Mutex::default(),
            changed: Notify::default(),
            state: Mutex::default(),
        }
    }
}

impl GroupContext {
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

    /// From now on the partitions are read anew.
    fn reads_anew(&self) {
        *lock(&self.reading_since) = Instant::now();
    }

    /// Why this process cannot get events now; none when it can.
    pub fn trouble(&self) -> Option<&'static str> {
        match &*lock(&self.state) {
            None => Some("no broker has answered yet"),
            Some(state) if state.at.elapsed() > STATE_AGE_MAX || !state.broker_up => Some("no broker can be reached"),
            Some(state) if !state.member => Some("this process is no settled member of its group"),
            Some(_) => None,
        }
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
    fn stats(&self, statistics: Statistics) {
        let broker_up = statistics
            .brokers
            .values()
            .any(|broker| broker.nodeid >= 0 && broker.state == "UP");
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
        // In microseconds.
        let age = Duration::from_micros(u64::try_from(statistics.age).unwrap_or_default());
        *lock(&self.state) = Some(State {
            at: Instant::now(),
            taken_at: self.made_at + age,
            broker_up,
            member,
            ends,
        });
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(error = %error, reason, "kafka client");
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(kafka.level = ?level, kafka.facility = facility, message, "kafka client");
    }
}

/// For a client that meets partitions' ends as a matter of course.
pub struct Quiet;

/// A client for looking at topics and groups only.
pub type Observer = BaseConsumer<Quiet>;

impl ClientContext for Quiet {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(error = %error, reason, "kafka client");
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(kafka.level = ?level, kafka.facility = facility, message, "kafka client");
    }
}

impl ConsumerContext for Quiet {}

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

/// A consumer for the group; nothing is subscribed yet.
///
/// # Errors
/// A property is unknown or has a wrong value.
pub fn consumer(servers: &Kafka, instance: Option<&str>, batch_bytes: u32) -> Result<GroupConsumer, Failure> {
    let mut config = client(servers);
    config
        .set("group.id", &servers.group_id)
        .set("partition.assignment.strategy", "range")
        .set("session.timeout.ms", "6000")
        .set("heartbeat.interval.ms", "2000")
        // A process that is stuck with one batch for this long loses its partitions.
        .set("max.poll.interval.ms", "60000")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("topic.metadata.refresh.interval.ms", "5000")
        .set("statistics.interval.ms", STATISTICS_INTERVAL_MS)
        // What is fetched ahead: two batches, and never a second of pause when that is full.
        .set(
            "queued.max.messages.kbytes",
            (batch_bytes / 1024 * 2).max(1024).to_string(),
        )
        .set("fetch.queue.backoff.ms", "5")
        .set("fetch.max.bytes", batch_bytes.max(1_048_576).to_string())
        .set("fetch.message.max.bytes", "524288")
        .set("fetch.error.backoff.ms", "200");
    if let Some(instance) = instance {
        config.set("group.instance.id", instance);
    }
    add_properties(&mut config, servers);
    config
        .create_with_context(GroupContext::default())
        .map_err(|err| refused(&err))
}

/// An observer that is told where a partition ends.
///
/// # Errors
/// A property is unknown or has a wrong value.
pub fn observer(servers: &Kafka) -> Result<Observer, Failure> {
    let mut config = outsider(servers, &servers.group_id);
    config.set("enable.partition.eof", "true");
    config.create_with_context(Quiet).map_err(|err| refused(&err))
}

/// A client that finds out where logs part from what was read of them.
///
/// # Errors
/// A property is unknown or has a wrong value.
pub(crate) fn parting_observer(servers: &Kafka) -> Result<Observer, Failure> {
    let mut config = outsider(servers, &servers.group_id);
    config
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "earliest");
    config.create_with_context(Quiet).map_err(|err| refused(&err))
}

/// As [`observer`], but a partition's end is that of a reader who sees open transactions as well.
///
/// # Errors
/// A property is unknown or has a wrong value.
pub(crate) fn uncommitted_observer(servers: &Kafka) -> Result<Observer, Failure> {
    let mut config = outsider(servers, &servers.group_id);
    config.set("isolation.level", "read_uncommitted");
    config.create_with_context(Quiet).map_err(|err| refused(&err))
}

/// Settings of a client that is no member of the group whose name it bears.
pub fn outsider(servers: &Kafka, group: &str) -> ClientConfig {
    let mut config = client(servers);
    config.set("group.id", group).set("enable.auto.commit", "false");
    add_properties(&mut config, servers);
    config
}

fn add_properties(config: &mut ClientConfig, servers: &Kafka) {
    for property in servers.properties.iter().chain(&servers.property_files) {
        config.set(&property.name, property.value.reveal());
    }
    begin_openssl(config);
}

/// Begins OpenSSL, where TLS or a login's hashes need it, without its exit handler: that frees what a client still uses whose thread
/// nobody waits for, and the process aborts.
fn begin_openssl(config: &ClientConfig) {
    let protocol = config.get("security.protocol");
    if protocol.is_some_and(|protocol| !protocol.eq_ignore_ascii_case("plaintext")) {
        openssl_sys::init();
    }
}

fn client(servers: &Kafka) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &servers.bootstrap)
        .set("client.id", "view-builder")
        .set("isolation.level", "read_committed")
        .set("allow.auto.create.topics", "false")
        .set("socket.nagle.disable", "true")
        .set("socket.keepalive.enable", "true")
        .set("reconnect.backoff.max.ms", "2000");
    config
}

pub(crate) fn refused(err: &KafkaError) -> Failure {
    Failure::Setting(format!("kafka client cannot be made: {err} (KAFKA_PROPERTIES)"))
}

/// Assigns partitions with explicit offsets.
///
/// # Errors
/// The assignment was revoked meanwhile.
pub fn assign<'a>(
    consumer: &GroupConsumer,
    offsets: impl Iterator<Item = (&'a TopicPartition, i64)>,
) -> KafkaResult<()> {
    kafka_client::assign(consumer, &list(offsets)?)?;
    consumer.context().reads_anew();
    Ok(())
}

/// Takes no partition of an assignment. One that gets no answer at all holds up librdkafka, which would never join the group again.
pub fn decline(consumer: &GroupConsumer) {
    if let Err(err) = consumer.assign(&TopicPartitionList::new()) {
        tracing::warn!(error = %err, "an assignment cannot be declined");
    }
}

/// Commits the group's offsets to Kafka and waits for the answer. Returns what Kafka has acknowledged.
#[must_use]
pub fn commit(consumer: &GroupConsumer, offsets: Vec<Reached>) -> Vec<Reached> {
    if offsets.is_empty() || !faults::request("group-commit.before") {
        return Vec::new();
    }
    let sent = list(offsets.iter().map(|reached| (&reached.place, reached.next_offset)))
        .and_then(|list| consumer.commit(&list, CommitMode::Sync));
    match sent {
        Ok(()) if faults::request("group-commit.after") => offsets,
        Ok(()) => Vec::new(),
        Err(err) => {
            tracing::debug!(error = %err, "the group's offsets are not committed to kafka");
            Vec::new()
        }
    }
}

/// A list of partitions with offsets.
///
/// # Errors
/// An offset is out of range.
pub fn list<'a>(offsets: impl Iterator<Item = (&'a TopicPartition, i64)>) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for (place, offset) in offsets {
        list.add_partition_offset(&place.topic, place.partition, Offset::Offset(offset))?;
    }
    Ok(list)
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

    use rdkafka::client::ClientContext;
    use rdkafka::statistics::{Partition, Statistics, Topic};

    use super::{End, FORMER_READING_MAX, GroupContext, place};
    use crate::contract::place::TopicPartition;
    use crate::contract::position::Position;

    #[test]
    fn transaction_markers_at_the_end_are_no_lag() {
        let place = TopicPartition {
            topic: "user-events".into(),
            partition: 0,
        };
        let position = Position {
            place: &place,
            epoch: 1,
            next_offset: 10,
            settled: true,
            oldest_us: None,
        };
        let end = End { end: 12, reached: true };
        let reading = End { reached: false, ..end };
        let applying = Position {
            settled: false,
            ..position
        };
        assert_eq!(end.applied_up_to(&position), 12);
        assert_eq!(reading.applied_up_to(&position), 10);
        assert_eq!(end.applied_up_to(&applying), 10);
    }

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
    fn an_end_that_was_reached_in_a_former_reading_is_not_reached_in_this_one() {
        let (context, place) = (GroupContext::default(), place("user-events", 3));
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
