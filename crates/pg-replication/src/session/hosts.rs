//! Several hosts in one connection URL, and which of them can be used.
//!
//! `postgresql://user@h1:5432,h2/db?target_session_attrs=primary` names the same database on several servers, as in libpq. They are tried in this
//! order until one answers and is of the kind that was asked for. See
//! <https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-MULTIPLE-HOSTS>.

use std::path::PathBuf;

use percent_encoding::percent_decode_str;

use super::address::Address;

const DEFAULT_PORT: u16 = 5432;

/// The kind of server that a session needs: the values of libpq's `target_session_attrs` without those for read-only servers, which nobody needs
/// here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionKind {
    /// Any server that answers. This is the default for a single host.
    Any,
    /// A server that is not in recovery and whose sessions can write by default.
    ReadWrite,
    /// A server that is not in recovery. This is the default for several hosts, since the outbox and its slot are on the primary. libpq's own default
    /// is `any`, which would also accept a standby.
    Primary,
}

/// What a server said of itself while the session began (`ParameterStatus`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ServerState {
    pub(super) is_in_recovery: bool,
    pub(super) is_read_only: bool,
}

impl SessionKind {
    /// Parses a value of `target_session_attrs`.
    ///
    /// # Errors
    /// The message names the values that are possible.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "any" => Ok(Self::Any),
            "read-write" => Ok(Self::ReadWrite),
            "primary" => Ok(Self::Primary),
            other => Err(format!(
                "`target_session_attrs` is `{other}`, not one of any, read-write, primary"
            )),
        }
    }

    /// Checks that a server in this state is of this kind.
    ///
    /// # Errors
    /// Why it is not.
    pub(super) fn accept(self, server: ServerState) -> Result<(), &'static str> {
        match self {
            Self::ReadWrite | Self::Primary if server.is_in_recovery => Err("it is a standby (in recovery)"),
            Self::ReadWrite if server.is_read_only => Err("its sessions are read-only"),
            _ => Ok(()),
        }
    }
}

/// Hosts and ports as the URL has them. A port that is not given is the empty text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Hosts {
    pub(super) names: Vec<String>,
    pub(super) ports: Vec<String>,
}

impl Hosts {
    /// Takes the hosts out of a URL, since the syntax of URLs allows only one host. Also returns the URL with the word `host` in their place.
    ///
    /// # Errors
    /// A bracket that is not closed, or bytes that are not UTF-8.
    pub(super) fn take_from(url: &str) -> Result<(String, Self), String> {
        let Some((scheme, rest)) = url.split_once("://") else {
            return Ok((url.to_owned(), Self::default()));
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at(end);
        let (user, list) = authority
            .rsplit_once('@')
            .map_or(("", authority), |(user, list)| (user, list));
        let mut hosts = Self::default();
        for entry in list.split(',') {
            let (host, port) = match entry.strip_prefix('[') {
                Some(bracketed) => {
                    let (host, port) = bracketed.split_once(']').ok_or("`[` of an IPv6 host is not closed")?;
                    (host, port.strip_prefix(':').unwrap_or(port))
                }
                None => entry.split_once(':').unwrap_or((entry, "")),
            };
            let host = percent_decode_str(host)
                .decode_utf8()
                .map_err(|_| "a host is not UTF-8 once percent-decoded")?;
            hosts.names.push(host.into_owned());
            hosts.ports.push(port.to_owned());
        }
        let at_sign = if authority.contains('@') { "@" } else { "" };
        Ok((format!("{scheme}://{user}{at_sign}host{tail}"), hosts))
    }

    /// The addresses, in the order of the hosts. If only one port is given, it is the port of all hosts.
    ///
    /// # Errors
    /// There is no host, a port is not a number, or the number of ports is neither one nor that of the hosts.
    pub(super) fn addresses(&self) -> Result<Vec<Address>, String> {
        if self.names.iter().all(String::is_empty) {
            return Err("the host is missing".to_owned());
        }
        if self.ports.len() > 1 && self.ports.len() != self.names.len() {
            return Err(format!("{} ports for {} hosts", self.ports.len(), self.names.len()));
        }
        let port_of = |index: usize| match self.ports.get(index).or(self.ports.first()).map_or("", String::as_str) {
            "" => Ok(DEFAULT_PORT),
            text => text
                .parse::<u16>()
                .map_err(|_| "`port` is not a number from 0 to 65535".to_owned()),
        };
        let address = |(index, host): (usize, &String)| {
            let port = port_of(index)?;
            if host.is_empty() {
                return Err("a host in the list is empty".to_owned());
            }
            Ok(if host.starts_with('/') {
                Address::Unix {
                    socket: PathBuf::from(host).join(format!(".s.PGSQL.{port}")),
                }
            } else {
                Address::Tcp {
                    host: host.clone(),
                    port,
                }
            })
        };
        self.names.iter().enumerate().map(address).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{ServerState, SessionKind};
    use crate::Target;

    fn addresses(url: &str) -> Vec<String> {
        let target = Target::parse(url).unwrap_or_else(|err| panic!("{url}: {err}"));
        target.addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn several_hosts_are_read_in_their_order() {
        for (url, expected) in [
            ("postgres://u:p@h/d", vec!["h:5432"]),
            ("postgres://u:p@h1:1,h2,h3:3/d", vec!["h1:1", "h2:5432", "h3:3"]),
            (
                "postgres://u:p@[::1]:1,[fe80::2]/d?sslmode=disable",
                vec!["::1:1", "fe80::2:5432"],
            ),
            ("postgres://u@/d?host=h1,h2&port=1,2", vec!["h1:1", "h2:2"]),
            ("postgres://u@/d?host=h1,h2&port=7", vec!["h1:7", "h2:7"]),
            ("postgres://u@h0:9/d?host=h1,h2&port=1,", vec!["h1:1", "h2:5432"]),
            (
                "postgres://u@%2Fvar%2Frun,h2:2/d",
                vec!["/var/run/.s.PGSQL.5432", "h2:2"],
            ),
            ("postgres://u:a%40b@h1,h2?dbname=d", vec!["h1:5432", "h2:5432"]),
        ] {
            assert_eq!(addresses(url), expected, "{url}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_list_is_named() {
        for (url, named) in [
            ("postgres://u@h1:1,h2/d?port=1,2,3", "3 ports for 2 hosts"),
            ("postgres://u@h1,/d", "a host in the list is empty"),
            ("postgres://u@/d", "the host is missing"),
            ("postgres://u@h1,h2:x/d", "`port` is not a number"),
            ("postgres://u@[::1/d", "not closed"),
            (
                "postgres://u@h/d?target_session_attrs=standby",
                "not one of any, read-write, primary",
            ),
        ] {
            let message = Target::parse(url).unwrap_err().to_string();
            assert!(message.contains(named), "{url}: {message}");
        }
    }

    #[test]
    fn a_standby_is_not_taken_for_the_primary() {
        let kind = |url| Target::parse(url).unwrap().session;
        assert_eq!(kind("postgres://u@h1,h2/d"), SessionKind::Primary);
        assert_eq!(kind("postgres://u@h1/d"), SessionKind::Any);
        assert_eq!(kind("postgres://u@h1,h2/d?target_session_attrs=any"), SessionKind::Any);
        let standby = ServerState {
            is_in_recovery: true,
            is_read_only: false,
        };
        let read_only = ServerState {
            is_in_recovery: false,
            is_read_only: true,
        };
        assert!(SessionKind::Primary.accept(standby).is_err());
        assert!(SessionKind::ReadWrite.accept(standby).is_err());
        assert!(SessionKind::ReadWrite.accept(read_only).is_err());
        assert_eq!(SessionKind::Primary.accept(read_only), Ok(()));
        assert_eq!(SessionKind::Any.accept(standby), Ok(()));
    }
}
