//! SASL OAUTHBEARER: the tokens that a client logs in with.

use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rdkafka::client::{Client, ClientContext, OAuthToken};
use serde::Deserialize;
use serde_json::json;

/// How long librdkafka's unsecured tokens last if `sasl.oauthbearer.config` does not say it.
const UNSECURED_LIFE_S: i64 = 3_600;

/// Where tokens come from. `Debug` shows a file's path, and never a token.
#[derive(Clone, Default)]
pub enum Tokens {
    /// Nobody logs in by a token.
    #[default]
    None,
    /// A file that holds a JSON Web Token (RFC 7519). The program that issues tokens replaces it before the token expires. The file is read again for
    /// each refresh. librdkafka asks for a refresh when four fifths of a token's life are over.
    File(PathBuf),
    /// This token, until it expires.
    Given(String),
    /// Tokens without a signature, made from `sasl.oauthbearer.config`. They are for development. librdkafka makes the first token of each client by
    /// itself.
    Unsecured,
}

/// The claims that Kafka's client needs. It is the broker that checks the token.
#[derive(Debug, Deserialize)]
struct Claims {
    sub: String,
    /// Seconds since 1970; JSON allows a fraction.
    exp: f64,
}

impl Tokens {
    /// Makes the token that [`ClientContext::generate_oauth_token`] has to return now. `config` is the argument of that function.
    ///
    /// # Errors
    /// There is no source of tokens; the file cannot be read; it holds no JWT with `sub` and `exp`, or one that has expired. The error contains
    /// nothing of the token.
    pub fn issue(&self, config: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        let issued = match self {
            Self::None => return Err("there is no --kafka-oauth-token-file".into()),
            Self::File(path) => read_token_file(path),
            Self::Given(text) => parse_jwt(text, "the OAuth token"),
            // Without sasl.oauthbearer.config no pair is set, and `make_unsecured_token` says what is missing.
            Self::Unsecured => make_unsecured_token(config.unwrap_or_default(), now_ms()),
        };
        issued.map_err(|err| format!("{err:#}").into())
    }

    /// Gives a new client its first token. librdkafka asks for it by an event. But a client that waits for its first answer serves no events, and the
    /// wrapper's admin client never does.
    ///
    /// # Errors
    /// As [`Tokens::issue`], or librdkafka does not take the token.
    pub(crate) fn give_first<C: ClientContext>(&self, client: &Client<C>) -> anyhow::Result<()> {
        match self {
            Self::None | Self::Unsecured => Ok(()),
            Self::File(path) => set_token(client, read_token_file(path)?),
            Self::Given(text) => set_token(client, parse_jwt(text, "the OAuth token")?),
        }
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::File(path) => write!(f, "File({})", path.display()),
            Self::Given(_) => f.write_str("Given(***)"),
            Self::Unsecured => f.write_str("Unsecured"),
        }
    }
}

fn read_token_file(path: &Path) -> anyhow::Result<OAuthToken> {
    let name = format!("the OAuth token {}", path.display());
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
    parse_jwt(&text, &name)
}

/// Parses a JWT. Error texts call it `name`.
fn parse_jwt(text: &str, name: &str) -> anyhow::Result<OAuthToken> {
    let text = text.trim();
    let claims = read_claims(text).with_context(|| format!("{name} is no JWT with sub and exp"))?;
    let expires_ms = (claims.exp * 1e3) as i64;
    let left_ms = expires_ms - now_ms();
    ensure!(left_ms > 0, "{name} expired {} s ago", -left_ms / 1_000);
    Ok(OAuthToken {
        token: text.to_owned(),
        principal_name: claims.sub,
        // librdkafka's name for the time at which the token expires.
        lifetime_ms: expires_ms,
    })
}

fn read_claims(token: &str) -> Option<Claims> {
    let payload = token.split('.').nth(1)?;
    let json = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
    serde_json::from_slice(&json).ok()
}

/// Makes the token that librdkafka would make from `config`, which is `principal=NAME` and further pairs. Extensions are not supported.
fn make_unsecured_token(config: &str, now_ms: i64) -> anyhow::Result<OAuthToken> {
    let (mut principal, mut principal_claim) = ("", "sub");
    let (mut scope, mut scope_claim) = (None, "scope");
    let mut life_s = UNSECURED_LIFE_S;
    for pair in config.split_whitespace() {
        match pair.split_once('=').unwrap_or((pair, "")) {
            ("principal", value) => principal = value,
            ("principalClaimName", value) => principal_claim = value,
            ("scope", value) => scope = Some(value.split(',').collect::<Vec<_>>()),
            ("scopeClaimName", value) => scope_claim = value,
            ("lifeSeconds", value) => life_s = value.parse().context("lifeSeconds is no number")?,
            (name, _) => {
                anyhow::bail!(
                    "a token without a signature cannot be renewed: `{name}` of sasl.oauthbearer.config is not supported here"
                )
            }
        }
    }
    ensure!(!principal.is_empty(), "sasl.oauthbearer.config has no principal=NAME");
    let expires_ms = now_ms + life_s * 1_000;
    let mut claims = json!({"iat": now_ms / 1_000, "exp": expires_ms / 1_000});
    claims[principal_claim] = principal.into();
    if let Some(scope) = scope {
        claims[scope_claim] = scope.into();
    }
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    Ok(OAuthToken {
        token: format!("{}.{}.", encode(r#"{"alg":"none"}"#), encode(&claims.to_string())),
        principal_name: principal.to_owned(),
        lifetime_ms: expires_ms,
    })
}

#[expect(unsafe_code, reason = "the safe wrapper has no way to set a token")]
fn set_token<C: ClientContext>(client: &Client<C>, token: OAuthToken) -> anyhow::Result<()> {
    let value = std::ffi::CString::new(token.token).context("the OAuth token has a zero byte")?;
    let principal = std::ffi::CString::new(token.principal_name).context("the OAuth token's sub has a zero byte")?;
    let mut message = [0 as std::ffi::c_char; 512];
    // SAFETY: the client's pointer is valid as long as the borrowed client; the texts are terminated and copied by the call; there are no extensions;
    // the message's buffer has the size that is passed.
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
    ensure!(
        outcome == rdkafka::types::RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR,
        "kafka's client does not take the OAuth token"
    );
    Ok(())
}

/// Milliseconds since 1970; 0 if the clock is set to an earlier time.
fn now_ms() -> i64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::{Tokens, make_unsecured_token, read_claims};

    fn with_claims(claims: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn sub_and_exp_are_read_from_a_jwt_and_anything_else_is_none() {
        let read = read_claims(&with_claims(r#"{"sub":"relay","exp":1795344833.5,"scope":"x"}"#)).unwrap();
        assert_eq!((read.sub.as_str(), read.exp), ("relay", 1_795_344_833.5));
        for text in [
            "",
            "opaque",
            "a.b",
            &with_claims("{}"),
            &with_claims(r#"{"sub":"relay"}"#),
        ] {
            assert!(read_claims(text).is_none(), "{text}");
        }
    }

    #[test]
    fn a_file_is_read_for_each_token_and_what_is_wrong_with_it_is_told_without_the_token() {
        let path = std::env::temp_dir().join(format!("kafka-client-token-{}", std::process::id()));
        let tokens = Tokens::File(path.clone());
        let wrong = || tokens.issue(None).map(drop).unwrap_err().to_string();
        assert!(wrong().starts_with("cannot read the OAuth token "), "{}", wrong());
        std::fs::write(&path, "hunter2").unwrap();
        assert!(wrong().ends_with("is no JWT with sub and exp"), "{}", wrong());
        let expired = with_claims(r#"{"sub":"relay","exp":1000}"#);
        std::fs::write(&path, &expired).unwrap();
        assert!(wrong().contains(" expired "), "{}", wrong());
        std::fs::write(&path, with_claims(r#"{"sub":"relay","exp":99999999999}"#)).unwrap();
        let token = tokens.issue(None).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(
            (&*token.principal_name, token.lifetime_ms),
            ("relay", 99_999_999_999_000)
        );
        assert_eq!(format!("{:?}", Tokens::Given(expired)), "Given(***)");
    }

    #[test]
    fn a_token_without_signature_is_made_as_librdkafka_makes_it() {
        let token = make_unsecured_token("principal=relay scope=a,b lifeSeconds=600", 1_000_000).unwrap();
        assert_eq!((&*token.principal_name, token.lifetime_ms), ("relay", 1_600_000));
        let parts: Vec<&str> = token.token.split('.').collect();
        let json = URL_SAFE_NO_PAD.decode(parts[1]).unwrap();
        let claims: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(
            claims,
            serde_json::json!({"sub": "relay", "iat": 1_000, "exp": 1_600, "scope": ["a", "b"]})
        );
        assert_eq!(parts.len(), 3);
        for config in ["", "principal=a extension_x=y", "principal=a lifeSeconds=x"] {
            assert!(make_unsecured_token(config, 0).is_err(), "{config}");
        }
    }
}
