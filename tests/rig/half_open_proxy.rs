//! A proxy before PostgreSQL that can leave connections half open, as a firewall does when it forgets them. The server has ended its side. The client
//! hears nothing of it, and its writes meet no error. What the server had sent before still arrives.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

/// A listening proxy. Its connections end with the runtime.
#[derive(Debug)]
pub struct HalfOpenProxy {
    /// How often the connections were left half open.
    cuts: watch::Sender<u64>,
    from_server: Arc<AtomicU64>,
    port: u16,
}

impl HalfOpenProxy {
    /// Starts a proxy on a free port of 127.0.0.1 for the server on port `server`.
    ///
    /// # Errors
    /// There is no free port.
    pub async fn start(server: u16) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("the proxy's port")?;
        let port = listener.local_addr()?.port();
        let cuts = watch::Sender::new(0);
        let from_server = Arc::new(AtomicU64::new(0));
        let (accepting, counted) = (cuts.clone(), Arc::clone(&from_server));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, server, accepting.subscribe(), Arc::clone(&counted)));
            }
        });
        Ok(Self {
            cuts,
            from_server,
            port,
        })
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends the server's side of every connection that there is now. Later connections are not affected.
    pub fn leave_half_open(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// How many bytes the server has sent.
    #[must_use]
    pub fn bytes_from_server(&self) -> u64 {
        self.from_server.load(Ordering::Acquire)
    }
}

async fn serve(
    client: TcpStream,
    server: u16,
    mut cut: watch::Receiver<u64>,
    from_server: Arc<AtomicU64>,
) -> anyhow::Result<()> {
    let server = TcpStream::connect(("127.0.0.1", server)).await?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut server_reads, mut to_server) = server.into_split();
    // The channel has no limit, so that everything that the server has sent before a cut has left the server.
    let (sent, mut to_be_passed) = mpsc::unbounded_channel::<Vec<u8>>();
    let (ended, mut is_ended) = watch::channel(false);
    tokio::spawn(async move {
        while let Some(bytes) = to_be_passed.recv().await {
            to_client.write_all(&bytes).await?;
        }
        // This ends the client's side if the server itself ended the connection. A half-open connection stays.
        if *is_ended.wait_for(|_| true).await? {
            to_client.shutdown().await?;
        } else {
            std::future::pending::<()>().await;
        }
        anyhow::Ok(())
    });
    let mut bytes = vec![0; 64 * 1024];
    let mut more = vec![0; 64 * 1024];
    loop {
        tokio::select! {
            read = server_reads.read(&mut bytes) => match read {
                Ok(length @ 1..) => {
                    from_server.fetch_add(length as u64, Ordering::AcqRel);
                    sent.send(bytes[..length].to_vec())?;
                }
                _ => {
                    ended.send_replace(true);
                    return Ok(());
                }
            },
            read = from_client.read(&mut more) => match read {
                Ok(length @ 1..) => to_server.write_all(&more[..length]).await?,
                _ => return Ok(()),
            },
            _ = cut.changed() => break,
        }
    }
    drop((server_reads, to_server));
    // The connection is half open: what the client writes is read and thrown away.
    while matches!(from_client.read(&mut more).await, Ok(1..)) {}
    Ok(())
}
