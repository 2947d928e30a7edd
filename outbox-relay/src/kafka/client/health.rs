//! What librdkafka reports beside the results of its calls: failed records and broken connections.

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
    /// Header `id` of the record, if it has one.
    pub id: Option<String>,
    /// Bytes of key and value.
    pub size: usize,
}

/// The records that Kafka did not take.
#[derive(Clone, Debug, Default)]
pub(in crate::kafka) struct Failures {
    /// The first failure, of any kind.
    pub(in crate::kafka) first: Option<Failure>,
    /// The broker blames these records, or another record of their batch: see `kafka::publish::undelivered`.
    pub(in crate::kafka) blamed: Vec<Failure>,
    /// Topics and partitions where records failed only because the broker blames another record of their batch.
    pub(in crate::kafka) failed_beside_blamed: Vec<(String, i32)>,
    /// The batch of these records was too large. The broker does not say which of them are to blame.
    pub(in crate::kafka) too_large: Vec<Failure>,
}

/// How many failures of a kind we keep at most: a transaction can have thousands of records.
const FAILURES_MAX: usize = 1_000;

/// The health of one producer. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    disturbed: AtomicBool,
    lost_a_connection: AtomicBool,
    events_served: AtomicU64,
    failures: Mutex<Failures>,
    trouble: Mutex<Option<String>>,
    reasons: Reasons,
    tokens: Tokens,
}

impl Health {
    /// The health of a producer that logs in with these tokens, if the cluster wants tokens.
    pub(in crate::kafka) fn with_tokens(tokens: Tokens) -> Self {
        Self(Arc::new(Inner {
            tokens,
            ..Inner::default()
        }))
    }

    /// Kafka's refusal of the producer's login or certificate, if there was one.
    #[must_use]
    pub fn refused(&self) -> Option<Refused> {
        self.0.reasons.refused()
    }

    /// Whether a connection broke or a request was lost since this producer was made, as far as librdkafka's events were served. In such a case
    /// librdkafka repeats an EndTxn by itself, and if the first EndTxn arrives late, it could end the *next* transaction. So such a producer must not be
    /// used again.
    #[must_use]
    pub fn is_disturbed(&self) -> bool {
        self.0.disturbed.load(Ordering::Acquire)
    }

    /// Whether a connection that was up broke, or a request got no answer.
    #[must_use]
    pub fn has_lost_a_connection(&self) -> bool {
        self.0.lost_a_connection.load(Ordering::Acquire)
    }

    /// Forgets the failed attempts to connect before the producer's first transaction. They could not disturb anything yet.
    pub fn forget_failed_connects(&self) {
        self.0.disturbed.store(false, Ordering::Release);
    }

    /// How many of librdkafka's events were served.
    #[must_use]
    pub fn events_served(&self) -> u64 {
        self.0.events_served.load(Ordering::Acquire)
    }

    fn note_disturbance(&self, reason: &str) {
        // Logged once for each producer: librdkafka repeats its report as long as a broker is away.
        if self.0.disturbed.swap(true, Ordering::AcqRel) {
            tracing::debug!(reason, "kafka connection is disturbed");
        } else {
            tracing::info!(reason, "kafka connection is disturbed");
        }
    }

    /// The records that Kafka did not take, as far as librdkafka's events were served.
    pub(in crate::kafka) fn failures(&self) -> Failures {
        self.0.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether Kafka took every record, as far as librdkafka's events were served.
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
        self.0.events_served.fetch_add(1, Ordering::AcqRel);
        self.0.tokens.issue(config)
    }

    /// librdkafka only logs a broken connection and gives no error event, so we read its log. If the broker closes an idle connection, it logs that at the
    /// level `debug`, and that disturbs nothing.
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.0.events_served.fetch_add(1, Ordering::AcqRel);
        if facility == "TXNERR" {
            let mut trouble = self.0.trouble.lock().unwrap_or_else(PoisonError::into_inner);
            trouble.get_or_insert_with(|| message.to_owned());
        }
        let is_lost = (facility == "FAIL" && message.contains("in state UP")) || facility == "REQTMOUT";
        if !matches!(level, RDKafkaLogLevel::Debug) && (is_lost || facility == "FAIL") {
            self.0.lost_a_connection.fetch_or(is_lost, Ordering::AcqRel);
            self.note_disturbance(message);
        } else {
            log(level, facility, message);
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.reasons.note(&error, reason);
        self.0.events_served.fetch_add(1, Ordering::AcqRel);
        self.note_disturbance(&format!("{error}: {reason}"));
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
        self.0.events_served.fetch_add(1, Ordering::AcqRel);
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
                if !failures.failed_beside_blamed.contains(&place) {
                    failures.failed_beside_blamed.push(place);
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
