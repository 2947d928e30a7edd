//! SASL OAUTHBEARER with a token from a file, which whoever issues tokens keeps fresh there.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rdkafka::client::{Client, ClientContext, OAuthToken};
use serde::Deserialize;
use service::clock::now_us;

use crate::process::faults::{self, Bug};

/// The file of a JSON Web Token (RFC 7519). It is read again for each refresh, which librdkafka asks for at four fifths of a token's life.
#[derive(Clone, Debug)]
pub(in crate::kafka) struct TokenFile(Arc<PathBuf>);

/// For [`Bug::KeepFirstKafkaSecrets`] alone.
static FIRST_TEXT: OnceLock<String> = OnceLock::new();

/// The claims that Kafka's client needs to know; the broker checks the token itself.
#[derive(Debug, Deserialize)]
struct Claims {
    sub: String,
    /// Seconds since 1970; JSON allows a fraction.
    exp: f64,
}

impl TokenFile {
    pub(in crate::kafka) fn new(path: &Path) -> Self {
        Self(Arc::new(path.to_owned()))
    }

    /// The token that the file holds now.
    ///
    /// # Errors
    /// The file cannot be read, holds no JWT with `sub` and `exp`, or one that has expired. Says nothing of the token's text.
    pub(in crate::kafka) fn read(&self) -> anyhow::Result<OAuthToken> {
        let path = self.0.display();
        let mut text =
            std::fs::read_to_string(&*self.0).with_context(|| format!("cannot read the OAuth token {path}"))?;
        if faults::is_planted(Bug::KeepFirstKafkaSecrets) {
            text.clone_from(FIRST_TEXT.get_or_init(|| text.clone()));
        }
        let claims =
            claims(text.trim()).with_context(|| format!("the OAuth token {path} is no JWT with sub and exp"))?;
        let lifetime_ms = (claims.exp * 1e3) as i64;
        let left_ms = lifetime_ms - now_us() / 1_000;
        anyhow::ensure!(left_ms > 0, "the OAuth token {path} expired {} s ago", -left_ms / 1_000);
        Ok(OAuthToken {
            token: text.trim().to_owned(),
            principal_name: claims.sub,
            lifetime_ms,
        })
    }
}

fn claims(token: &str) -> Option<Claims> {
    let payload = token.split('.').nth(1)?;
    let json = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
    serde_json::from_slice(&json).ok()
}

/// Gives a new client its first token. librdkafka asks for it by an event, but a client that waits for its first answer serves none, and the
/// wrapper's admin client never does.
#[expect(unsafe_code, reason = "the safe wrapper has no way to set a token")]
pub(in crate::kafka) fn set_token<C: ClientContext>(client: &Client<C>, tokens: &TokenFile) -> anyhow::Result<()> {
    let token = tokens.read()?;
    let value = std::ffi::CString::new(token.token).context("the OAuth token has a zero byte")?;
    let principal = std::ffi::CString::new(token.principal_name).context("the OAuth token's sub has a zero byte")?;
    let mut message = [0 as std::ffi::c_char; 512];
    // SAFETY: the client's pointer is valid as long as the borrowed client; the texts are terminated and copied by the call; there are no
    // extensions; the message's buffer has the size that is told.
    let outcome = unsafe {
        rdkafka::bindings::rd_kafka_oauthbearer_set_token(
            client.native_ptr(),
            value.as_ptr(),
            token.lifetime_ms,
            principal.as_ptr(),
            std::ptr::null_mut(),
            0,
            message.as_mut_ptr(),
            message.len(),
        )
    };
    // The message is left out: it could quote the token.
    anyhow::ensure!(
        outcome == rdkafka::types::RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR,
        "kafka's client takes no such OAuth token"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::claims;

    #[test]
    fn sub_and_exp_are_read_from_a_jwt_and_anything_else_is_none() {
        let token = |claims: &str| format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
        let read = claims(&token(r#"{"sub":"relay","exp":1795344833.5,"scope":"x"}"#)).unwrap();
        assert_eq!((read.sub.as_str(), read.exp), ("relay", 1_795_344_833.5));
        for text in ["", "opaque", "a.b", &token("{}"), &token(r#"{"sub":"relay"}"#)] {
            assert!(claims(text).is_none(), "{text}");
        }
    }
}
