//! Makes librdkafka's clients.

use kafka_client::ReaderContext;
use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use rdkafka::consumer::BaseConsumer;
use rdkafka::producer::BaseProducer;

use super::health::Health;
use super::settings::{Delivery, KafkaSettings};
use crate::process::stop::RelayError;

/// How late a patient reader may see a record.
const PATIENCE_MS: u32 = 2_000;

impl KafkaSettings {
    /// A reader that is a member of no group.
    ///
    /// # Errors
    /// A wrong setting ([`crate::process::stop::Stop::Config`]), or a token that cannot be used now.
    pub fn open_reader(&self, isolation_level: &str) -> Result<BaseConsumer<ReaderContext>, RelayError> {
        self.make_reader(|settings| settings.reader(isolation_level))
    }

    /// A reader for a topic with many records of which few matter. It fetches large pieces, so it may see a record up to two seconds late.
    ///
    /// # Errors
    /// As [`KafkaSettings::open_reader`].
    pub(in crate::kafka) fn open_patient_reader(&self) -> Result<BaseConsumer<ReaderContext>, RelayError> {
        self.make_reader(Self::patient_reader)
    }

    fn make_reader(
        &self,
        config: impl FnOnce(&Self) -> ClientConfig,
    ) -> Result<BaseConsumer<ReaderContext>, RelayError> {
        let made = self
            .with_files_read()
            .and_then(|settings| settings.client.open_reader(&config(&settings)));
        self.accepted_for_readers.judge(made)
    }

    fn patient_reader(&self) -> ClientConfig {
        let mut config = self.reader("read_uncommitted");
        // An answer has to come well before the client gives its request up. librdkafka refuses a client with a timeout that is no number.
        let socket_timeout_ms = config.get("socket.timeout.ms").and_then(|text| text.parse().ok());
        let wait_ms = socket_timeout_ms.map_or(PATIENCE_MS, |timeout_ms: u32| PATIENCE_MS.min(timeout_ms / 2));
        config
            .set("fetch.wait.max.ms", wait_ms.to_string())
            .set("fetch.min.bytes", "1000000")
            .set("queued.max.messages.kbytes", "1024");
        config
    }

    /// A client that creates topics and asks for their settings.
    ///
    /// # Errors
    /// As [`KafkaSettings::open_reader`].
    pub fn open_admin(&self) -> Result<AdminClient<ReaderContext>, RelayError> {
        let made = self
            .with_files_read()
            .and_then(|settings| settings.client.open_admin(&settings.reader("read_committed")));
        self.accepted_for_readers.judge(made)
    }

    /// A producer, and the [`Health`] to which it reports lost connections and undelivered records. It is transactional if `delivery` needs that.
    pub(in crate::kafka) fn open_producer(
        &self,
        delivery: Delivery,
        transactional_id: &str,
    ) -> Result<(BaseProducer<Health>, Health), RelayError> {
        let health = Health::with_tokens(self.client.tokens());
        let made = self.with_files_read().and_then(|settings| {
            let config = settings.producer(delivery, transactional_id);
            settings.client.open_producer(&config, health.clone())
        });
        let producer = self.accepted_for_producers.judge(made)?;
        Ok((producer, health))
    }
}
