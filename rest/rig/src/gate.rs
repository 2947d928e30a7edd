//! A way to the database that a test can open and close.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use url::Url;

/// An address on this host that leads to the database while it is open; while it is closed, nobody listens there.
pub struct Gate {
    address: SocketAddr,
    server: String,
    opened: Option<JoinHandle<()>>,
    trouble: Arc<Mutex<Option<(String, Lost)>>>,
}

/// What a connection loses before it breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The server never gets it.
    Question,
    /// The server has it, and is at it still.
    Connection,
    /// The server is done with it. Where a statement is prepared first, with this text, it is what the statement does that has no answer.
    Answer,
    /// As `Answer`. But the connection does not just break: a pooler says that it has lost the server (SQLSTATE 08006).
    AnswerToPooler,
}

impl Gate {
    /// A closed gate to the server of `url`.
    pub async fn closed(url: &Url) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self {
            address: listener.local_addr().unwrap(),
            server: format!(
                "{}:{}",
                url.host_str().expect("a host in TEST_DATABASE_URL"),
                url.port().unwrap_or(5432)
            ),
            opened: None,
            trouble: Arc::default(),
        }
    }

    /// The next connection on which `text` is sent breaks.
    pub fn lose(&self, text: &str, lost: Lost) {
        *self.trouble.lock().unwrap() = Some((text.to_owned(), lost));
    }

    /// `url` by way of the gate.
    pub fn url(&self, url: &Url) -> Url {
        let mut url = url.clone();
        url.set_host(Some(&self.address.ip().to_string())).unwrap();
        url.set_port(Some(self.address.port())).unwrap();
        url
    }

    pub async fn open(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        let (server, trouble) = (self.server.clone(), Arc::clone(&self.trouble));
        self.opened = Some(tokio::spawn(async move {
            let mut streams = tokio::task::JoinSet::new();
            while let Ok((from, _)) = listener.accept().await {
                let to = TcpStream::connect(&server).await.unwrap();
                let trouble = Arc::clone(&trouble);
                streams.spawn(async move {
                    pass(from, to, &trouble).await.ok();
                });
            }
        }));
    }

    /// Breaks every connection off and lets no new one in.
    pub async fn close(&mut self) {
        let opened = self.opened.take().expect("an open gate");
        opened.abort();
        opened.await.ok();
    }
}

async fn pass(
    mut client: TcpStream,
    mut server: TcpStream,
    trouble: &Mutex<Option<(String, Lost)>>,
) -> std::io::Result<()> {
    let (mut question, mut answer) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let (mut loses_next, mut loses_answer) = (false, false);
    let mut says_so = false;
    loop {
        tokio::select! {
            read = client.read(&mut question) => match read? {
                0 => return Ok(()),
                length => {
                    let sent = &question[..length];
                    let lost = trouble.lock().unwrap().take_if(|(text, _)| {
                        sent.windows(text.len()).any(|part| part == text.as_bytes())
                    });
                    if let Some((_, Lost::Question)) = lost {
                        return Ok(());
                    }
                    loses_answer = std::mem::take(&mut loses_next);
                    server.write_all(sent).await?;
                    says_so |= matches!(lost, Some((_, Lost::AnswerToPooler)));
                    match lost {
                        Some((_, Lost::Connection)) => return Ok(()),
                        // Parse, with what comes before it is executed.
                        Some(_) if sent.starts_with(b"P") => loses_next = true,
                        Some(_) => loses_answer = true,
                        None => {}
                    }
                }
            },
            read = server.read(&mut answer) => match read? {
                0 => return Ok(()),
                _ if loses_answer && says_so => return client.write_all(&connection_failure()).await,
                _ if loses_answer => return Ok(()),
                length => client.write_all(&answer[..length]).await?,
            },
        }
    }
}

/// What a pooler says when it has lost the server: an error, and that it waits for the next statement.
fn connection_failure() -> Vec<u8> {
    let fields = b"SFATAL\0VFATAL\0C08006\0Mserver closed the connection unexpectedly\0\0";
    let length = u32::try_from(fields.len() + 4).expect("a short message");
    let mut message = vec![b'E'];
    message.extend(length.to_be_bytes());
    message.extend(fields);
    message.extend(b"Z\0\0\0\x05I");
    message
}
