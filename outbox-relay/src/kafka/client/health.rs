//! What librdkafka reports on the side: failed records and broken connections.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kafka_client::{Reasons, Refused, Tokens};
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Headers, Message};
use rdkafka::producer::ProducerContext;

/// A record that Kafka did not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: RDKafkaErrorCode,
    pub topic: String,
    pub partition: i32,
    /// Header `id` of the record, where it has one.
    pub id: Option<String>,
    /// Bytes of key and value.
    pub size: usize,
}

/// The records that Kafka did not take.
#[derive(Clone, Debug, Default)]
pub(in crate::kafka) struct Failures {
    /// The first of all, whatever became of it.
    pub(in crate::kafka) first: Option<Failure>,
    /// Those that the broker blames, or whose batch has one that it blames: see `kafka::publish::undelivered`.
    pub(in crate::kafka) blamed: Vec<Failure>,
    /// Topic and partition of those that failed for another record of their batch.
    pub(in crate::kafka) beside_blamed: Vec<(String, i32)>,
    /// Those whose batch was too large; which of its records are to blame is not said.
    pub(in crate::kafka) too_large: Vec<Failure>,
}

/// How many failures of a kind are kept: a transaction has thousands of records.
const FAILURES_MAX: usize = 1_000;

/// The health of one producer; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    disturbed: AtomicBool,
    lost: AtomicBool,
    served: AtomicU64,
    failures: Mutex<Failures>,
    trouble: Mutex<Option<String>>,
    reasons: Reasons,
    tokens: Tokens,
}

impl Health {
    /// Of a producer that logs in with these tokens, where the cluster wants one.
    pub(in crate::kafka) fn with_tokens(tokens: Tokens) -> Self {
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

    /// The records that were not taken, as far as librdkafka's events were served.
    pub(in crate::kafka) fn failures(&self) -> Failures {
        self.0.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether every record was taken, as far as librdkafka's events were served.
    pub(in crate::kafka) fn has_no_failure(&self) -> bool {
        let failures = self.0.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.first.is_none()
    }

    /// Why the transaction cannot go on, in librdkafka's words.
    pub(in crate::kafka) fn trouble(&self) -> Option<String> {
        self.0.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ClientContext for Health {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, config: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.0.served.fetch_add(1, Ordering::AcqRel);
        self.0.tokens.issue(config)
    }

    /// A broken connection is only logged, never an error event, so what is logged decides. An idle connection that the broker closes is
    /// logged for debugging only, and disturbs nothing.
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.0.served.fetch_add(1, Ordering::AcqRel);
        if facility == "TXNERR" {
            let mut trouble = self.0.trouble.lock().unwrap_or_else(PoisonError::into_inner);
            trouble.get_or_insert_with(|| message.to_owned());
        }
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
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
        let failure = || Failure {
            code,
            topic: message.topic().to_owned(),
            partition: message.partition(),
            id: id.clone(),
            size: message.key_len() + message.payload_len(),
        };
        let mut failures = self.0.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.first.get_or_insert_with(failure);
        let kind = match code {
            RDKafkaErrorCode::InvalidRecord | RDKafkaErrorCode::InvalidTimestamp => &mut failures.blamed,
            RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::MessageBatchTooLarge => &mut failures.too_large,
            RDKafkaErrorCode::InvalidDifferentRecord => {
                let place = (message.topic().to_owned(), message.partition());
                if !failures.beside_blamed.contains(&place) {
                    failures.beside_blamed.push(place);
                }
                return;
            }
            _ => return,
        };
        if kind.len() < FAILURES_MAX {
            kind.push(failure());
        }
    }
}
