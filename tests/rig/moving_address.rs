//! An address that leads to one server now and to another server later, as a name in DNS, a proxy or a load balancer can.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use tokio::net::{TcpListener, TcpStream};

/// Listens on a port of 127.0.0.1. It passes each new connection on to the server that the address leads to at that moment. Existing connections stay
/// with their server. Dropping it does not cut them: they end with the runtime.
#[derive(Debug)]
pub struct MovingAddress {
    port: u16,
    plan: Arc<Mutex<Plan>>,
}

#[derive(Debug)]
struct Plan {
    /// The next connections go to the servers on these ports, one each. After that, connections go to `port`.
    next: Vec<u16>,
    port: u16,
    passed: usize,
}

impl MovingAddress {
    /// An address that leads to the server on `port`.
    ///
    /// # Errors
    /// No port is free.
    pub async fn to(port: u16) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("a port")?;
        let own_port = listener.local_addr()?.port();
        let plan = Arc::new(Mutex::new(Plan {
            next: Vec::new(),
            port,
            passed: 0,
        }));
        let shared = Arc::clone(&plan);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let port = shared.lock().unwrap_or_else(PoisonError::into_inner).take();
                tokio::spawn(pass_on(client, port));
            }
        });
        Ok(Self { port: own_port, plan })
    }

    /// The port of the address.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on the address leads to the server on `port`.
    pub fn move_to(&self, port: u16) {
        self.change(|plan| {
            plan.next.clear();
            plan.port = port;
        });
    }

    /// The next connections lead to the servers on these ports, one each. Later connections lead to the server on `port`.
    pub fn move_after(&self, next: &[u16], port: u16) {
        self.change(|plan| {
            plan.next = next.to_vec();
            plan.port = port;
        });
    }

    /// How many connections were passed on so far.
    #[must_use]
    pub fn passed(&self) -> usize {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner).passed
    }

    fn change(&self, change: impl FnOnce(&mut Plan)) {
        change(&mut self.plan.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Plan {
    fn take(&mut self) -> u16 {
        self.passed += 1;
        if self.next.is_empty() {
            self.port
        } else {
            self.next.remove(0)
        }
    }
}

/// If the server is not there, this closes the client's connection, as a proxy does.
async fn pass_on(mut client: TcpStream, port: u16) -> anyhow::Result<()> {
    let mut server = TcpStream::connect(("127.0.0.1", port)).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}
