//! Whether a setting is wrong, or a file is just being replaced: whoever replaces a password or a certificate need not start the relay again.
//!
//! A living client keeps what it was made with, also for connections that it makes later. When the broker refuses one of those, the
//! producer is disturbed, and the next start makes a new client from what the files hold then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kafka_client::OpenError;

use crate::process::stop::{RelayError, Stop};

/// Whether librdkafka has ever made a client of a kind from these settings: from then on only the files can be at fault. Clones share it.
#[derive(Clone, Debug, Default)]
pub(in crate::kafka) struct Accepted(Arc<AtomicBool>);

impl Accepted {
    /// The outcome of making a client. A wrong setting is for a person; a file that is being replaced, or a token, is worth another try.
    pub(in crate::kafka) fn judge<T>(&self, made: Result<T, OpenError>) -> Result<T, RelayError> {
        let is_accepted = matches!(made, Ok(_) | Err(OpenError::Token(_)));
        let was_accepted = self.0.fetch_or(is_accepted, Ordering::AcqRel);
        made.map_err(|err| match err {
            err if is_accepted || was_accepted => anyhow::Error::from(err).into(),
            err => Stop::Config { what: err.to_string() }.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use kafka_client::{InvalidProperty, OpenError};

    use super::Accepted;
    use crate::process::stop::{RelayError, Stop};

    #[test]
    fn what_was_good_once_is_worth_another_try() {
        let accepted = Accepted::default();
        let fails = || Err::<(), _>(OpenError::File(InvalidProperty::NoValue(1)));
        assert!(matches!(
            accepted.judge(fails()),
            Err(RelayError::Stop(Stop::Config { .. }))
        ));
        accepted.judge(Ok(())).unwrap();
        assert!(matches!(accepted.judge(fails()), Err(RelayError::Transient(_))));
    }

    #[test]
    fn a_token_that_cannot_be_used_now_is_worth_another_try() {
        let judged = Accepted::default().judge(Err::<(), _>(OpenError::Token("expired".to_owned())));
        assert!(matches!(judged, Err(RelayError::Transient(_))));
    }
}
