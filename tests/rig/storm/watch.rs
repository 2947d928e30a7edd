//! A read_committed consumer that follows the topic through the storm. It notes when a row became visible that was written after a kill.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::{Offset, TopicPartitionList};

/// The consumer's thread. Dropping it ends the thread.
#[derive(Debug)]
pub(super) struct Watch {
    seen: Arc<Mutex<Seen>>,
    stopping: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// What the consumer has seen.
#[derive(Debug, Default)]
struct Seen {
    records: u64,
    /// Each time a row became visible that was written later than all rows before it: (visible, written). Both times count from the storm's start,
    /// and ascend.
    frontier: Vec<(Duration, Duration)>,
    barriers: HashSet<String>,
}

impl Watch {
    /// Follows all `partitions` of `topic` from their beginnings.
    ///
    /// # Errors
    /// The client's configuration is refused.
    pub(super) fn start(bootstrap_servers: &str, topic: &str, partitions: i32, start: Instant) -> anyhow::Result<Self> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap_servers)
            .set("group.id", "storm-watch")
            .set("isolation.level", "read_committed")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("fetch.wait.max.ms", "50")
            .set("reconnect.backoff.max.ms", "200")
            .create()?;
        let mut assignment = TopicPartitionList::new();
        for partition in 0..partitions {
            assignment.add_partition_offset(topic, partition, Offset::Beginning)?;
        }
        consumer.assign(&assignment)?;
        let (seen, stopping) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
        let (for_thread, told) = (Arc::clone(&seen), Arc::clone(&stopping));
        let thread = std::thread::Builder::new()
            .name("storm-watch".to_owned())
            .spawn(move || {
                while !told.load(Ordering::Relaxed) {
                    // In a storm the broker is often away. The client connects again by itself.
                    if let Some(Ok(message)) = consumer.poll(Duration::from_millis(50)) {
                        let mut seen = for_thread.lock().unwrap_or_else(PoisonError::into_inner);
                        seen.look_at(&message, start.elapsed());
                    }
                }
            })
            .context("cannot start a thread")?;
        Ok(Self {
            seen,
            stopping,
            thread: Some(thread),
        })
    }

    /// How many records have become visible.
    #[must_use]
    pub(super) fn records(&self) -> u64 {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).records
    }

    /// Whether all these barrier rows are visible.
    #[must_use]
    pub(super) fn has_all(&self, barriers: &[String]) -> bool {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        barriers.iter().all(|id| seen.barriers.contains(id))
    }

    /// How long after the kill a row became visible that was written after it. `None`: none did.
    #[must_use]
    pub(super) fn recovery(&self, killed: Duration) -> Option<Duration> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let first = seen.frontier.partition_point(|(_, written)| *written <= killed);
        let (visible, _) = seen.frontier.get(first)?;
        Some(visible.saturating_sub(killed))
    }
}

impl Seen {
    fn look_at(&mut self, message: &impl Message, now: Duration) {
        self.records += 1;
        let Some(payload) = message
            .payload()
            .and_then(|bytes| serde_json::from_slice::<serde_json::Value>(bytes).ok())
        else {
            return;
        };
        if let Some(written) = payload["at"].as_u64().map(Duration::from_micros)
            && self.frontier.last().is_none_or(|(_, last)| *last < written)
        {
            self.frontier.push((now, written));
        }
        if payload["barrier"] == true {
            let id = message
                .headers()
                .and_then(|headers| headers.iter().find(|header| header.key == "id"));
            let id = id.and_then(|header| header.value).unwrap_or_default();
            self.barriers.insert(String::from_utf8_lossy(id).into_owned());
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
