//! Sessions of tokio-postgres where a [`Target`] says, with the same TLS, channel binding and words for what is wrong as our own sessions.

use std::error::Error as StdError;
use std::fmt;
use std::future::{Future, Ready, ready};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::Context as _;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio_postgres::config::{ChannelBinding as WantedBinding, SslMode, TargetSessionAttrs};
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_postgres::{Client, Config, Socket};

use super::address::Endpoint;
use super::binding::tls_server_end_point;
use super::connection::is_refused_login;
use super::hosts::SessionKind;
use super::target::{Binding, Target, TlsMode};
use super::tls::{self, Handshake};

/// Why a session of tokio-postgres could not begin, where it is not tokio-postgres that found it out. It is the source of tokio-postgres' error.
#[derive(Debug)]
pub struct SessionError {
    why: anyhow::Error,
    /// The two had no TLS in common, or one did not like the other's certificate.
    is_of_handshake: bool,
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.why)
    }
}

impl From<anyhow::Error> for SessionError {
    fn from(why: anyhow::Error) -> Self {
        Self {
            why,
            is_of_handshake: false,
        }
    }
}

impl StdError for SessionError {}

impl SessionError {
    /// The words for an error of [`Target::open_tokio_postgres`] that our own sessions have, where they have any.
    #[must_use]
    pub fn words_for(err: &tokio_postgres::Error) -> Option<String> {
        if let Some(ours) = of_ours(err) {
            return Some(ours.to_string());
        }
        let source = err.source()?;
        // tokio-postgres has no type for this error, so it is recognised by its text.
        (source.to_string() == "server does not support TLS").then(|| tls::NO_TLS.to_owned())
    }
}

fn of_ours(err: &tokio_postgres::Error) -> Option<&SessionError> {
    err.source()?.downcast_ref()
}

/// The connection behind a session. The caller must await it in a task of its own, or the session does nothing.
pub type SessionTask = tokio_postgres::Connection<Socket, SecuredStream<Socket>>;

impl Target {
    /// A session of tokio-postgres with the first of the hosts that will do. Each endpoint of a host has the connect timeout, for all that belongs
    /// to a login. A host that refuses the login ends the search. The files of password, certificates and keys are read now, for this session.
    /// `adjust` sets what a target does not have.
    ///
    /// [`Target::pins_settings`] and [`Target::instance`] are for our own sessions alone.
    ///
    /// # Errors
    /// As tokio-postgres has them: the first that a server has said, otherwise the last. What is wrong with a file, a name or with TLS, and silence,
    /// is a [`SessionError`] in them. A host that is no primary, where one is wanted, has the words for one that takes no writes.
    pub async fn open_tokio_postgres(
        &self,
        adjust: impl Fn(&mut Config),
    ) -> Result<(Client, SessionTask), tokio_postgres::Error> {
        let mut first_said = None;
        let mut last = None;
        for address in &self.addresses {
            let endpoints = match self.in_time(address.endpoints()).await {
                Ok(endpoints) => endpoints,
                Err(err) => {
                    last = Some(error_of(err.into()).await);
                    continue;
                }
            };
            for endpoint in endpoints {
                let opened = self.in_time(async { Ok(Box::pin(self.open_at(&endpoint, &adjust)).await) });
                let err = match opened.await {
                    Ok(Ok(session)) => return Ok(session),
                    Ok(Err(err)) => err,
                    Err(silence) => error_of(silence.into()).await,
                };
                match err.code().map(SqlState::code) {
                    Some(code) if is_refused_login(code) => return Err(err),
                    Some(_) => _ = first_said.get_or_insert(err),
                    None => last = Some(err),
                }
            }
        }
        match first_said.or(last) {
            Some(err) => Err(err),
            None => Err(error_of(anyhow::anyhow!("the URL names no host").into()).await),
        }
    }

    async fn open_at(
        &self,
        endpoint: &Endpoint,
        adjust: &impl Fn(&mut Config),
    ) -> Result<(Client, SessionTask), tokio_postgres::Error> {
        // tokio-postgres would look for a session that may write. But a role that may only read cannot write on a primary either.
        if self.session == SessionKind::Primary {
            let any = Self {
                session: SessionKind::Any,
                ..self.clone()
            };
            if let Ok((client, mut task)) = any.connect_to(endpoint, adjust).await
                && is_primary(&client, &mut task).await
            {
                return Ok((client, task));
            }
        }
        self.connect_to(endpoint, adjust).await
    }

    async fn connect_to(
        &self,
        endpoint: &Endpoint,
        adjust: &impl Fn(&mut Config),
    ) -> Result<(Client, SessionTask), tokio_postgres::Error> {
        let mut config = self.tokio_postgres_config(endpoint);
        if let Some(password) = &self.password {
            let revealed = password.reveal();
            match revealed.with_context(|| format!("{} cannot be read", password.describe())) {
                Ok(password) => _ = config.password(password),
                Err(err) => return Err(error_of(err.into()).await),
            }
        }
        adjust(&mut config);
        let tls = || MakeTls { target: self.clone() };
        match config.connect(tls()).await {
            Err(err) if self.tls == TlsMode::Prefer && of_ours(&err).is_some_and(|ours| ours.is_of_handshake) => {
                tls::warn_of_plain(endpoint, &err);
                config.ssl_mode(SslMode::Disable).connect(tls()).await
            }
            opened => opened,
        }
    }

    /// Without the password.
    fn tokio_postgres_config(&self, endpoint: &Endpoint) -> Config {
        let mut config = Config::new();
        let is_local = match endpoint {
            Endpoint::Tcp { host, at } => {
                config.host(host).hostaddr(at.ip()).port(at.port());
                false
            }
            Endpoint::Unix { socket } => {
                let port = socket.extension().and_then(|port| port.to_str()?.parse().ok());
                config
                    .host_path(socket.parent().unwrap_or(socket))
                    .port(port.unwrap_or(5432));
                true
            }
        };
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
            });
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

/// tokio-postgres' error for what we have found out. It has none to make, and takes words from whoever speaks TLS.
async fn error_of(failure: SessionError) -> tokio_postgres::Error {
    /// Fails where TLS would begin.
    struct Failing(SessionError);

    impl TlsConnect<DuplexStream> for Failing {
        type Stream = SecuredStream<DuplexStream>;
        type Error = SessionError;
        type Future = Ready<Result<Self::Stream, SessionError>>;

        fn connect(self, _stream: DuplexStream) -> Self::Future {
            ready(Err(self.0))
        }
    }

    let (near, mut far) = tokio::io::duplex(64);
    let mut config = Config::new();
    config.user("nobody").ssl_mode(SslMode::Require);
    let answer = async { far.write_all(b"S").await };
    let (failed, _answered) = tokio::join!(config.connect_raw(near, Failing(failure)), answer);
    match failed {
        Err(err) => err,
        Ok(_) => unreachable!("nothing connects without a stream"),
    }
}

/// Makes a connector for a host.
struct MakeTls {
    target: Target,
}

impl MakeTlsConnect<Socket> for MakeTls {
    type Stream = SecuredStream<Socket>;
    type TlsConnect = Connector;
    type Error = SessionError;

    fn make_tls_connect(&mut self, host: &str) -> Result<Connector, SessionError> {
        Ok(Connector {
            target: self.target.clone(),
            host: host.to_owned(),
        })
    }
}

/// Speaks TLS with a host once that has said that it has it.
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
            let handshake = Handshake::prepare(&self.target, &self.host)?;
            let secured = handshake.with(stream).await.map_err(|why| SessionError {
                why,
                is_of_handshake: true,
            })?;
            Ok(SecuredStream(secured))
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

    async fn config(url: &str) -> tokio_postgres::Config {
        let target = Target::parse(url).unwrap();
        let endpoints = target.addresses[0].endpoints().await.unwrap();
        target.tokio_postgres_config(&endpoints[0])
    }

    #[tokio::test]
    async fn a_target_says_the_same_to_tokio_postgres() {
        let several =
            config("postgres://u@127.0.0.1:1,h2/d?sslmode=verify-full&application_name=a&options=-c%20x=y").await;
        assert_eq!(several.get_hosts(), [Host::Tcp("127.0.0.1".to_owned())]);
        assert_eq!(several.get_hostaddrs(), [std::net::Ipv4Addr::LOCALHOST]);
        assert_eq!(several.get_ports(), [1]);
        assert_eq!(several.get_ssl_mode(), SslMode::Require);
        assert_eq!(several.get_target_session_attrs(), TargetSessionAttrs::ReadWrite);
        assert_eq!((several.get_user(), several.get_dbname()), (Some("u"), Some("d")));
        assert_eq!(
            (several.get_application_name(), several.get_options()),
            (Some("a"), Some("-c x=y"))
        );
    }

    #[tokio::test]
    async fn a_unix_socket_is_spoken_with_without_tls() {
        let local = config("postgres://u@%2Fvar%2Frun:7/d?sslmode=require").await;
        assert_eq!(local.get_hosts(), [Host::Unix("/var/run".into())]);
        assert_eq!((local.get_ports(), local.get_ssl_mode()), (&[7][..], SslMode::Disable));
    }
}
