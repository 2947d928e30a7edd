//! Tells a cluster that refuses us from a cluster that is away. librdkafka keeps trying in both cases, and reports the reason only in its error
//! callback.

use std::sync::{Arc, Mutex, PoisonError};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// Kafka refuses the login or the TLS handshake. Another try will not help unless somebody changes something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("kafka refuses the connection: {0}")]
pub struct Refused(String);

impl Refused {
    /// Whether `err` was caused by such a refusal or by a missing ACL. In both cases another try will not help unless somebody changes something.
    #[must_use]
    pub fn is_cause_of(err: &anyhow::Error) -> bool {
        err.chain().any(|cause| {
            let code = cause.downcast_ref::<RDKafkaErrorCode>().copied();
            let code = code.or_else(|| cause.downcast_ref::<KafkaError>()?.rdkafka_error_code());
            cause.is::<Self>() || code.is_some_and(is_missing_acl)
        })
    }
}

/// Whether Kafka refused a request because the client lacks an ACL for it.
fn is_missing_acl(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::GroupAuthorizationFailed
            | RDKafkaErrorCode::TransactionalIdAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed
    )
}

/// The last errors that a client's error callback has reported. All clones share them.
#[derive(Clone, Debug, Default)]
pub struct Reasons(Arc<Mutex<LastErrors>>);

#[derive(Debug, Default)]
struct LastErrors {
    refused: Option<Refused>,
    /// The last error that is no refusal.
    trouble: Option<String>,
}

impl Reasons {
    /// Notes an error. [`rdkafka::ClientContext::error`] has to call this.
    pub fn note(&self, error: &KafkaError, reason: &str) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match refusal(error.rdkafka_error_code(), reason) {
            Some(refused) => last.refused = Some(refused),
            None => last.trouble = Some(reason.to_owned()),
        }
    }

    /// The last refusal, if there was one.
    #[must_use]
    pub fn refused(&self) -> Option<Refused> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).refused.clone()
    }

    /// Forgets all errors, since the cluster has let the client in.
    pub fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = LastErrors::default();
    }

    /// Adds the last trouble to the error of a request that got no answer.
    #[must_use]
    pub fn explain(&self, err: KafkaError) -> anyhow::Error {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &last.trouble {
            Some(trouble) => anyhow::Error::new(err).context(format!("kafka does not answer ({trouble})")),
            None => err.into(),
        }
    }
}

fn refusal(code: Option<RDKafkaErrorCode>, reason: &str) -> Option<Refused> {
    let what = match code? {
        RDKafkaErrorCode::Authentication => "authentication failed",
        RDKafkaErrorCode::SSL => "TLS failed",
        // With TLS 1.3 a server refuses the client's certificate only after the handshake.
        _ if reason.contains("alert certificate required") || reason.contains("alert bad certificate") => {
            "the client's certificate is missing or refused"
        }
        _ => return None,
    };
    Some(Refused(format!("{what}: {reason}")))
}

#[cfg(test)]
mod tests {
    use rdkafka::error::{KafkaError, RDKafkaErrorCode};

    use super::{Reasons, Refused, refusal};

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
    fn a_trouble_from_before_the_last_answer_explains_no_later_silence() {
        let silence = || KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut);
        let reasons = Reasons::default();
        reasons.note(
            &KafkaError::Global(RDKafkaErrorCode::BrokerTransportFailure),
            "Connection refused",
        );
        assert!(format!("{:#}", reasons.explain(silence())).contains("Connection refused"));
        reasons.forget();
        assert!(!format!("{:#}", reasons.explain(silence())).contains("Connection refused"));
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
