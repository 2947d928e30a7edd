//! Makes librdkafka's clients, with their first token where they log in by one.

use std::path::Path;

use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, Producer};

use super::health::{Health, Quiet};
use super::oauth::{TokenFile, set_token};
use super::settings::KafkaSettings;
use crate::stop::{RelayError, Stop};

impl KafkaSettings {
    /// A reader that is a member of no group.
    ///
    /// # Errors
    /// A wrong setting ([`Stop::Config`]), or a token that cannot be used now.
    pub fn open_reader(&self, isolation_level: &str) -> Result<BaseConsumer<Quiet>, RelayError> {
        self.begin_openssl();
        let reader: BaseConsumer<Quiet> = self
            .reader(isolation_level)
            .create_with_context(self.quiet())
            .map_err(invalid)?;
        if let Some(tokens) = self.tokens() {
            set_token(reader.client(), &tokens)?;
        }
        Ok(reader)
    }

    /// A client for topics.
    ///
    /// # Errors
    /// As [`KafkaSettings::open_reader`].
    pub fn open_admin(&self) -> Result<AdminClient<Quiet>, RelayError> {
        self.begin_openssl();
        let admin: AdminClient<Quiet> = self
            .reader("read_committed")
            .create_with_context(self.quiet())
            .map_err(invalid)?;
        if let Some(tokens) = self.tokens() {
            set_token(admin.inner(), &tokens)?;
        }
        Ok(admin)
    }

    /// A producer, with what it reports on the side.
    pub(super) fn open_producer(&self, config: &ClientConfig) -> Result<(BaseProducer<Health>, Health), RelayError> {
        self.begin_openssl();
        let health = Health::with_tokens(self.tokens());
        let producer: BaseProducer<Health> = config.create_with_context(health.clone()).map_err(invalid)?;
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

    fn quiet(&self) -> Quiet {
        Quiet {
            tokens: self.tokens(),
            ..Quiet::default()
        }
    }

    fn tokens(&self) -> Option<TokenFile> {
        self.oauth_token_file.as_deref().map(Path::new).map(TokenFile::new)
    }
}

fn invalid(err: KafkaError) -> Stop {
    Stop::Config {
        what: format!("Kafka client: {err}"),
    }
}
