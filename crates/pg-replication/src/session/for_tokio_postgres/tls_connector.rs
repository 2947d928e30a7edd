//! Lets tokio-postgres speak TLS as our own sessions do.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::Socket;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};

use super::SessionError;
use crate::session::binding::tls_server_end_point;
use crate::session::target::Target;
use crate::session::tls::Handshake;

/// Makes the TLS connector for a host.
pub(super) struct MakeConnector {
    pub(super) target: Target,
}

impl MakeTlsConnect<Socket> for MakeConnector {
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

/// Does the TLS handshake with a host that has said that it has TLS.
pub(super) struct Connector {
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
            let secured = handshake.run(stream).await.map_err(|why| SessionError {
                why,
                is_failed_handshake: true,
            })?;
            Ok(SecuredStream(secured))
        })
    }
}

/// A TLS stream. It gives the data by which a login is bound to it.
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
