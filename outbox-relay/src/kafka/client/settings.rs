//! librdkafka's configuration for the relay's own: producers, and readers of its topics.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kafka_client::{ClientSettings, OpenError};
use rdkafka::ClientConfig;

use super::accepted::Accepted;
use super::refused_records::RefusedRecords;

/// What a reader of the topics is promised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Delivery {
    /// Kafka transactions: each event once for a read_committed reader.
    #[default]
    ExactlyOnce,
    /// No transactions, an idempotent producer: each event at least once, a few milliseconds sooner. What was published after the last
    /// checkpoint is published again after a crash. The order is the same as long as one relay sends at a time: without transactions
    /// nothing fences a relay that was frozen, so one that wakes up behind its successor can still send the records that it holds, and
    /// leave an old event as the last one of its key.
    AtLeastOnce,
}

/// How to reach Kafka, and how to publish there.
#[derive(Clone)]
pub struct KafkaSettings {
    /// As the operator has it.
    pub client: ClientSettings,
    pub(in crate::kafka) accepted_for_readers: Accepted,
    pub(in crate::kafka) accepted_for_producers: Accepted,
    /// The smallest limit of a topic that was met; shared by clones.
    batch_bytes_max: Arc<AtomicU64>,
    /// How often the broker found a batch too large; shared by clones.
    batches_too_large: Arc<AtomicU64>,
    /// Producers send each record in a batch of its own; shared by clones.
    each_alone: Arc<AtomicBool>,
    /// What the broker refused; shared by clones.
    pub refused_records: RefusedRecords,
    /// The brokers' `transaction.max.timeout.ms`.
    pub transaction_max_timeout: Duration,
}

impl fmt::Debug for KafkaSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.client.fmt(f)
    }
}

/// What the exactly-once protocol rests on: nobody sets these.
pub(crate) const RESERVED: [&str; 9] = [
    "transactional.id",
    "enable.idempotence",
    "acks",
    "request.required.acks",
    "delivery.report.only.error",
    "isolation.level",
    // A broken connection is only logged, and after one a producer must not be used again.
    "log_level",
    "log.connection.close",
    "log.queue",
];

/// The brokers' `transaction.max.timeout.ms` where it was not changed.
pub const TRANSACTION_MAX_TIMEOUT_MS: u64 = 900_000;
/// How long a Kafka transaction may stay open before the broker aborts it, and so how long a read_committed reader may wait
/// behind a relay that died and has no successor. A successor aborts it at once.
const TRANSACTION_TIMEOUT_MS: u64 = 60_000;
/// Must not be longer than the transaction's timeout, or librdkafka refuses its configuration.
const MESSAGE_TIMEOUT_MS: u64 = 45_000;

/// librdkafka's default of `batch.size`.
const BATCH_SIZE_DEFAULT: u64 = 1_000_000;

impl From<ClientSettings> for KafkaSettings {
    fn from(client: ClientSettings) -> Self {
        Self {
            client,
            accepted_for_readers: Accepted::default(),
            accepted_for_producers: Accepted::default(),
            transaction_max_timeout: Duration::from_millis(TRANSACTION_MAX_TIMEOUT_MS),
            batch_bytes_max: Arc::new(AtomicU64::new(u64::MAX)),
            batches_too_large: Arc::default(),
            each_alone: Arc::default(),
            refused_records: RefusedRecords::default(),
        }
    }
}

impl KafkaSettings {
    /// The same settings with what the files hold now.
    ///
    /// # Errors
    /// Names the file that cannot be read, and nothing of what is in it.
    pub(super) fn with_files_read(&self) -> Result<Self, OpenError> {
        let mut settings = self.clone();
        if !planted::keeps_first_secrets() {
            settings.client = self.client.with_files_read()?;
        }
        Ok(settings)
    }

    fn begin(&self) -> ClientConfig {
        let mut config = self.client.begin("outbox-relay");
        config
            .set("socket.timeout.ms", "10000")
            .set("reconnect.backoff.max.ms", "1000");
        config
    }

    /// The operator's properties alone.
    fn properties(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        self.client.add_properties(&mut config);
        config
    }

    /// These settings with such a timeout for transactions, in milliseconds, or with what brokers allow where that is less.
    #[must_use]
    pub(crate) fn with_transaction_timeout(&self, timeout_ms: u64) -> Self {
        self.with_property("transaction.timeout.ms", &self.allowed_ms(timeout_ms))
    }

    /// These settings with such a timeout for records, in milliseconds, or with what brokers allow for transactions where that is less.
    #[must_use]
    pub(crate) fn with_message_timeout(&self, timeout_ms: u64) -> Self {
        self.with_property("message.timeout.ms", &self.allowed_ms(timeout_ms))
    }

    fn with_property(&self, name: &str, value: &str) -> Self {
        let mut settings = self.clone();
        settings.client = settings.client.with_property(name, value);
        settings
    }

    /// Brokers refuse a producer with a longer timeout for transactions, and librdkafka one with a longer timeout for records than for those.
    fn allowed_ms(&self, timeout_ms: u64) -> String {
        // The setting ends at a day.
        let allowed_ms = u64::try_from(self.transaction_max_timeout.as_millis()).unwrap_or(u64::MAX);
        timeout_ms.min(allowed_ms).to_string()
    }

    /// For a producer, which is transactional where `delivery` needs it.
    #[must_use]
    pub fn producer(&self, delivery: Delivery, transactional_id: &str) -> ClientConfig {
        let mut config = self.begin();
        config
            // Flushing ignores the linger, so it costs no latency; it makes larger requests while a transaction fills.
            .set("linger.ms", "5")
            // The default of 100,000 is near to what a transaction may hold; the bytes are bounded by the transaction's own limit.
            .set("queue.buffering.max.messages", "1000000")
            .set("transaction.timeout.ms", self.allowed_ms(TRANSACTION_TIMEOUT_MS))
            .set("message.timeout.ms", self.allowed_ms(MESSAGE_TIMEOUT_MS));
        self.client.add_properties(&mut config);
        let batch_bytes_max = self.batch_bytes_max.load(Ordering::Relaxed);
        if batch_bytes_max < batch_size(&config) {
            config.set("batch.size", batch_bytes_max.to_string());
        }
        if self.sends_each_alone() {
            config.set("batch.num.messages", "1");
        }
        match delivery {
            Delivery::ExactlyOnce => config.set("transactional.id", transactional_id),
            Delivery::AtLeastOnce => config.remove("transaction.timeout.ms"),
        };
        config
            .set("enable.idempotence", "true")
            // A topic that somebody has deleted must not come back empty, with another number of partitions.
            .set("allow.auto.create.topics", "false")
            // A success needs no report: the transaction's commit says it. Failures are reported and looked at before the commit.
            .set("delivery.report.only.error", "true");
        config
    }

    /// Makes producers from now on send no larger batches; whether earlier ones did.
    #[must_use]
    pub fn limit_batches(&self, bytes: u64) -> bool {
        let before = self.batch_bytes_max.fetch_min(bytes, Ordering::Relaxed);
        bytes < before.min(batch_size(&self.properties()))
    }

    /// Makes producers from now on send each record in a batch of its own, or not.
    pub(in crate::kafka) fn send_each_alone(&self, is_alone: bool) {
        self.each_alone.store(is_alone, Ordering::Relaxed);
    }

    pub(in crate::kafka) fn sends_each_alone(&self) -> bool {
        self.each_alone.load(Ordering::Relaxed)
    }

    /// The broker found a batch too large. After the first time the topic's limit is asked for again, which may suffice; after each further one
    /// batches are made so much smaller that a few starts lead to batches of one record, which tell the one that is to blame. Returns
    /// whether they are that small already.
    #[must_use]
    pub(in crate::kafka) fn batch_was_too_large(&self) -> bool {
        let now = self.batch_size();
        if self.batches_too_large.fetch_add(1, Ordering::Relaxed) > 0 {
            let smaller = (now / 16).max(1);
            self.batch_bytes_max.fetch_min(smaller, Ordering::Relaxed);
        }
        now == 1
    }

    /// The `batch.size` of producers from now on, in bytes.
    #[must_use]
    pub fn batch_size(&self) -> u64 {
        let configured = batch_size(&self.properties());
        self.batch_bytes_max.load(Ordering::Relaxed).min(configured)
    }

    /// Whether records are smaller on the wire than they are here.
    #[must_use]
    pub fn compresses(&self) -> bool {
        let config = self.properties();
        let codec = config.get("compression.type").or(config.get("compression.codec"));
        codec.is_some_and(|codec| codec != "none")
    }

    /// For a reader that is a member of no group.
    #[must_use]
    pub fn reader(&self, isolation_level: &str) -> ClientConfig {
        let mut config = self.begin();
        self.client.add_consumers_properties(&mut config);
        config
            .set("group.id", "outbox-relay")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "error")
            .set("fetch.wait.max.ms", "10")
            .set("isolation.level", isolation_level);
        config
    }
}

/// The `batch.size` of a producer, in bytes. librdkafka refuses a producer with one that is no number.
fn batch_size(config: &ClientConfig) -> u64 {
    config
        .get("batch.size")
        .and_then(|size| size.parse().ok())
        .unwrap_or(BATCH_SIZE_DEFAULT)
}

/// The planted bugs of this file. Without the feature `faults` none of them is there.
mod planted {
    use crate::process::faults::{self, Bug};

    pub(super) fn keeps_first_secrets() -> bool {
        faults::is_planted(Bug::KeepFirstKafkaSecrets)
    }
}

#[cfg(test)]
mod tests {
    use kafka_client::ClientSettings;

    use super::{Delivery, KafkaSettings, RESERVED};

    #[test]
    fn an_operators_property_reaches_the_clients_that_know_it_and_the_protocols_own_is_not_his() {
        let with = |line: &str| ClientSettings::new("localhost:9092").with_properties(&[line], &RESERVED);
        let settings = KafkaSettings::from(with("compression.type=zstd").unwrap());
        let producer = settings.producer(Delivery::ExactlyOnce, "t");
        assert_eq!(producer.get("compression.type"), Some("zstd"));
        assert_eq!(settings.reader("read_committed").get("compression.type"), None);
        assert!(with("acks=1").unwrap_err().to_string().contains("`acks`"));
    }

    #[test]
    fn the_clients_are_made_with_what_the_files_hold_now() {
        let path = std::env::temp_dir().join(format!("outbox-relay-rotated-{}", std::process::id()));
        std::fs::write(&path, "first").unwrap();
        let line = format!("sasl.password={}", path.display());
        let client = ClientSettings::new("localhost:9092").with_property_files(&[line], &RESERVED);
        let settings = KafkaSettings::from(client.unwrap());
        std::fs::write(&path, "second\n").unwrap();
        let now = settings.with_files_read();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(
            now.unwrap().reader("read_committed").get("sasl.password"),
            Some("second")
        );
    }
}
