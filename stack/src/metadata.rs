//! Asks a Kafka broker for the cluster's metadata, because an open port does not mean that the broker is ready.
//!
//! It sends one request of Kafka's protocol, byte by byte: Metadata version 1 (API key 3), which every broker since 0.10 answers.

use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const DEADLINE: Duration = Duration::from_secs(3);
/// An answer without topics has some hundred bytes. If there are more, it is not a Kafka broker.
const ANSWER_BYTES_MAX: usize = 1 << 20;
const CORRELATION_ID: i32 = 7;

/// How many brokers the broker at `address` (`HOST:PORT`) knows.
///
/// # Errors
/// Nobody answers within 3 s, or not as a Kafka broker does.
pub async fn brokers(address: &str) -> anyhow::Result<usize> {
    tokio::time::timeout(DEADLINE, ask(address))
        .await
        .with_context(|| format!("no answer from {address} within {} s", DEADLINE.as_secs()))?
}

async fn ask(address: &str) -> anyhow::Result<usize> {
    let mut stream = TcpStream::connect(address)
        .await
        .with_context(|| format!("cannot connect to {address}"))?;
    stream.write_all(&request()).await?;
    let length = usize::try_from(stream.read_i32().await?).context("a negative length")?;
    ensure!(
        (12..=ANSWER_BYTES_MAX).contains(&length),
        "{address} does not answer as a Kafka broker"
    );
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer).await?;
    let mut fields = answer.as_slice();
    ensure!(
        fields.read_i32().await? == CORRELATION_ID,
        "{address} answers another question"
    );
    usize::try_from(fields.read_i32().await?).context("a negative number of brokers")
}

fn request() -> Vec<u8> {
    let client = b"stack";
    let mut body = Vec::new();
    body.extend(3_i16.to_be_bytes());
    body.extend(1_i16.to_be_bytes());
    body.extend(CORRELATION_ID.to_be_bytes());
    body.extend(i16::try_from(client.len()).unwrap_or(0).to_be_bytes());
    body.extend(client);
    // An empty list asks for no topic.
    body.extend(0_i32.to_be_bytes());
    let mut request = i32::try_from(body.len()).unwrap_or(0).to_be_bytes().to_vec();
    request.extend(body);
    request
}
