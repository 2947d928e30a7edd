//! Where Postgres is and how to log in there, read from a connection URL.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use tokio::time::timeout;
use url::Url;

use super::address::Address;
use super::hosts::{Hosts, SessionKind};
use super::instance::ServerInstance;
use super::password::Password;

/// A parsed connection URL: `postgresql://user:password@host:port,host:port/database?parameter=value`.
///
/// These parameters have libpq's names and meaning: `host` (a directory is a Unix socket), `port`, `user`, `password`, `dbname`, `sslmode`,
/// `sslrootcert`, `sslcert`, `sslkey`, `channel_binding`, `connect_timeout` (seconds, for each endpoint of a host), `target_session_attrs`,
/// `application_name`, `options`. `passwordfile` is our own: a file that holds the password alone.
///
/// See <https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS>.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where the server may be, in the order in which the addresses are tried. There is at least one.
    pub addresses: Vec<Address>,
    /// The kind of server that is accepted.
    pub session: SessionKind,
    pub user: String,
    pub password: Option<Password>,
    pub database: String,
    pub tls: TlsMode,
    /// PEM file of the trusted root certificates. `None`: those of the system.
    pub root_certificates: Option<PathBuf>,
    /// PEM files of the client's certificate chain and key.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    pub channel_binding: Binding,
    pub connect_timeout: Duration,
    pub application_name: Option<String>,
    /// Command-line options for the session (`-c name=value`).
    pub options: Option<String>,
    /// Whether a session sets for itself how values are written, what a snapshot sees and how long a statement may take. `false`: what is set for the
    /// role and the database applies.
    pub pins_settings: bool,
    /// The server that a session must be with. `None`: any server to which the addresses lead.
    pub instance: Option<ServerInstance>,
}

/// How much TLS is asked for; the names and meanings of libpq's `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    Disable,
    /// TLS if the server has it. Its certificate is not checked. This is libpq's default.
    Prefer,
    /// TLS always. The server's certificate is checked only if `sslrootcert` is given.
    Require,
    /// The certificate must come from a trusted root.
    VerifyCa,
    /// The certificate must come from a trusted root, and be for the host of the address.
    VerifyFull,
}

/// Whether a password login is bound to the server's certificate (SCRAM-SHA-256-PLUS); the names and meanings of libpq's `channel_binding`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    Disable,
    /// The login is bound if the session has TLS and the server offers it. This is libpq's default.
    Prefer,
    /// A login that is not bound is refused.
    Require,
}

/// A connection URL that cannot be used. The text never contains the URL itself, which may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}; expected postgresql://user:password@host:port/database, or host:port,host:port for several hosts")]
pub struct InvalidUrl(String);

const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

impl Target {
    /// Parses a connection URL.
    ///
    /// # Errors
    /// Names what is wrong with it: scheme, a missing user or database, an unknown parameter or value.
    pub fn parse(text: &str) -> Result<Self, InvalidUrl> {
        let invalid = |what: String| InvalidUrl(what);
        let (text, mut hosts) = Hosts::take_from(text).map_err(invalid)?;
        let url = Url::parse(&text).map_err(|err| invalid(err.to_string()))?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(invalid(format!("scheme `{}` is not postgresql", url.scheme())));
        }
        let decode = |text: &str| {
            percent_decode_str(text)
                .decode_utf8()
                .map(std::borrow::Cow::into_owned)
                .map_err(|_| invalid("a part is not UTF-8 once percent-decoded".to_owned()))
        };
        let mut user = decode(url.username())?;
        let given = |text: String| Password::given(text);
        let mut password = url.password().map(decode).transpose()?.map(given);
        let mut database = decode(url.path().trim_start_matches('/'))?;
        let mut target = Self {
            addresses: Vec::new(),
            session: SessionKind::Any,
            user: String::new(),
            password: None,
            database: String::new(),
            tls: TlsMode::Prefer,
            root_certificates: None,
            client_certificate: None,
            channel_binding: Binding::Prefer,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            application_name: None,
            options: None,
            pins_settings: true,
            instance: None,
        };
        let (mut certificate, mut key) = (None, None);
        let mut session = None;
        let list = |value: String| value.split(',').map(str::to_owned).collect();
        for (name, value) in url.query_pairs() {
            let value = value.into_owned();
            match name.as_ref() {
                "host" => hosts.names = list(value),
                "port" => hosts.ports = list(value),
                "target_session_attrs" => session = Some(SessionKind::parse(&value).map_err(invalid)?),
                "user" => user = value,
                "password" => password = Some(given(value)),
                "passwordfile" => password = Some(password_file(&value)?),
                "dbname" => database = value,
                "sslmode" => target.tls = value.parse()?,
                "sslrootcert" => target.root_certificates = (value != "system").then(|| value.into()),
                "sslcert" => certificate = Some(PathBuf::from(value)),
                "sslkey" => key = Some(PathBuf::from(value)),
                "channel_binding" => target.channel_binding = value.parse()?,
                "connect_timeout" => {
                    let seconds = value
                        .parse()
                        .map_err(|_| invalid("`connect_timeout` is not a number of seconds".to_owned()))?;
                    target.connect_timeout = Duration::from_secs(seconds);
                }
                "application_name" => target.application_name = Some(value),
                "options" => target.options = Some(value),
                other => return Err(invalid(format!("unknown parameter `{other}`"))),
            }
        }
        if user.is_empty() {
            return Err(invalid("the user is missing".to_owned()));
        }
        if database.is_empty() {
            return Err(invalid("the database is missing".to_owned()));
        }
        target.client_certificate = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err(invalid("`sslcert` and `sslkey` go together".to_owned())),
        };
        target.addresses = hosts.addresses().map_err(invalid)?;
        target.session = session.unwrap_or(if target.addresses.len() > 1 {
            SessionKind::Primary
        } else {
            SessionKind::Any
        });
        target.user = user;
        target.password = password;
        target.database = database;
        Ok(target)
    }

    /// The same target, but with only this address and only this server. It is for a further session with the server that another session is with.
    #[must_use]
    pub fn at(&self, address: &Address, instance: &ServerInstance) -> Self {
        Self {
            addresses: vec![address.clone()],
            instance: Some(instance.clone()),
            ..self.clone()
        }
    }

    /// Does `work` within the connect timeout. A timeout of zero means that there is none, as in libpq.
    ///
    /// # Errors
    /// The time is over, or `work` fails.
    pub(super) async fn in_time<T>(&self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        if self.connect_timeout.is_zero() {
            return work.await;
        }
        let seconds = self.connect_timeout.as_secs();
        timeout(self.connect_timeout, work)
            .await
            .map_err(|_| anyhow::anyhow!("no answer within {seconds} s"))
            .flatten()
    }
}

/// Reads the file once, only to check that it can be read. It is read again at each login.
fn password_file(path: &str) -> Result<Password, InvalidUrl> {
    let password = Password::File(path.into());
    match password.reveal() {
        Ok(_) => Ok(password),
        Err(err) => Err(InvalidUrl(format!("`passwordfile` cannot be read: {path}: {err}"))),
    }
}

impl std::str::FromStr for TlsMode {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        Ok(match text {
            "disable" => Self::Disable,
            "prefer" | "allow" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            other => {
                return Err(InvalidUrl(format!(
                    "`sslmode` is `{other}`, not one of disable, prefer, require, verify-ca, verify-full"
                )));
            }
        })
    }
}

impl std::str::FromStr for Binding {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        Ok(match text {
            "disable" => Self::Disable,
            "prefer" => Self::Prefer,
            "require" => Self::Require,
            other => {
                return Err(InvalidUrl(format!(
                    "`channel_binding` is `{other}`, not one of disable, prefer, require"
                )));
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Address, Target, TlsMode};

    #[test]
    fn a_full_url_is_read() {
        let target =
            Target::parse("postgres://re%40lay:p%3Aw@db.example:5433/users_db?sslmode=verify-full&connect_timeout=3")
                .unwrap();
        assert_eq!(
            target.addresses,
            [Address::Tcp {
                host: "db.example".to_owned(),
                port: 5433
            }]
        );
        assert_eq!(target.user, "re@lay");
        assert!(matches!(target.password, Some(password) if password.reveal().unwrap() == "p:w"));
        assert_eq!(target.database, "users_db");
        assert_eq!(target.tls, TlsMode::VerifyFull);
        assert_eq!(target.connect_timeout.as_secs(), 3);
    }

    #[test]
    fn a_directory_is_a_unix_socket() {
        for url in [
            "postgresql://relay@%2Fvar%2Frun%2Fpostgresql/db",
            "postgresql://relay@localhost/db?host=/var/run/postgresql",
        ] {
            let target = Target::parse(url).unwrap();
            assert_eq!(
                target.addresses,
                [Address::Unix {
                    socket: "/var/run/postgresql/.s.PGSQL.5432".into()
                }]
            );
        }
    }

    #[test]
    fn what_is_wrong_is_named_and_the_password_is_not() {
        for (url, named) in [
            ("mysql://a:secret@h/d", "scheme `mysql`"),
            ("postgres://h/d", "user is missing"),
            ("postgres://a:secret@h", "database is missing"),
            ("postgres://a:secret@h/d?sslmode=maybe", "`sslmode` is `maybe`"),
            ("postgres://a:secret@h/d?sslmod=require", "unknown parameter `sslmod`"),
            ("postgres://a:secret@h/d?sslcert=x", "go together"),
            (
                "postgres://a:secret@h/d?channel_binding=no",
                "`channel_binding` is `no`",
            ),
            (
                "postgres://a@h/d?passwordfile=/nowhere/at/all",
                "`passwordfile` cannot be read",
            ),
            ("nonsense", "relative URL"),
        ] {
            let message = Target::parse(url).unwrap_err().to_string();
            assert!(message.contains(named), "{url}: {message}");
            assert!(!message.contains("secret"), "{message}");
        }
    }
}
