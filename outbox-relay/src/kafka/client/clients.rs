//! Makes librdkafka's clients, with their first token where they log in by one.

use std::path::Path;

use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, Producer};

use super::health::{Health, ReaderContext};
use super::oauth::{TokenFile, set_token};
use super::settings::{Delivery, KafkaSettings};
use crate::process::stop::RelayError;

/// How late a record may be seen by a patient reader.
const PATIENCE_MS: u32 = 2_000;

impl KafkaSettings {
    /// A reader that is a member of no group.
    ///
    /// # Errors
    /// A wrong setting ([`Stop::Config`]), or a token that cannot be used now.
    pub fn open_reader(&self, isolation_level: &str) -> Result<BaseConsumer<ReaderContext>, RelayError> {
        self.begin_openssl();
        let reader: BaseConsumer<ReaderContext> = self.make_reader(|settings| settings.reader(isolation_level))?;
        if let Some(tokens) = self.tokens() {
            set_token(reader.client(), &tokens)?;
        }
        Ok(reader)
    }

    /// A reader of a topic of which hardly a record matters: it takes what comes in large pieces, up to two seconds late.
    ///
    /// # Errors
    /// As [`KafkaSettings::open_reader`].
    pub(in crate::kafka) fn open_patient_reader(&self) -> Result<BaseConsumer<ReaderContext>, RelayError> {
        self.begin_openssl();
        let reader: BaseConsumer<ReaderContext> = self.make_reader(Self::patient_reader)?;
        if let Some(tokens) = self.tokens() {
            set_token(reader.client(), &tokens)?;
        }
        Ok(reader)
    }

    fn patient_reader(&self) -> ClientConfig {
        let mut config = self.reader("read_uncommitted");
        // An answer has to come well before the client gives its request up.
        let socket_timeout_ms = config.get("socket.timeout.ms").and_then(|text| text.parse().ok());
        let wait_ms = socket_timeout_ms.map_or(PATIENCE_MS, |timeout_ms: u32| PATIENCE_MS.min(timeout_ms / 2));
        config
            .set("fetch.wait.max.ms", wait_ms.to_string())
            .set("fetch.min.bytes", "1000000")
            .set("queued.max.messages.kbytes", "1024");
        config
    }

    /// A client for topics.
    ///
    /// # Errors
    /// As [`KafkaSettings::open_reader`].
    pub fn open_admin(&self) -> Result<AdminClient<ReaderContext>, RelayError> {
        self.begin_openssl();
        let admin: AdminClient<ReaderContext> = self.make_reader(|settings| settings.reader("read_committed"))?;
        if let Some(tokens) = self.tokens() {
            set_token(admin.inner(), &tokens)?;
        }
        Ok(admin)
    }

    fn make_reader<T: FromClientConfigAndContext<ReaderContext>>(
        &self,
        config: impl FnOnce(&Self) -> ClientConfig,
    ) -> Result<T, RelayError> {
        let made = self.with_files_read().and_then(|settings| {
            config(&settings)
                .create_with_context(self.reader_context())
                .map_err(invalid)
        });
        self.accepted_for_readers.judge(made)
    }

    /// A producer, with what it reports on the side; transactional where `delivery` needs it.
    pub(in crate::kafka) fn open_producer(
        &self,
        delivery: Delivery,
        transactional_id: &str,
    ) -> Result<(BaseProducer<Health>, Health), RelayError> {
        self.begin_openssl();
        let health = Health::with_tokens(self.tokens());
        let made = self.with_files_read().and_then(|settings| {
            let config = settings.producer(delivery, transactional_id);
            config.create_with_context(health.clone()).map_err(invalid)
        });
        let producer: BaseProducer<Health> = self.accepted_for_producers.judge(made)?;
        if let Some(tokens) = self.tokens() {
            set_token(producer.client(), &tokens)?;
        }
        Ok((producer, health))
    }

    /// Begins OpenSSL, where it is needed (it takes 1.5 MB), without its exit handler: that frees what a client still uses which is being
    /// closed on a thread that nobody waits for, and the process aborts.
    fn begin_openssl(&self) {
        if self.uses_openssl() {
            openssl_sys::init();
        }
    }

    fn reader_context(&self) -> ReaderContext {
        ReaderContext {
            tokens: self.tokens(),
            ..ReaderContext::default()
        }
    }

    fn tokens(&self) -> Option<TokenFile> {
        self.oauth_token_file.as_deref().map(Path::new).map(TokenFile::new)
    }
}

fn invalid(err: KafkaError) -> anyhow::Error {
    anyhow::anyhow!("Kafka client: {err}")
}
