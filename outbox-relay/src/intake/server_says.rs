//! Notices and errors that the server sends in place of rows.

use super::Intake;
use crate::process::stop::{RelayError, Stop};

impl Intake {
    /// PostgreSQL 18 skips a missing publication with a warning, and everything in it: silent loss, were it not looked at here.
    pub(super) fn handle_notice(&self, code: &str, message: &str) -> Result<(), RelayError> {
        if code == "55000" || message.contains("skipped loading publication") {
            return Err(Stop::Publication {
                publication: self.publication.clone(),
                what: message.to_owned(),
            }
            .into());
        }
        if !message.is_empty() {
            tracing::info!(postgres.code = code, "the server says: {message}");
        }
        Ok(())
    }
}

/// Why the server has ended a stream of `publication`, by its error.
pub(crate) fn server_error(publication: &str, code: &str, message: &str) -> RelayError {
    // The message may be in the server's language; it quotes the publication's name in any.
    if code == "42704" && message.contains(publication) {
        return Stop::Publication {
            publication: publication.to_owned(),
            what: format!("{message}: it is missing at the position that the slot is reading"),
        }
        .into();
    }
    anyhow::anyhow!("the server ended the stream: {message} (SQLSTATE {code})").into()
}
