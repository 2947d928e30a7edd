//! The login: SCRAM-SHA-256 with and without channel binding, md5 and cleartext password. A server that trusts the client or its certificate asks for
//! none of them.

use anyhow::Context;
use bytes::BytesMut;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;

use super::{Connection, PgError, fallible_next};
use crate::session::binding::tls_server_end_point;
use crate::session::target::{Binding, Target};

impl Connection {
    /// Logs in by the method that the server asks for, with the target's password if it needs one.
    ///
    /// # Errors
    /// The server refuses the login, or asks for a method that is not supported; the connection broke.
    pub(super) async fn authenticate(&mut self, target: &Target) -> anyhow::Result<()> {
        let password = || {
            let password = target.password.as_ref();
            let password = password.context("the server wants a password, and the URL has none")?;
            password
                .reveal()
                .with_context(|| format!("{} cannot be read", password.describe()))
        };
        let mut out = BytesMut::new();
        let message = self.next_message().await?;
        let can_be_bound = matches!(message, Message::AuthenticationSasl(_) | Message::ErrorResponse(_));
        anyhow::ensure!(
            can_be_bound || target.channel_binding != Binding::Require,
            "channel_binding=require: the server asks for a login that is not bound to its certificate"
        );
        match message {
            Message::AuthenticationOk => return Ok(()),
            Message::AuthenticationCleartextPassword => frontend::password_message(password()?.as_bytes(), &mut out)?,
            Message::AuthenticationMd5Password(body) => {
                let hash = md5_hash(target.user.as_bytes(), password()?.as_bytes(), body.salt());
                frontend::password_message(hash.as_bytes(), &mut out)?;
            }
            Message::AuthenticationSasl(body) => {
                let mut mechanisms = body.mechanisms();
                let (mut offers_plain, mut offers_plus) = (false, false);
                while let Some(mechanism) = fallible_next(&mut mechanisms)? {
                    offers_plain |= mechanism == SCRAM_SHA_256;
                    offers_plus |= mechanism == SCRAM_SHA_256_PLUS;
                }
                let (mechanism, binding) = self.choose_mechanism(target.channel_binding, offers_plus)?;
                let offered = if mechanism == SCRAM_SHA_256_PLUS {
                    offers_plus
                } else {
                    offers_plain
                };
                anyhow::ensure!(offered, "the server offers no {mechanism}");
                return self.log_in_by_scram(mechanism, binding, password()?.as_bytes()).await;
            }
            Message::ErrorResponse(body) => return Err(PgError::from_body(&body)?.into()),
            _ => anyhow::bail!(
                "the server asks for an authentication that is not supported (supported: SCRAM-SHA-256, SCRAM-SHA-256-PLUS, md5, password, trust, client certificate)"
            ),
        }
        self.send(&out).await?;
        self.expect_authentication_ok().await
    }

    /// Chooses mechanism and binding as libpq does.
    fn choose_mechanism(&self, wanted: Binding, offers_plus: bool) -> anyhow::Result<(&'static str, ChannelBinding)> {
        let certificate = self.stream.server_certificate();
        let data = match wanted {
            Binding::Disable => None,
            Binding::Prefer | Binding::Require => certificate.and_then(tls_server_end_point),
        };
        if wanted == Binding::Require {
            anyhow::ensure!(certificate.is_some(), "channel_binding=require: the session has no TLS");
            anyhow::ensure!(
                offers_plus,
                "channel_binding=require: the server offers no {SCRAM_SHA_256_PLUS}"
            );
            anyhow::ensure!(
                data.is_some(),
                "channel_binding=require: no binding is defined for the signature of the server's certificate"
            );
        }
        Ok(match data {
            Some(data) if offers_plus => (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(data)),
            // This tells the server that we support channel binding. A server that did offer it then knows that somebody removed the offer on the
            // way.
            Some(_) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
            None => (SCRAM_SHA_256, ChannelBinding::unsupported()),
        })
    }

    async fn log_in_by_scram(
        &mut self,
        mechanism: &str,
        binding: ChannelBinding,
        password: &[u8],
    ) -> anyhow::Result<()> {
        let mut scram = ScramSha256::new(password, binding);
        let mut out = BytesMut::new();
        frontend::sasl_initial_response(mechanism, scram.message(), &mut out)?;
        self.send(&out).await?;
        match self.next_message().await? {
            Message::AuthenticationSaslContinue(body) => scram.update(body.data())?,
            Message::ErrorResponse(body) => return Err(PgError::from_body(&body)?.into()),
            _ => anyhow::bail!("the server broke off the SCRAM exchange"),
        }
        out.clear();
        frontend::sasl_response(scram.message(), &mut out)?;
        self.send(&out).await?;
        match self.next_message().await? {
            // This message proves that the server knows the password, too.
            Message::AuthenticationSaslFinal(body) => scram.finish(body.data())?,
            Message::ErrorResponse(body) => return Err(PgError::from_body(&body)?.into()),
            _ => anyhow::bail!("the server broke off the SCRAM exchange"),
        }
        self.expect_authentication_ok().await
    }

    async fn expect_authentication_ok(&mut self) -> anyhow::Result<()> {
        match self.next_message().await? {
            Message::AuthenticationOk => Ok(()),
            Message::ErrorResponse(body) => Err(PgError::from_body(&body)?.into()),
            _ => anyhow::bail!("the server's answer to the login is not understood"),
        }
    }
}
