//! Stands between client and server.

use std::sync::{Arc, Mutex};

use pg_replication::{Connection, Mode, Target};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::Server;

/// How the man in the middle speaks to the server.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Upstream {
    Plain,
    Tls,
}

/// Stands between client and server with a certificate of his own, passes everything on and remembers what the client says.
pub struct Middle {
    pub port: u16,
    role: &'static str,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Middle {
    pub async fn start(server: &'static Server, certificate: &str, upstream: Upstream) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let chain = CertificateDer::from_pem_file(server.path(&format!("{certificate}.crt"))).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(server.path(&format!("{certificate}.key"))).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![chain], key))
            .expect("a TLS configuration");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let heard_bytes = Arc::clone(&heard);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // Tests let clients go away, so an error is no surprise here.
                let _ended = pass_on(client, &acceptor, server, upstream, &heard_bytes).await;
            }
        });
        let role = if upstream == Upstream::Tls {
            "over_tls"
        } else {
            "with_password"
        };
        Self { port, role, heard }
    }

    /// The target by which a client reaches the server through the man in the middle.
    pub fn target(&self, parameters: &str) -> Target {
        let url = format!(
            "postgres://{}:right@localhost:{}/postgres?{parameters}",
            self.role, self.port
        );
        Target::parse(&url).expect("a target")
    }

    pub async fn open(&self, parameters: &str) -> anyhow::Result<Connection> {
        Connection::open(&self.target(parameters), Mode::Replication).await
    }

    pub fn heard(&self, text: &str) -> bool {
        let heard = self.heard.lock().expect("no panic");
        heard.windows(text.len()).any(|window| window == text.as_bytes())
    }
}

async fn pass_on(
    mut client: TcpStream,
    acceptor: &TlsAcceptor,
    server: &Server,
    upstream: Upstream,
    heard_bytes: &Mutex<Vec<u8>>,
) -> anyhow::Result<()> {
    let mut request = [0; 8];
    client.read_exact(&mut request).await?;
    client.write_all(b"S").await?;
    let client = acceptor.accept(client).await?;
    let mut plain = TcpStream::connect(("127.0.0.1", server.postgres.port())).await?;
    if upstream == Upstream::Plain {
        return exchange(client, plain, heard_bytes).await;
    }
    plain.write_all(&request).await?;
    anyhow::ensure!(plain.read_u8().await? == b'S', "the server has TLS");
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(server.path("ca.crt"))?)?;
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let tls = connector.connect("localhost".try_into()?, plain).await?;
    exchange(client, tls, heard_bytes).await
}

async fn exchange(
    client: impl AsyncRead + AsyncWrite,
    server: impl AsyncRead + AsyncWrite,
    heard_bytes: &Mutex<Vec<u8>>,
) -> anyhow::Result<()> {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_server, mut to_server) = tokio::io::split(server);
    let forth = async {
        let mut bytes = [0; 8192];
        loop {
            let length = from_client.read(&mut bytes).await?;
            if length == 0 {
                return anyhow::Ok(());
            }
            heard_bytes
                .lock()
                .expect("no panic")
                .extend_from_slice(&bytes[..length]);
            to_server.write_all(&bytes[..length]).await?;
            to_server.flush().await?;
        }
    };
    let back = async { Ok(tokio::io::copy(&mut from_server, &mut to_client).await.map(drop)?) };
    tokio::select! {
        ended = forth => ended,
        ended = back => ended,
    }
}

/// Starts a server that says that it has no TLS. Returns its port.
pub async fn without_tls() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut request = [0; 8];
            // Tests let clients go away.
            if client.read_exact(&mut request).await.is_ok() {
                let _gone = client.write_all(b"N").await;
            }
        }
    });
    port
}

/// Starts a host that accepts connections and never says anything. Returns its port.
pub async fn silent() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((client, _)) = listener.accept().await {
            held.push(client);
        }
    });
    port
}
