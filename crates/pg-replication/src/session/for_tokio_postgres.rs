//! Opens sessions of tokio-postgres to a [`Target`]. They use the same TLS and channel binding as our own sessions, and name errors in the same
//! words.

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::Context as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::config::{ChannelBinding as WantedBinding, SslMode, TargetSessionAttrs};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_postgres::{Client, Config, Socket};

use super::address::Address;
use super::binding::tls_server_end_point;
use super::hosts::SessionKind;
use super::target::{Binding, Target, TlsMode};
use super::tls;

/// Why a session could not begin, if our own code and not tokio-postgres found it out. tokio-postgres gives it as the source of its error.
#[derive(Debug)]
pub struct SessionError(anyhow::Error);

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

impl StdError for SessionError {}

impl SessionError {
    /// The text that our own sessions have for this error of [`Target::open_tokio_postgres`], if they have one.
    #[must_use]
    pub fn words_for(err: &tokio_postgres::Error) -> Option<String> {
        let source = err.source()?;
        if source.is::<Self>() {
            return Some(source.to_string());
        }
        // tokio-postgres has no type for this error, so it is recognised by its text.
        (source.to_string() == "server does not support TLS").then(|| tls::NO_TLS.to_owned())
    }
}

/// The connection behind a session. The caller must await it in a task of its own, or the session does nothing.
pub type SessionTask = tokio_postgres::Connection<Socket, SecuredStream<Socket>>;

impl Target {
    /// Opens a session of tokio-postgres with the first host that is suitable. The files of password, certificates and keys are read now. `adjust`
    /// sets what a target does not have.
    ///
    /// [`Target::pins_settings`] and [`Target::instance`] only apply to our own sessions.
    ///
    /// # Errors
    /// Those of tokio-postgres. If a file or TLS is wrong, the source of the error is a [`SessionError`]. If no host is a primary, the error is
    /// the one of tokio-postgres for a server that takes no writes.
    pub async fn open_tokio_postgres(
        &self,
        adjust: impl Fn(&mut Config),
    ) -> Result<(Client, SessionTask), tokio_postgres::Error> {
        // tokio-postgres would look for a session that may write. But a role that may only read cannot write on a primary either.
        if self.session == SessionKind::Primary {
            for address in &self.addresses {
                let single_host = Self {
                    addresses: vec![address.clone()],
                    session: SessionKind::Any,
                    ..self.clone()
                };
                if let Ok((client, mut task)) = single_host.connect_tokio_postgres(&adjust).await
                    && is_primary(&client, &mut task).await
                {
                    return Ok((client, task));
                }
            }
        }
        self.connect_tokio_postgres(&adjust).await
    }

    async fn connect_tokio_postgres(
        &self,
        adjust: &impl Fn(&mut Config),
    ) -> Result<(Client, SessionTask), tokio_postgres::Error> {
        let mut config = self.tokio_postgres_config();
        let password = self.password.as_ref().map(|password| {
            let revealed = password.reveal();
            revealed.with_context(|| format!("{} cannot be read", password.describe()))
        });
        let failure = match password {
            Some(Ok(password)) => {
                config.password(password);
                None
            }
            Some(Err(err)) => Some(SessionError(err)),
            None => None,
        };
        adjust(&mut config);
        let tls = MakeTls {
            target: self.clone(),
            failure,
        };
        config.connect(tls).await
    }

    /// The configuration for tokio-postgres, without the password.
    fn tokio_postgres_config(&self) -> Config {
        let mut config = Config::new();
        for address in &self.addresses {
            match address {
                Address::Tcp { host, port } => config.host(host).port(*port),
                Address::Unix { socket } => {
                    let port = socket.extension().and_then(|port| port.to_str()?.parse().ok());
                    let directory = socket.parent().unwrap_or(socket);
                    config.host_path(directory).port(port.unwrap_or(5432))
                }
            };
        }
        let is_local = self
            .addresses
            .iter()
            .all(|address| matches!(address, Address::Unix { .. }));
        config
            .user(&self.user)
            .dbname(&self.database)
            .ssl_mode(match self.tls {
                // A Unix socket has no TLS, whatever is asked for.
                _ if is_local => SslMode::Disable,
                TlsMode::Disable => SslMode::Disable,
                TlsMode::Prefer => SslMode::Prefer,
                TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => SslMode::Require,
            })
            .channel_binding(match self.channel_binding {
                Binding::Disable => WantedBinding::Disable,
                Binding::Prefer => WantedBinding::Prefer,
                Binding::Require => WantedBinding::Require,
            })
            .target_session_attrs(match self.session {
                SessionKind::Any => TargetSessionAttrs::Any,
                SessionKind::ReadWrite | SessionKind::Primary => TargetSessionAttrs::ReadWrite,
            })
            .connect_timeout(self.connect_timeout);
        if let Some(name) = &self.application_name {
            config.application_name(name);
        }
        if let Some(options) = &self.options {
            config.options(options);
        }
        config
    }
}

/// Whether the session is with a server that is no standby. Nobody else serves the session yet.
async fn is_primary(client: &Client, task: &mut SessionTask) -> bool {
    tokio::select! {
        answer = client.query_one("select pg_is_in_recovery()", &[]) => answer.is_ok_and(|row| !row.get::<_, bool>(0)),
        _ended = task => false,
    }
}

/// Makes a connector for each host.
struct MakeTls {
    target: Target,
    /// An error that was found before a host was asked. It is given to tokio-postgres here, since this is the first place that can fail.
    failure: Option<SessionError>,
}

impl MakeTlsConnect<Socket> for MakeTls {
    type Stream = SecuredStream<Socket>;
    type TlsConnect = Connector;
    type Error = SessionError;

    fn make_tls_connect(&mut self, host: &str) -> Result<Connector, SessionError> {
        match &self.failure {
            // tokio-postgres asks once for each host, so the error is copied.
            Some(failure) => Err(SessionError(anyhow::anyhow!(failure.to_string()))),
            None => Ok(Connector {
                target: self.target.clone(),
                host: host.to_owned(),
            }),
        }
    }
}

/// Does the TLS handshake with one host. tokio-postgres calls it when the host has said that it supports TLS.
struct Connector {
    target: Target,
    host: String,
}

impl TlsConnect<Socket> for Connector {
    type Stream = SecuredStream<Socket>;
    type Error = SessionError;
    type Future = Pin<Box<dyn Future<Output = Result<SecuredStream<Socket>, SessionError>> + Send>>;

    fn connect(self, stream: Socket) -> Self::Future {
        Box::pin(async move {
            let secured = tls::handshake(&self.target, &self.host, stream).await;
            secured.map(SecuredStream).map_err(SessionError)
        })
    }
}

/// A stream under TLS, to which a login can be bound.
pub struct SecuredStream<S>(tokio_rustls::client::TlsStream<S>);

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for SecuredStream<S> {
    fn channel_binding(&self) -> ChannelBinding {
        let certificates = self.0.get_ref().1.peer_certificates();
        let certificate = certificates.and_then(|certificates| certificates.first());
        match certificate.and_then(|certificate| tls_server_end_point(certificate)) {
            Some(data) => ChannelBinding::tls_server_end_point(data),
            None => ChannelBinding::none(),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for SecuredStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for SecuredStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

    use crate::Target;

    fn config(url: &str) -> tokio_postgres::Config {
        Target::parse(url).unwrap().tokio_postgres_config()
    }

    #[test]
    fn a_target_says_the_same_to_tokio_postgres() {
        let several = config("postgres://u@h1:1,h2/d?sslmode=verify-full&application_name=a&options=-c%20x=y");
        assert_eq!(
            several.get_hosts(),
            [Host::Tcp("h1".to_owned()), Host::Tcp("h2".to_owned())]
        );
        assert_eq!(several.get_ports(), [1, 5432]);
        assert_eq!(several.get_ssl_mode(), SslMode::Require);
        assert_eq!(several.get_target_session_attrs(), TargetSessionAttrs::ReadWrite);
        assert_eq!((several.get_user(), several.get_dbname()), (Some("u"), Some("d")));
        assert_eq!(
            (several.get_application_name(), several.get_options()),
            (Some("a"), Some("-c x=y"))
        );
    }

    #[test]
    fn a_unix_socket_is_spoken_with_without_tls() {
        let local = config("postgres://u@%2Fvar%2Frun:7/d?sslmode=require");
        assert_eq!(local.get_hosts(), [Host::Unix("/var/run".into())]);
        assert_eq!((local.get_ports(), local.get_ssl_mode()), (&[7][..], SslMode::Disable));
    }
}
