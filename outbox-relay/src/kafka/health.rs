//! What librdkafka reports on the side: failed records and broken connections.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Headers, Message};
use rdkafka::producer::ProducerContext;

use super::oauth::TokenFile;
use super::refusal::{Reasons, Refused};

/// A record that Kafka did not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: RDKafkaErrorCode,
    pub topic: String,
    /// Header `id` of the record, where it has one.
    pub id: Option<String>,
    /// Bytes of key and value.
    pub size: usize,
}

/// The health of one producer; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    disturbed: AtomicBool,
    lost: AtomicBool,
    served: AtomicU64,
    failure: Mutex<Option<Failure>>,
    reasons: Reasons,
    tokens: Option<TokenFile>,
}

impl Health {
    /// Of a producer that logs in with the tokens of a file.
    pub(super) fn with_tokens(tokens: Option<TokenFile>) -> Self {
        Self(Arc::new(Inner {
            tokens,
            ..Inner::default()
        }))
    }

    /// Kafka refused the producer's login or its certificate.
    #[must_use]
    pub fn refused(&self) -> Option<Refused> {
        self.0.reasons.refused()
    }

    /// Whether a connection broke or a request was lost since this producer was made, as far as librdkafka's events were served. It repeats an
    /// EndTxn by itself then, and a late first one could end the *next* transaction: such a producer must not be used again.
    #[must_use]
    pub fn is_disturbed(&self) -> bool {
        self.0.disturbed.load(Ordering::Acquire)
    }

    /// Whether a connection that was up broke, or a request got no answer.
    #[must_use]
    pub fn has_lost_a_connection(&self) -> bool {
        self.0.lost.load(Ordering::Acquire)
    }

    /// Forgets the vain attempts to connect from before the producer's first transaction, when there was nothing yet to disturb.
    pub fn settle(&self) {
        self.0.disturbed.store(false, Ordering::Release);
    }

    /// How many of librdkafka's events were served.
    #[must_use]
    pub fn served(&self) -> u64 {
        self.0.served.load(Ordering::Acquire)
    }

    fn disturb(&self, reason: &str) {
        // Said once a producer: librdkafka repeats itself for as long as a broker is away.
        if self.0.disturbed.swap(true, Ordering::AcqRel) {
            tracing::debug!(reason, "kafka connection is disturbed");
        } else {
            tracing::info!(reason, "kafka connection is disturbed");
        }
    }

    /// The first record that was not taken.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        self.0.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ClientContext for Health {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _config: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.0.served.fetch_add(1, Ordering::AcqRel);
        generate_oauth_token(self.0.tokens.as_ref())
    }

    /// A broken connection is only logged, never an error event, so what is logged decides. An idle connection that the broker closes is
    /// logged for debugging only, and disturbs nothing.
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.0.served.fetch_add(1, Ordering::AcqRel);
        let is_lost = (facility == "FAIL" && message.contains("in state UP")) || facility == "REQTMOUT";
        if !matches!(level, RDKafkaLogLevel::Debug) && (is_lost || facility == "FAIL") {
            self.0.lost.fetch_or(is_lost, Ordering::AcqRel);
            self.disturb(message);
        } else {
            log(level, facility, message);
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.reasons.note(&error, reason);
        self.0.served.fetch_add(1, Ordering::AcqRel);
        self.disturb(&format!("{error}: {reason}"));
    }
}

/// The context of clients that only read: what librdkafka says on the side is for debugging, since the calls themselves fail as well.
#[derive(Clone, Debug, Default)]
pub struct Quiet {
    pub(super) reasons: Reasons,
    pub(super) tokens: Option<TokenFile>,
}

impl ClientContext for Quiet {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _config: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        generate_oauth_token(self.tokens.as_ref())
    }

    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(kafka.facility = facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.reasons.note(&error, reason);
        tracing::debug!(error = %error, reason, "kafka");
    }
}

impl ConsumerContext for Quiet {}

/// Without a file, librdkafka makes unsecured tokens itself, but only the first of each client: it gets a new client then.
fn generate_oauth_token(tokens: Option<&TokenFile>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
    let tokens = tokens.ok_or("there is no --kafka-oauth-token-file")?;
    tokens.read().map_err(|err| format!("{err:#}").into())
}

fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            tracing::warn!(kafka.facility = facility, "{message}");
        }
        _ => tracing::debug!(kafka.facility = facility, "{message}"),
    }
}

impl ProducerContext for Health {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        self.0.served.fetch_add(1, Ordering::AcqRel);
        let Err((error, message)) = result else {
            return;
        };
        let id = message
            .headers()
            .and_then(|headers| headers.iter().find(|header| header.key == "id"))
            .and_then(|header| header.value)
            .map(|value| String::from_utf8_lossy(value).into_owned());
        let mut failure = self.0.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert_with(|| Failure {
            code: error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown),
            topic: message.topic().to_owned(),
            id,
            size: message.key_len() + message.payload_len(),
        });
    }
}
