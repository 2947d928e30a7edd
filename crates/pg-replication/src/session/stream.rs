//! The bytes to and from the server: TCP, TCP under TLS, or a Unix socket.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::Context as _;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use super::address::Endpoint;
use super::target::{Target, TlsMode};
use super::tls::{self, Handshake};

/// SSLRequest: length 8, code 80877103.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xD2, 0x16, 0x2F];

pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    pub(super) async fn open(target: &Target, endpoint: Endpoint) -> anyhow::Result<Self> {
        match endpoint {
            Endpoint::Unix { socket } => {
                let stream = UnixStream::connect(&socket)
                    .await
                    .with_context(|| format!("cannot connect to {}", socket.display()))?;
                Ok(Self::Unix(stream))
            }
            Endpoint::Tcp { ip_and_port, .. } if target.tls == TlsMode::Disable => {
                Ok(Self::Tcp(connect(ip_and_port).await?))
            }
            Endpoint::Tcp { host, ip_and_port } => Self::negotiate_tls(target, &host, ip_and_port).await,
        }
    }

    /// Asks the server for TLS. A server without TLS, and a handshake that fails, end the attempt unless `sslmode` is `prefer`.
    async fn negotiate_tls(target: &Target, host: &str, ip_and_port: SocketAddr) -> anyhow::Result<Self> {
        let mut stream = connect(ip_and_port).await?;
        stream.write_all(&SSL_REQUEST).await?;
        // Only one byte is read here. A man in the middle could send more bytes before TLS begins, and they must not count as the server's.
        match stream.read_u8().await.context("the server closed the connection")? {
            b'S' => {
                let handshake = Handshake::prepare(target, host)?;
                match handshake.run(stream).await {
                    Ok(stream) => Ok(Self::Tls(Box::new(stream))),
                    Err(err) if target.tls == TlsMode::Prefer => {
                        tls::warn_about_missing_tls(&ip_and_port, &err);
                        Ok(Self::Tcp(connect(ip_and_port).await?))
                    }
                    Err(err) => Err(err),
                }
            }
            b'N' if target.tls == TlsMode::Prefer => Ok(Self::Tcp(stream)),
            b'N' => anyhow::bail!(tls::NO_TLS),
            _ => anyhow::bail!("the server does not speak the Postgres protocol"),
        }
    }

    /// The server's certificate in DER, if the session has TLS.
    pub(super) fn server_certificate(&self) -> Option<&[u8]> {
        match self {
            Self::Tls(stream) => Some(stream.get_ref().1.peer_certificates()?.first()?.as_ref()),
            Self::Tcp(_) | Self::Unix(_) => None,
        }
    }

    /// Whether the kernel's buffer can hold what comes in while the reader naps. That of a Unix socket cannot: it is small and never grows.
    pub(super) fn buffers_while_napping(&self) -> bool {
        !matches!(self, Self::Unix(_))
    }
}

async fn connect(ip_and_port: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(ip_and_port)
        .await
        .with_context(|| format!("cannot connect to {ip_and_port}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
