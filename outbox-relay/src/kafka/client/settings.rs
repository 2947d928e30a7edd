//! librdkafka's configuration: ours, and what the operator adds.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;

use super::property_files::{self, Accepted, InvalidProperty, PropertyFile};
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

/// How to reach Kafka.
#[derive(Clone)]
pub struct KafkaSettings {
    pub bootstrap_servers: String,
    /// librdkafka properties from `--kafka-property`; see
    /// <https://github.com/confluentinc/librdkafka/blob/v2.12.1/CONFIGURATION.md>.
    pub properties: Vec<(String, String)>,
    /// Those of them whose values are in files, and were read once to see that they can be.
    pub(in crate::kafka) files: Vec<PropertyFile>,
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
    /// Holds the token of SASL OAUTHBEARER.
    pub oauth_token_file: Option<PathBuf>,
    /// The brokers' `transaction.max.timeout.ms`.
    pub transaction_max_timeout: Duration,
}

impl fmt::Debug for KafkaSettings {
    /// Without the properties' values, some of which are secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.properties.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("KafkaSettings")
            .field("bootstrap_servers", &self.bootstrap_servers)
            .field("properties", &names)
            .finish_non_exhaustive()
    }
}

/// What the exactly-once protocol rests on.
const RESERVED: [&str; 11] = [
    "bootstrap.servers",
    "metadata.broker.list",
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

/// What librdkafka's table of properties marks with a P, its aliases too.
const PRODUCERS_OWN: [&str; 22] = [
    "batch.num.messages",
    "batch.size",
    "compression.codec",
    "compression.level",
    "compression.type",
    "delivery.timeout.ms",
    "enable.gapless.guarantee",
    "linger.ms",
    "message.send.max.retries",
    "message.timeout.ms",
    "msg_order_cmp",
    "partitioner",
    "produce.offset.report",
    "queue.buffering.backpressure.threshold",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.messages",
    "queue.buffering.max.ms",
    "queuing.strategy",
    "request.timeout.ms",
    "retries",
    "sticky.partitioning.linger.ms",
    "transaction.timeout.ms",
];

fn settable(name: &str) -> Result<String, InvalidProperty> {
    if RESERVED.contains(&name) {
        return Err(InvalidProperty::Reserved(name.to_owned()));
    }
    Ok(name.to_owned())
}

/// The brokers' `transaction.max.timeout.ms` where it was not changed.
pub const TRANSACTION_MAX_TIMEOUT_MS: u64 = 900_000;
/// How long a Kafka transaction may stay open before the broker aborts it, and so how long a read_committed reader may wait
/// behind a relay that died and has no successor. A successor aborts it at once.
const TRANSACTION_TIMEOUT_MS: u64 = 60_000;
/// Must not be longer than the transaction's timeout, or librdkafka refuses its configuration.
const MESSAGE_TIMEOUT_MS: u64 = 45_000;

/// librdkafka's default of `batch.size`.
const BATCH_SIZE_DEFAULT: u64 = 1_000_000;

impl KafkaSettings {
    /// Reads the operator's `NAME=VALUE` properties.
    ///
    /// # Errors
    /// A property without a value, or one that the protocol depends on.
    pub fn new<S: AsRef<str>>(bootstrap_servers: &str, properties: &[S]) -> Result<Self, InvalidProperty> {
        let mut parsed = Vec::new();
        for (index, property) in properties
            .iter()
            .map(AsRef::as_ref)
            .map(str::trim)
            .filter(|property| !property.is_empty())
            .enumerate()
        {
            let (name, value) = property.split_once('=').ok_or(InvalidProperty::NoValue(index + 1))?;
            parsed.push((settable(name)?, value.to_owned()));
        }
        Ok(Self {
            bootstrap_servers: bootstrap_servers.to_owned(),
            properties: parsed,
            files: Vec::new(),
            accepted_for_readers: Accepted::default(),
            accepted_for_producers: Accepted::default(),
            oauth_token_file: None,
            transaction_max_timeout: Duration::from_millis(TRANSACTION_MAX_TIMEOUT_MS),
            batch_bytes_max: Arc::new(AtomicU64::new(u64::MAX)),
            batches_too_large: Arc::default(),
            each_alone: Arc::default(),
            refused_records: RefusedRecords::default(),
        })
    }

    /// Adds properties whose values are in files, from `NAME=PATH`. A line's end behind the value is no part of it. Each client that is made
    /// reads the files anew.
    ///
    /// # Errors
    /// A file that cannot be read, or a property that the protocol depends on.
    pub fn with_property_files<S: AsRef<str>>(mut self, properties: &[S]) -> Result<Self, InvalidProperty> {
        for property in properties
            .iter()
            .map(AsRef::as_ref)
            .map(str::trim)
            .filter(|property| !property.is_empty())
        {
            let (name, path) = property
                .split_once('=')
                .ok_or_else(|| InvalidProperty::NoPath(property.to_owned()))?;
            let name = settable(name)?;
            let file = PropertyFile {
                index: self.properties.len(),
                path: path.into(),
            };
            let value = file.read(&name)?;
            self.properties.push((name, value));
            self.files.push(file);
        }
        Ok(self)
    }

    /// The same settings with what the files hold now.
    ///
    /// # Errors
    /// Names the file that cannot be read, and nothing of what is in it.
    pub(super) fn with_files_read(&self) -> anyhow::Result<Self> {
        let mut settings = self.clone();
        property_files::read_again(&mut settings.properties, &self.files)?;
        Ok(settings)
    }

    fn property(&self, name: &str) -> Option<&str> {
        let mut named = self.properties.iter().rev().filter(|(known, _)| known == name);
        named.next().map(|(_, value)| value.as_str())
    }

    fn has_tls(&self) -> bool {
        let protocol = self.property("security.protocol").unwrap_or_default();
        protocol.eq_ignore_ascii_case("ssl") || protocol.eq_ignore_ascii_case("sasl_ssl")
    }

    /// For TLS, or for a login's hashes.
    pub(in crate::kafka) fn uses_openssl(&self) -> bool {
        let protocol = self.property("security.protocol");
        protocol.is_some_and(|protocol| !protocol.eq_ignore_ascii_case("plaintext"))
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        // The wrapper's default hides what librdkafka says of broken connections.
        let debugs = self.properties.iter().any(|(name, _)| name == "debug");
        config.set_log_level(if debugs {
            RDKafkaLogLevel::Debug
        } else {
            RDKafkaLogLevel::Info
        });
        config
            .set("bootstrap.servers", &self.bootstrap_servers)
            .set("client.id", "outbox-relay")
            .set("socket.nagle.disable", "true")
            // The relay has metrics of its own; for those that brokers may ask for (KIP-714) each client keeps histograms for each of its brokers.
            .set("enable.metrics.push", "false")
            .set("socket.timeout.ms", "10000")
            .set("reconnect.backoff.max.ms", "1000");
        if self.has_tls() && !self.properties.iter().any(|(name, _)| name.starts_with("ssl.ca.")) {
            // The OpenSSL inside has its own idea of where trusted certificates are; this looks where the system has them.
            config.set("ssl.ca.location", "probe");
        }
        config
    }

    fn with_properties(&self, mut config: ClientConfig) -> ClientConfig {
        for (name, value) in &self.properties {
            config.set(name, value);
        }
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
        settings.properties.push((name.to_owned(), value.to_owned()));
        settings
    }

    /// Brokers refuse a producer with a longer timeout for transactions, and librdkafka one with a longer timeout for records than for those.
    fn allowed_ms(&self, timeout_ms: u64) -> String {
        let allowed_ms = u64::try_from(self.transaction_max_timeout.as_millis()).unwrap_or(u64::MAX);
        timeout_ms.min(allowed_ms).to_string()
    }

    /// For a producer, which is transactional where `delivery` needs it.
    #[must_use]
    pub fn producer(&self, delivery: Delivery, transactional_id: &str) -> ClientConfig {
        let mut config = self.client();
        config
            // Flushing ignores the linger, so it costs no latency; it makes larger requests while a transaction fills.
            .set("linger.ms", "5")
            // The default of 100,000 is near to what a transaction may hold; the bytes are bounded by the transaction's own limit.
            .set("queue.buffering.max.messages", "1000000")
            .set("transaction.timeout.ms", self.allowed_ms(TRANSACTION_TIMEOUT_MS))
            .set("message.timeout.ms", self.allowed_ms(MESSAGE_TIMEOUT_MS));
        let mut config = self.with_properties(config);
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
        bytes < before.min(batch_size(&self.with_properties(ClientConfig::new())))
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
        let configured = batch_size(&self.with_properties(ClientConfig::new()));
        self.batch_bytes_max.load(Ordering::Relaxed).min(configured)
    }

    /// Whether records are smaller on the wire than they are here.
    #[must_use]
    pub fn compresses(&self) -> bool {
        let config = self.with_properties(ClientConfig::new());
        let codec = config.get("compression.type").or(config.get("compression.codec"));
        codec.is_some_and(|codec| codec != "none")
    }

    /// For a reader that is a member of no group.
    #[must_use]
    pub fn reader(&self, isolation_level: &str) -> ClientConfig {
        let mut config = self.with_properties(self.client());
        config
            .set("group.id", "outbox-relay")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "error")
            .set("fetch.wait.max.ms", "10")
            .set("isolation.level", isolation_level);
        // Properties that only a producer knows would be warned of at each start.
        for name in PRODUCERS_OWN {
            config.remove(name);
        }
        config
    }
}

/// The `batch.size` of a producer, in bytes.
fn batch_size(config: &ClientConfig) -> u64 {
    config
        .get("batch.size")
        .and_then(|size| size.parse().ok())
        .unwrap_or(BATCH_SIZE_DEFAULT)
}

#[cfg(test)]
mod tests {
    use super::{Delivery, InvalidProperty, KafkaSettings};

    #[test]
    fn an_operators_property_is_passed_on_and_the_protocols_own_is_not_his() {
        let settings = KafkaSettings::new("localhost:9092", &["compression.type=zstd"]).unwrap();
        assert_eq!(
            settings.producer(Delivery::ExactlyOnce, "t").get("compression.type"),
            Some("zstd")
        );
        assert_eq!(
            KafkaSettings::new("localhost:9092", &["acks=1"]).unwrap_err(),
            InvalidProperty::Reserved("acks".to_owned())
        );
        assert_eq!(
            KafkaSettings::new("localhost:9092", &["acks"]).unwrap_err(),
            InvalidProperty::NoValue(1)
        );
    }

    #[test]
    fn a_value_may_come_from_a_file_and_no_value_is_printed() {
        let path = std::env::temp_dir().join(format!("outbox-relay-property-{}", std::process::id()));
        std::fs::write(&path, "hunter2\r\n").unwrap();
        let settings = KafkaSettings::new("localhost:9092", &[] as &[&str]).unwrap();
        let settings = settings
            .with_property_files(&[format!("sasl.password={}", path.display())])
            .unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(settings.reader("read_committed").get("sasl.password"), Some("hunter2"));
        assert!(!format!("{settings:?}").contains("hunter2"), "{settings:?}");
        let missing = settings
            .with_property_files(&["sasl.password=/nowhere"])
            .unwrap_err()
            .to_string();
        assert!(
            missing.contains("--kafka-property-file sasl.password=/nowhere"),
            "{missing}"
        );
    }

    #[test]
    fn tls_trusts_the_systems_roots_unless_others_are_given() {
        let location = |properties: &[&str]| {
            let settings = KafkaSettings::new("localhost:9092", properties).unwrap();
            settings
                .reader("read_committed")
                .get("ssl.ca.location")
                .map(str::to_owned)
        };
        assert_eq!(location(&[]), None);
        assert_eq!(location(&["security.protocol=SASL_SSL"]).as_deref(), Some("probe"));
        assert_eq!(
            location(&["security.protocol=ssl", "ssl.ca.location=x"]).as_deref(),
            Some("x")
        );
        assert_eq!(location(&["security.protocol=ssl", "ssl.ca.pem=x"]), None);
    }
}
