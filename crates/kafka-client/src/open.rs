//! Makes librdkafka's clients, with their first token where they log in by one.

use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::producer::{Producer, ProducerContext};

use crate::client_settings::ClientSettings;
use crate::property::InvalidProperty;
use crate::reader_context::ReaderContext;

/// Why there is no client. Nobody has spoken with Kafka yet.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// librdkafka does not know a property, or not its value, which may be a secret and is not told.
    #[error("Kafka client: {} (--kafka-property)", without_value(.0))]
    Properties(KafkaError),
    /// A property's file.
    #[error(transparent)]
    File(#[from] InvalidProperty),
    /// The token cannot be used now; another one may be in the file soon.
    #[error("{0}")]
    Token(String),
}

impl ClientSettings {
    /// A consumer that asks, or reads by hand.
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
        let consumer: T = self.make(config, context)?;
        first_token(self.tokens().give_first(consumer.client()))?;
        Ok(consumer)
    }

    /// A client for topics and their settings.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_admin(&self, config: &ClientConfig) -> Result<AdminClient<ReaderContext>, OpenError> {
        let admin: AdminClient<ReaderContext> = self.make(config, ReaderContext::with(self.tokens()))?;
        first_token(self.tokens().give_first(admin.inner()))?;
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
        let producer: T = self.make(config, context)?;
        first_token(self.tokens().give_first(producer.client()))?;
        Ok(producer)
    }

    fn make<T, C>(&self, config: &ClientConfig, context: C) -> Result<T, OpenError>
    where
        T: FromClientConfigAndContext<C>,
        C: rdkafka::ClientContext,
    {
        // Begins OpenSSL, where TLS or a login's hashes need it (it takes 1.5 MB), without its exit handler: that frees what a client still uses
        // which is being closed on a thread that nobody waits for, and the process aborts.
        if self.uses_openssl() {
            openssl_sys::init();
        }
        config.create_with_context(context).map_err(OpenError::Properties)
    }
}

/// rdkafka's own text ends with the property's value.
fn without_value(err: &KafkaError) -> String {
    match err {
        KafkaError::ClientConfig(_, reason, name, _) => format!("{reason} {name}"),
        other => other.to_string(),
    }
}

fn first_token(given: anyhow::Result<()>) -> Result<(), OpenError> {
    given.map_err(|err| OpenError::Token(format!("{err:#}")))
}

#[cfg(test)]
mod tests {
    use super::OpenError;
    use crate::ClientSettings;

    #[test]
    fn what_cannot_be_made_says_which_setting_is_wrong() {
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
