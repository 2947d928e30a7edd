//! Where Kafka is, how to log in there, and what else the operator wants of librdkafka.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;

use crate::property::{InvalidProperty, Property};
use crate::tokens::Tokens;

/// The properties that only a producer knows: those that librdkafka's CONFIGURATION.md marks with a P, and their aliases.
const PRODUCER_PROPERTIES: [&str; 22] = [
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

/// How to reach Kafka. `Debug` shows the names of the properties and not their values, some of which are secret.
///
/// Make a client in this order. Then the operator's properties win over the program's preferences, and what the program's correctness needs wins
/// over both:
/// 1. [`with_files_read`](Self::with_files_read);
/// 2. [`begin`](Self::begin);
/// 3. set the program's preferences;
/// 4. [`add_properties`](Self::add_properties);
/// 5. set what the program's correctness needs;
/// 6. one of the functions `open_…`.
#[derive(Clone)]
pub struct ClientSettings {
    pub bootstrap_servers: String,
    /// Where the tokens of SASL OAUTHBEARER come from.
    pub tokens: Tokens,
    properties: Vec<Property>,
}

impl fmt::Debug for ClientSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientSettings")
            .field("bootstrap_servers", &self.bootstrap_servers)
            .field("tokens", &self.tokens)
            .field("properties", &self.properties)
            .finish()
    }
}

impl ClientSettings {
    /// Settings for the cluster of these servers (`HOST:PORT` separated by commas), without TLS and without a login.
    #[must_use]
    pub fn new(bootstrap_servers: &str) -> Self {
        Self {
            bootstrap_servers: bootstrap_servers.to_owned(),
            tokens: Tokens::None,
            properties: Vec::new(),
        }
    }

    /// Adds the operator's properties, `NAME=VALUE`, by the names of librdkafka's
    /// [CONFIGURATION.md](https://github.com/confluentinc/librdkafka/blob/v2.12.1/CONFIGURATION.md). Empty lines are skipped.
    ///
    /// # Errors
    /// A property has no value, or it is one of `reserved`: the properties that only the program may set.
    pub fn with_properties<S: AsRef<str>>(mut self, lines: &[S], reserved: &[&str]) -> Result<Self, InvalidProperty> {
        for (index, line) in non_empty(lines).enumerate() {
            self.properties.push(Property::parse(line, index + 1, reserved)?);
        }
        Ok(self)
    }

    /// Adds properties whose values are in files, `NAME=PATH`. A line break at the end of a file does not belong to the value. The files are read
    /// now, so that a missing one is noticed, and again by [`with_files_read`](Self::with_files_read).
    ///
    /// # Errors
    /// Those of [`with_properties`](Self::with_properties), and a file cannot be read.
    pub fn with_property_files<S: AsRef<str>>(
        mut self,
        lines: &[S],
        reserved: &[&str],
    ) -> Result<Self, InvalidProperty> {
        for line in non_empty(lines) {
            self.properties.push(Property::parse_with_file(line, reserved)?);
        }
        Ok(self)
    }

    /// Logs in with the token (JWT) that this file holds, by SASL OAUTHBEARER.
    #[must_use]
    pub fn with_token_file(mut self, path: PathBuf) -> Self {
        self.tokens = Tokens::File(path);
        self
    }

    /// Adds one property. It wins over an earlier one of the same name.
    #[must_use]
    pub fn with_property(mut self, name: &str, value: &str) -> Self {
        self.properties.push(Property::new(name, value));
        self
    }

    /// The same settings, but with what the files hold now. So an operator can replace a password or a certificate without a restart of the
    /// program.
    ///
    /// # Errors
    /// Names the file that cannot be read, and nothing of what is in it.
    pub fn with_files_read(&self) -> Result<Self, InvalidProperty> {
        let mut settings = self.clone();
        for property in &mut settings.properties {
            property.read_again()?;
        }
        Ok(settings)
    }

    /// A number that changes when a file of a password, a certificate or a key changes. A client keeps what it was made with. So if the cluster
    /// refuses a client and this number has changed since it was made, the cluster may accept a new client.
    #[must_use]
    pub fn fingerprint_of_files(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for property in &self.properties {
            if let Some(path) = property.file() {
                std::fs::read(path).ok().hash(&mut hasher);
            }
        }
        hasher.finish()
    }

    /// The value of a property, as the operator has set it.
    #[must_use]
    pub fn property(&self, name: &str) -> Option<&str> {
        let last = self.properties.iter().rev().find(|property| property.name() == name);
        last.map(Property::value)
    }

    /// The beginning of a client's configuration: the servers, `client.id`, and what suits most clients. The operator's properties are not in it
    /// yet.
    #[must_use]
    pub fn begin(&self, client_id: &str) -> ClientConfig {
        let mut config = ClientConfig::new();
        // The wrapper's default hides what librdkafka says about broken connections.
        config.set_log_level(match self.property("debug") {
            Some(_) => RDKafkaLogLevel::Debug,
            None => RDKafkaLogLevel::Info,
        });
        config
            .set("bootstrap.servers", &self.bootstrap_servers)
            .set("client.id", client_id)
            .set("socket.nagle.disable", "true")
            // Brokers may ask clients for metrics (KIP-714). For these each client would keep histograms of each of its brokers in memory.
            .set("enable.metrics.push", "false");
        let has_authorities = self.properties.iter().any(|known| known.name().starts_with("ssl.ca."));
        if self.has_tls() && !has_authorities {
            // The OpenSSL in our binary would look for trusted certificates in a folder of its own. `probe` looks where this system has them.
            config.set("ssl.ca.location", "probe");
        }
        config
    }

    /// Adds the operator's properties.
    pub fn add_properties(&self, config: &mut ClientConfig) {
        for property in &self.properties {
            config.set(property.name(), property.value());
        }
    }

    /// Adds the operator's properties except those that only a producer knows: a consumer would warn of them at each start.
    pub fn add_consumers_properties(&self, config: &mut ClientConfig) {
        self.add_properties(config);
        for name in PRODUCER_PROPERTIES {
            config.remove(name);
        }
    }

    /// Where tokens come from: the file that was set, or librdkafka's own unsecured tokens if a property asks for them.
    #[must_use]
    pub fn tokens(&self) -> Tokens {
        match &self.tokens {
            Tokens::None if self.property("enable.sasl.oauthbearer.unsecure.jwt") == Some("true") => Tokens::Unsecured,
            tokens => tokens.clone(),
        }
    }

    fn has_tls(&self) -> bool {
        let protocol = self.property("security.protocol");
        protocol
            .is_some_and(|protocol| protocol.eq_ignore_ascii_case("ssl") || protocol.eq_ignore_ascii_case("sasl_ssl"))
    }

    /// Whether clients use OpenSSL: for TLS, or to hash the password of a login.
    pub(crate) fn uses_openssl(&self) -> bool {
        let protocol = self.property("security.protocol");
        protocol.is_some_and(|protocol| !protocol.eq_ignore_ascii_case("plaintext"))
    }
}

/// The lines that are not empty, trimmed.
fn non_empty<S: AsRef<str>>(lines: &[S]) -> impl Iterator<Item = &str> {
    lines
        .iter()
        .map(|line| line.as_ref().trim())
        .filter(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use rdkafka::ClientConfig;

    use super::ClientSettings;
    use crate::InvalidProperty;

    const NONE: [&str; 0] = [];

    fn settings_with(lines: &[&str]) -> Result<ClientSettings, InvalidProperty> {
        ClientSettings::new("localhost:9092").with_properties(lines, &["acks"])
    }

    #[test]
    fn an_operators_property_is_passed_on_and_a_reserved_one_is_refused() {
        let mut config = ClientConfig::new();
        settings_with(&["", " sasl.password=a=b "])
            .unwrap()
            .add_properties(&mut config);
        assert_eq!(config.get("sasl.password"), Some("a=b"));
        for name in ["acks", "bootstrap.servers"] {
            let refused = settings_with(&[&format!("{name}=1")]).unwrap_err();
            assert_eq!(refused, InvalidProperty::Reserved(name.to_owned()));
        }
        assert_eq!(
            settings_with(&["linger.ms=1", "secret"]).unwrap_err(),
            InvalidProperty::NoValue(2)
        );
    }

    #[test]
    fn a_value_may_come_from_a_file_which_is_read_for_each_client_and_no_value_is_printed() {
        let path = std::env::temp_dir().join(format!("kafka-client-property-{}", std::process::id()));
        std::fs::write(&path, "hunter2\r\n").unwrap();
        let line = format!("sasl.password={}", path.display());
        let settings = settings_with(&[])
            .unwrap()
            .with_property_files(&[&line], &NONE)
            .unwrap();
        let before = settings.fingerprint_of_files();
        assert_eq!(settings.property("sasl.password"), Some("hunter2"));
        assert!(!format!("{settings:?}").contains("hunter2"), "{settings:?}");

        std::fs::write(&path, "second\n").unwrap();
        assert_ne!(settings.fingerprint_of_files(), before);
        let now = settings.with_files_read().unwrap();
        assert_eq!(now.property("sasl.password"), Some("second"));

        std::fs::remove_file(&path).unwrap();
        for result in [
            settings.with_files_read(),
            settings_with(&[]).unwrap().with_property_files(&[&line], &NONE),
        ] {
            let missing = result.unwrap_err().to_string();
            assert!(
                missing.starts_with(&format!("--kafka-property-file {line}: ")),
                "{missing}"
            );
        }
    }

    #[test]
    fn a_file_that_librdkafka_would_read_is_looked_at_before() {
        let settings = settings_with(&["ssl.key.location=/nowhere/key"]).unwrap();
        let message = settings.with_files_read().unwrap_err().to_string();
        assert!(
            message.starts_with("--kafka-property ssl.key.location=/nowhere/key: "),
            "{message}"
        );
        assert!(
            settings_with(&["ssl.ca.location=probe"])
                .unwrap()
                .with_files_read()
                .is_ok()
        );
    }

    #[test]
    fn tls_trusts_the_systems_roots_unless_others_are_given() {
        let location = |properties: &[&str]| {
            let settings = settings_with(properties).unwrap();
            let mut config = settings.begin("a-test");
            settings.add_properties(&mut config);
            config.get("ssl.ca.location").map(str::to_owned)
        };
        assert_eq!(location(&[]), None);
        assert_eq!(location(&["security.protocol=SASL_SSL"]).as_deref(), Some("probe"));
        assert_eq!(
            location(&["security.protocol=ssl", "ssl.ca.location=x"]).as_deref(),
            Some("x")
        );
        assert_eq!(location(&["security.protocol=ssl", "ssl.ca.pem=x"]), None);
    }

    #[test]
    fn a_consumer_is_not_given_what_only_a_producer_knows() {
        let mut config = ClientConfig::new();
        let settings = settings_with(&["compression.type=zstd", "debug=cgrp"]).unwrap();
        settings.add_consumers_properties(&mut config);
        assert_eq!(
            (config.get("compression.type"), config.get("debug")),
            (None, Some("cgrp"))
        );
    }
}
