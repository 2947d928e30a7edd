//! A way to the database that a test can open and close.

use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use url::Url;

/// An address on this host that leads to the database while it is open; while it is closed, nobody listens there.
pub(crate) struct Gate {
    address: SocketAddr,
    server: String,
    opened: Option<JoinHandle<()>>,
}

impl Gate {
    /// A closed gate to the server of `url`.
    pub(crate) async fn closed(url: &Url) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self {
            address: listener.local_addr().unwrap(),
            server: format!(
                "{}:{}",
                url.host_str().expect("a host in TEST_DATABASE_URL"),
                url.port().unwrap_or(5432)
            ),
            opened: None,
        }
    }

    /// `url` by way of the gate.
    pub(crate) fn url(&self, url: &Url) -> Url {
        let mut url = url.clone();
        url.set_host(Some(&self.address.ip().to_string())).unwrap();
        url.set_port(Some(self.address.port())).unwrap();
        url
    }

    pub(crate) async fn open(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        let server = self.server.clone();
        self.opened = Some(tokio::spawn(async move {
            let mut streams = tokio::task::JoinSet::new();
            while let Ok((mut from, _)) = listener.accept().await {
                let mut to = TcpStream::connect(&server).await.unwrap();
                streams.spawn(async move {
                    tokio::io::copy_bidirectional(&mut from, &mut to).await.ok();
                });
            }
        }));
    }

    /// Breaks every connection off and lets no new one in.
    pub(crate) async fn close(&mut self) {
        let opened = self.opened.take().expect("an open gate");
        opened.abort();
        opened.await.ok();
    }
}
