//! The context of clients that ask about topics, or read partitions outside of a group.

use std::error::Error;

use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;

use crate::refusal::Reasons;
use crate::tokens::Tokens;

/// librdkafka's own messages are logged at level debug only, since the calls themselves fail, too.
#[derive(Clone, Debug, Default)]
pub struct ReaderContext {
    reasons: Reasons,
    tokens: Tokens,
}

impl ReaderContext {
    /// The context of a client that logs in with these tokens.
    #[must_use]
    pub fn with(tokens: Tokens) -> Self {
        Self {
            reasons: Reasons::default(),
            tokens,
        }
    }

    /// What the client's errors said.
    #[must_use]
    pub fn reasons(&self) -> &Reasons {
        &self.reasons
    }
}

impl ClientContext for ReaderContext {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, config: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.tokens.issue(config)
    }

    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(kafka.facility = facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.reasons.note(&error, reason);
        tracing::debug!(error = %error, reason, "kafka");
    }
}

impl ConsumerContext for ReaderContext {}
