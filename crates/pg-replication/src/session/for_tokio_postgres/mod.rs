//! Opens sessions of tokio-postgres to a [`Target`]. TLS, channel binding and error texts are the same as those of our own sessions.

mod tls_connector;

use std::error::Error as StdError;
use std::fmt;
use std::future::{Ready, ready};

use anyhow::Context as _;
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio_postgres::config::{ChannelBinding as WantedBinding, SslMode, TargetSessionAttrs};
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::TlsConnect;
use tokio_postgres::{Client, Config, Socket};

use self::tls_connector::MakeConnector;
pub use self::tls_connector::SecuredStream;
use super::address::Endpoint;
use super::connection::is_refused_login;
use super::hosts::SessionKind;
use super::target::{Binding, Target, TlsMode};
use super::tls;

/// Why a session of tokio-postgres could not begin, if this crate found the reason and not tokio-postgres. It is the source of the error that
/// tokio-postgres returns.
#[derive(Debug)]
pub struct SessionError {
    why: anyhow::Error,
    /// Whether the TLS handshake failed: one side refused the other's certificate, or the two had no version or cipher of TLS in common.
    is_failed_handshake: bool,
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
            is_failed_handshake: false,
        }
    }
}

impl StdError for SessionError {}

impl SessionError {
    /// The text that our own sessions have for this error of [`Target::open_tokio_postgres`]. `None` if they have no such error.
    #[must_use]
    pub fn words_for(err: &tokio_postgres::Error) -> Option<String> {
        if let Some(ours) = find_session_error(err) {
            return Some(ours.to_string());
        }
        let source = err.source()?;
        // tokio-postgres has no type for this error, so it is recognised by its text.
        (source.to_string() == "server does not support TLS").then(|| tls::NO_TLS.to_owned())
    }
}

fn find_session_error(err: &tokio_postgres::Error) -> Option<&SessionError> {
    err.source()?.downcast_ref()
}

/// The connection of a session. The caller must await it in a task of its own. Otherwise the session does nothing.
pub type SessionTask = tokio_postgres::Connection<Socket, SecuredStream<Socket>>;

impl Target {
    /// Opens a session of tokio-postgres with the first of the hosts that can be used. The connect timeout applies to each endpoint of a host, up to
    /// the end of the login. A host that refuses the login ends the search. The files of the password, the certificates and the keys are read now,
    /// for this session. `adjust` may change the configuration, for settings that a target does not have.
    ///
    /// [`Target::pins_settings`] and [`Target::instance`] have no effect here. They are for our own sessions only.
    ///
    /// # Errors
    /// The first error that a server reported, or else the last error. If a file, a name or TLS is wrong, or nobody answered in time, its source is a
    /// [`SessionError`]. If the target asks for a primary and the host is a standby, the error says that the host takes no writes.
    pub async fn open_tokio_postgres(
        &self,
        adjust: impl Fn(&mut Config),
    ) -> Result<(Client, SessionTask), tokio_postgres::Error> {
        let mut first_server_error = None;
        let mut last_error = None;
        for address in &self.addresses {
            let endpoints = match self.in_time(address.endpoints()).await {
                Ok(endpoints) => endpoints,
                Err(err) => {
                    last_error = Some(wrap_in_client_error(err.into()).await);
                    continue;
                }
            };
            for endpoint in endpoints {
                let opened = self.in_time(async { Ok(Box::pin(self.open_at(&endpoint, &adjust)).await) });
                let err = match opened.await {
                    Ok(Ok(session)) => return Ok(session),
                    Ok(Err(err)) => err,
                    Err(too_late) => wrap_in_client_error(too_late.into()).await,
                };
                match err.code().map(SqlState::code) {
                    Some(code) if is_refused_login(code) => return Err(err),
                    Some(_) => _ = first_server_error.get_or_insert(err),
                    None => last_error = Some(err),
                }
            }
        }
        match first_server_error.or(last_error) {
            Some(err) => Err(err),
            None => Err(wrap_in_client_error(anyhow::anyhow!("the URL names no host").into()).await),
        }
    }

    async fn open_at(
        &self,
        endpoint: &Endpoint,
        adjust: &impl Fn(&mut Config),
    ) -> Result<(Client, SessionTask), tokio_postgres::Error> {
        // tokio-postgres knows no kind `primary`: it would ask for a session that may write. But a role that may only read cannot write on a primary
        // either. So this asks the server whether it is a standby.
        if self.session == SessionKind::Primary {
            let of_any_kind = Self {
                session: SessionKind::Any,
                ..self.clone()
            };
            if let Ok((client, mut task)) = of_any_kind.connect_to(endpoint, adjust).await
                && is_primary(&client, &mut task).await
            {
                return Ok((client, task));
            }
            // It is no primary, or there is no session. A second try gives the error of tokio-postgres for that.
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
                Err(err) => return Err(wrap_in_client_error(err.into()).await),
            }
        }
        adjust(&mut config);
        let tls = || MakeConnector { target: self.clone() };
        match config.connect(tls()).await {
            Err(err)
                if self.tls == TlsMode::Prefer
                    && find_session_error(&err).is_some_and(|ours| ours.is_failed_handshake) =>
            {
                tls::warn_about_missing_tls(endpoint, &err);
                config.ssl_mode(SslMode::Disable).connect(tls()).await
            }
            opened => opened,
        }
    }

    /// The target's settings for this endpoint, without the password.
    fn tokio_postgres_config(&self, endpoint: &Endpoint) -> Config {
        let mut config = Config::new();
        let is_local = match endpoint {
            Endpoint::Tcp { host, ip_and_port } => {
                config.host(host).hostaddr(ip_and_port.ip()).port(ip_and_port.port());
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

/// Whether the session is with a server that is no standby. No task awaits `task` yet, so it is awaited here until the answer has come.
async fn is_primary(client: &Client, task: &mut SessionTask) -> bool {
    tokio::select! {
        answer = client.query_one("select pg_is_in_recovery()", &[]) => answer.is_ok_and(|row| !row.get::<_, bool>(0)),
        _ended = task => false,
    }
}

/// Puts our error into an error of tokio-postgres. That type cannot be made from outside. But tokio-postgres makes one when TLS fails, and takes the
/// TLS connector's error as its source. So this lets TLS fail on a stream in memory.
async fn wrap_in_client_error(failure: SessionError) -> tokio_postgres::Error {
    /// Fails with this error when TLS should begin.
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
