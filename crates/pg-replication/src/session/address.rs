//! One place where a server listens.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;

/// How the server is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp { host: String, port: u16 },
    Unix { socket: PathBuf },
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix { socket } => write!(f, "{}", socket.display()),
        }
    }
}

/// One place to connect to. A host's name may stand for several of them, one for each IP address.
#[derive(Clone, Debug)]
pub(super) enum Endpoint {
    Tcp { host: String, ip_and_port: SocketAddr },
    Unix { socket: PathBuf },
}

impl Address {
    /// All endpoints that the address stands for, in the order in which the system's name lookup returns them. There is at least one.
    ///
    /// # Errors
    /// The host's name is not known.
    pub(super) async fn endpoints(&self) -> anyhow::Result<Vec<Endpoint>> {
        let (host, port) = match self {
            Self::Unix { socket } => return Ok(vec![Endpoint::Unix { socket: socket.clone() }]),
            Self::Tcp { host, port } => (host, *port),
        };
        let lookup = tokio::net::lookup_host((host.as_str(), port));
        let found = lookup
            .await
            .with_context(|| format!("cannot connect to {host}:{port}"))?;
        let endpoints: Vec<_> = found
            .map(|ip_and_port| Endpoint::Tcp {
                host: host.clone(),
                ip_and_port,
            })
            .collect();
        anyhow::ensure!(
            !endpoints.is_empty(),
            "cannot connect to {host}:{port}: the name has no address"
        );
        Ok(endpoints)
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { host, ip_and_port } => write!(f, "{host} ({ip_and_port})"),
            Self::Unix { socket } => write!(f, "{}", socket.display()),
        }
    }
}
