//! Makes librdkafka's clients. A client that logs in by a token gets its first token here.

use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::producer::{Producer, ProducerContext};

use crate::client_settings::ClientSettings;
use crate::property::InvalidProperty;
use crate::reader_context::ReaderContext;

/// Why a client could not be made. At this point nobody has spoken with Kafka yet.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// librdkafka does not know a property or does not take its value. The value may be a secret, so the text leaves it out.
    #[error("Kafka client: {} (--kafka-property)", without_value(.0))]
    Properties(KafkaError),
    /// A file that a property names cannot be used.
    #[error(transparent)]
    File(#[from] InvalidProperty),
    /// The token cannot be used now. The file may get another one soon.
    #[error("{0}")]
    Token(String),
}

impl ClientSettings {
    /// A consumer outside of any group, which asks about topics or reads partitions that the caller names.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_reader(&self, config: &ClientConfig) -> Result<BaseConsumer<ReaderContext>, OpenError> {
        self.open_consumer(config, ReaderContext::with(self.tokens()))
    }

    /// A consumer with a context of its own, which has to issue [`ClientSettings::tokens`].
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_consumer<T, C>(&self, config: &ClientConfig, context: C) -> Result<T, OpenError>
    where
        T: FromClientConfigAndContext<C> + Consumer<C>,
        C: ConsumerContext,
    {
        let consumer: T = self.create(config, context)?;
        or_token_error(self.tokens().give_first(consumer.client()))?;
        Ok(consumer)
    }

    /// A client for topics and their settings (librdkafka's admin client).
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_admin(&self, config: &ClientConfig) -> Result<AdminClient<ReaderContext>, OpenError> {
        let admin: AdminClient<ReaderContext> = self.create(config, ReaderContext::with(self.tokens()))?;
        or_token_error(self.tokens().give_first(admin.inner()))?;
        Ok(admin)
    }

    /// A producer with a context of its own, which has to issue [`ClientSettings::tokens`].
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_producer<T, C>(&self, config: &ClientConfig, context: C) -> Result<T, OpenError>
    where
        T: FromClientConfigAndContext<C> + Producer<C>,
        C: ProducerContext,
    {
        let producer: T = self.create(config, context)?;
        or_token_error(self.tokens().give_first(producer.client()))?;
        Ok(producer)
    }

    fn create<T, C>(&self, config: &ClientConfig, context: C) -> Result<T, OpenError>
    where
        T: FromClientConfigAndContext<C>,
        C: rdkafka::ClientContext,
    {
        // Starts OpenSSL without its exit handler. A client may still be closing on a thread that nobody waits for. The exit handler would free
        // what this client still uses, and the process would abort. OpenSSL takes 1.5 MB, so it is started only if TLS or a login's hashes need it.
        if self.uses_openssl() {
            openssl_sys::init();
        }
        config.create_with_context(context).map_err(OpenError::Properties)
    }
}

/// The error's text without the property's value. rdkafka's own text ends with the value.
fn without_value(err: &KafkaError) -> String {
    match err {
        KafkaError::ClientConfig(_, reason, name, _) => format!("{reason} {name}"),
        other => other.to_string(),
    }
}

fn or_token_error(result: anyhow::Result<()>) -> Result<(), OpenError> {
    result.map_err(|err| OpenError::Token(format!("{err:#}")))
}

#[cfg(test)]
mod tests {
    use super::OpenError;
    use crate::ClientSettings;

    #[test]
    fn a_client_that_cannot_be_made_says_which_setting_is_wrong() {
        let settings = ClientSettings::new("localhost:9092");
        let mut config = settings.begin("a-test");
        config.set("group.id", "a-test");
        assert!(settings.open_reader(&config).is_ok());
        config.set("nonsense", "hunter2");
        let err = settings.open_reader(&config).map(drop).unwrap_err();
        assert!(matches!(err, OpenError::Properties(_)));
        assert!(err.to_string().contains("nonsense"), "{err}");
        assert!(!err.to_string().contains("hunter2"), "{err}");
    }

    #[test]
    fn a_token_that_cannot_be_used_is_told_from_a_wrong_setting() {
        let settings = ClientSettings::new("localhost:9092").with_token_file("/nowhere/token".into());
        let err = settings.open_admin(&settings.begin("a-test")).map(drop).unwrap_err();
        assert!(matches!(err, OpenError::Token(_)));
        assert!(err.to_string().contains("/nowhere/token"), "{err}");
    }
}
