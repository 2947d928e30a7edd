//! Telling a cluster that refuses us from one that is not there: librdkafka tries both again and again, and says the reason on the side.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};

use super::health::Quiet;

/// The first try of a question; each further one takes twice as long, so that a slow broker is not asked again and again.
const FIRST_TRY: Duration = Duration::from_millis(500);

/// How long events are served after a try; longer than what `debug=all` reports of it takes.
const SERVE_EVENTS: Duration = Duration::from_millis(50);

/// Kafka refuses the login or the TLS handshake: another try alone will not help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("kafka refuses the connection: {0}")]
pub struct Refused(String);

impl Refused {
    /// Whether it is the cause of `err`, or whether an ACL of Kafka's is missing: then, too, another try alone will not help.
    #[must_use]
    pub fn is_cause_of(err: &anyhow::Error) -> bool {
        err.chain().any(|cause| {
            let code = cause.downcast_ref::<RDKafkaErrorCode>().copied();
            let code = code.or_else(|| cause.downcast_ref::<KafkaError>()?.rdkafka_error_code());
            cause.is::<Self>() || code.is_some_and(is_missing_acl)
        })
    }
}

/// Whether Kafka's authorizer denied what was asked; `docs/operations.md` lists what each command needs.
fn is_missing_acl(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::GroupAuthorizationFailed
            | RDKafkaErrorCode::TransactionalIdAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed
    )
}

/// What a client's errors said last; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Reasons(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    refused: Option<Refused>,
    trouble: Option<String>,
}

impl Reasons {
    pub(super) fn note(&self, error: &KafkaError, reason: &str) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match refusal(error.rdkafka_error_code(), reason) {
            Some(refused) => inner.refused = Some(refused),
            None => inner.trouble = Some(reason.to_owned()),
        }
    }

    pub(super) fn refused(&self) -> Option<Refused> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).refused.clone()
    }

    /// Why a question has no answer.
    fn explain(&self, err: KafkaError) -> anyhow::Error {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &inner.trouble {
            Some(trouble) => anyhow::Error::new(err).context(format!("kafka does not answer ({trouble})")),
            None => err.into(),
        }
    }
}

fn refusal(code: Option<RDKafkaErrorCode>, reason: &str) -> Option<Refused> {
    let what = match code? {
        RDKafkaErrorCode::Authentication => "authentication failed",
        RDKafkaErrorCode::SSL => "TLS failed",
        // With TLS 1.3 a server tells what it thinks of the client's certificate after the handshake.
        _ if reason.contains("alert certificate required") || reason.contains("alert bad certificate") => {
            "the client's certificate is missing or refused"
        }
        _ => return None,
    };
    Some(Refused(format!("{what}: {reason}")))
}

/// Asks Kafka by a reader that has no partitions assigned, for up to `patience`; a refusal ends it at once. Blocks.
pub(super) fn ask<T>(
    reader: &BaseConsumer<Quiet>,
    patience: Duration,
    question: impl Fn(Duration) -> KafkaResult<T>,
) -> anyhow::Result<T> {
    let started = Instant::now();
    let mut try_for = FIRST_TRY;
    loop {
        let left = patience.saturating_sub(started.elapsed());
        let is_last = left <= try_for;
        let err = match question(left.min(try_for)) {
            Ok(answer) => return Ok(answer),
            Err(err) => err,
        };
        let reasons = &reader.context().reasons;
        // What was reported meanwhile waits in the reader's queue. A poll serves one event and does not tell whether there was one.
        let polled = Instant::now();
        while polled.elapsed() < SERVE_EVENTS && reasons.refused().is_none() {
            reader.poll(Duration::from_millis(1));
        }
        if let Some(refused) = reasons.refused() {
            return Err(refused.into());
        }
        if !is_silence(&err) || is_last {
            return Err(reasons.explain(err));
        }
        try_for *= 2;
    }
}

/// Whether nobody has answered in time. Where a client has no connection by then, librdkafka says that all brokers are down, although it may
/// have come no further than to the first of them.
fn is_silence(err: &KafkaError) -> bool {
    matches!(
        err.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::OperationTimedOut
        )
    )
}

#[cfg(test)]
mod tests {
    use rdkafka::error::{KafkaError, RDKafkaErrorCode};

    use super::{Refused, is_silence, refusal};

    #[test]
    fn a_missing_acl_is_told_from_what_another_try_may_mend() {
        let says = |code| {
            let asked = anyhow::Error::new(KafkaError::MetadataFetch(code)).context("cannot look");
            let answered = anyhow::Error::new(code).context("topic `t` cannot be created");
            [Refused::is_cause_of(&asked), Refused::is_cause_of(&answered)]
        };
        assert_eq!(says(RDKafkaErrorCode::TopicAuthorizationFailed), [true; 2]);
        assert_eq!(says(RDKafkaErrorCode::TransactionalIdAuthorizationFailed), [true; 2]);
        assert_eq!(says(RDKafkaErrorCode::NotEnoughReplicas), [false; 2]);
    }

    #[test]
    fn a_client_that_has_no_connection_yet_asks_again() {
        let says = |code| is_silence(&KafkaError::MetadataFetch(code));
        assert!(says(RDKafkaErrorCode::AllBrokersDown) && says(RDKafkaErrorCode::OperationTimedOut));
        assert!(!says(RDKafkaErrorCode::TopicAuthorizationFailed));
    }

    #[test]
    fn a_refusal_is_told_from_a_silence() {
        let said = |code, reason| refusal(Some(code), reason).map(|refused| refused.to_string());
        let login = said(RDKafkaErrorCode::Authentication, "SASL authentication error");
        assert!(login.is_some_and(|text| text.contains("authentication failed: SASL")));
        assert!(
            said(RDKafkaErrorCode::SSL, "certificate verify failed").is_some_and(|text| text.contains("TLS failed"))
        );
        assert_eq!(
            said(RDKafkaErrorCode::BrokerTransportFailure, "Connection refused"),
            None
        );
    }
}
