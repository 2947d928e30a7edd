//! One HTTP/1.1 connection that stays open. The client is as small as possible, because it shares the processors with what is measured.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// No answer takes longer, unless the server is stuck.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// No answer here is longer.
const ANSWER_BYTES_MAX: usize = 16 << 20;

#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    port: u16,
    /// The last answer. The buffer is used again for the next one.
    buffer: Vec<u8>,
}

/// The status of an answer, and where its head and its body end in the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    bytes: usize,
    body_bytes: usize,
}

impl Connection {
    /// Connects to 127.0.0.1.
    ///
    /// # Errors
    /// Nobody listens on `port`.
    pub(crate) async fn open(port: u16) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))
            .await
            .with_context(|| format!("cannot connect to port {port}"))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            port,
            buffer: Vec::new(),
        })
    }

    /// Sends a GET. Returns the body of the answer, whose status must be 200.
    ///
    /// # Errors
    /// The connection broke, or the server answered another status.
    pub(crate) async fn get(&mut self, path: &str) -> anyhow::Result<String> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\n\r\n", self.port);
        let (status, body) = self.exchange(request.as_bytes()).await?;
        ensure!(status == 200, "GET {path} was answered {status}");
        Ok(String::from_utf8_lossy(body).into_owned())
    }

    /// Sends `json` by a POST. The status of the answer must be 201.
    ///
    /// # Errors
    /// The connection broke, or the server answered another status.
    pub(crate) async fn create(&mut self, path: &str, json: &str) -> anyhow::Result<()> {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{json}",
            self.port,
            json.len()
        );
        let (status, body) = self.exchange(request.as_bytes()).await?;
        ensure!(
            status == 201,
            "POST {path} was answered {status}: {}",
            String::from_utf8_lossy(body)
        );
        Ok(())
    }

    async fn exchange(&mut self, request: &[u8]) -> anyhow::Result<(u16, &[u8])> {
        let head = tokio::time::timeout(ANSWER_DEADLINE, async {
            self.stream.write_all(request).await?;
            self.buffer.clear();
            loop {
                if let Some(head) = parse_head(&self.buffer)?
                    && self.buffer.len() >= head.bytes + head.body_bytes
                {
                    return anyhow::Ok(head);
                }
                ensure!(self.buffer.len() < ANSWER_BYTES_MAX, "the answer is too long");
                if self.stream.read_buf(&mut self.buffer).await? == 0 {
                    bail!("the server closed the connection");
                }
            }
        })
        .await
        .context("no answer within 30 s")??;
        Ok((head.status, &self.buffer[head.bytes..head.bytes + head.body_bytes]))
    }
}

/// Parses the head of an answer. None: the head is not complete yet.
fn parse_head(bytes: &[u8]) -> anyhow::Result<Option<Head>> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&bytes[..end]).context("an answer's head is no text")?;
    let mut lines = text.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok())
        .with_context(|| format!("no HTTP answer: {text}"))?;
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .context("an answer without content-length")?;
    Ok(Some(Head {
        status,
        bytes: end + 4,
        body_bytes: length.1.trim().parse().context("an answer's content-length")?,
    }))
}

#[cfg(test)]
mod tests {
    use super::{Head, parse_head};

    #[test]
    fn an_answer_is_measured_by_its_head() {
        let text = b"HTTP/1.1 201 Created\r\netag: \"1\"\r\nContent-Length: 5\r\n\r\nhello";
        assert_eq!(parse_head(&text[..30]).unwrap(), None);
        assert_eq!(
            parse_head(text).unwrap(),
            Some(Head {
                status: 201,
                bytes: text.len() - 5,
                body_bytes: 5
            })
        );
        assert!(parse_head(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(parse_head(b"SSH-2.0\r\n\r\n").is_err());
    }
}
