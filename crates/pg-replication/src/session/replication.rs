//! The stream of a logical replication slot.

use std::io;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use futures_util::FutureExt;
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::connection::{Connection, PgError, quote_identifier};
use super::stream::Stream;
use crate::frame::{FrameError, Frames};
use crate::lsn::Lsn;

/// One read can take this many bytes from the kernel. All that comes in while the reader naps must fit into it. Otherwise the nap costs throughput.
const READ_ROOM_BYTES: usize = 256 * 1024;

/// Microseconds from 1970-01-01 to 2000-01-01, the epoch of Postgres' time stamps.
pub const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// What a reader tells the server about its progress (`Standby status update`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StandbyStatus {
    /// How far the stream was read.
    pub received: Lsn,
    /// The server may remove its log up to here. [`Lsn::INVALID`] confirms nothing; a server that shuts down then does not wait for our confirmation.
    pub confirmed: Lsn,
    /// Asks the server to answer at once.
    pub reply_requested: bool,
}

/// A running stream. Frames are read from it, and a status is written to it.
pub struct ReplicationStream {
    stream: Stream,
    input: BytesMut,
}

impl Connection {
    /// Starts to stream a slot. Only one session can own a slot at a time, so whoever owns it is the leader.
    ///
    /// # Errors
    /// The connection broke, or the server refused. If another session has the slot, SQLSTATE is 55006. After a refusal the connection can still be
    /// used.
    pub async fn start_replication(&mut self, slot: &str, start: Lsn, publication: &str) -> anyhow::Result<()> {
        self.start_stream(slot, start, publication, false).await
    }

    /// Does the same as [`Connection::start_replication`]. If `messages` is true, the stream also has what `pg_logical_emit_message` wrote.
    ///
    /// # Errors
    /// Those of [`Connection::start_replication`].
    pub async fn start_stream(
        &mut self,
        slot: &str,
        start: Lsn,
        publication: &str,
        messages: bool,
    ) -> anyhow::Result<()> {
        let publications = quote_identifier(publication).replace('\'', "''");
        // Messages are requested only if the caller wants them, since other programs may emit many.
        let messages_option = if messages { ", messages 'true'" } else { "" };
        let sql = format!(
            "START_REPLICATION SLOT {} LOGICAL {start} (proto_version '1', publication_names '{publications}'{messages_option})",
            quote_identifier(slot)
        );
        let mut out = BytesMut::new();
        frontend::query(&sql, &mut out)?;
        self.send(&out).await?;
        loop {
            if self.peek_tag().await? == b'W' {
                let length = loop {
                    match Frames::next_length(&self.input)? {
                        Some(length) if self.input.len() >= length => break length,
                        _ => self.read_more().await?,
                    }
                };
                self.input.advance(length);
                return Ok(());
            }
            match self.next_message().await? {
                Message::ErrorResponse(body) => {
                    let error = PgError::from_body(&body)?;
                    while !matches!(self.next_message().await?, Message::ReadyForQuery(_)) {}
                    return Err(error.into());
                }
                Message::ReadyForQuery(_) => anyhow::bail!("the server did not start the stream"),
                _ => {}
            }
        }
    }

    /// Turns the session into the stream that [`Connection::start_replication`] has started in it.
    #[must_use]
    pub fn into_stream(self) -> ReplicationStream {
        ReplicationStream {
            stream: self.stream,
            input: self.input,
        }
    }
}

impl ReplicationStream {
    /// The bytes that were read and are not yet consumed.
    #[must_use]
    pub fn buffer(&self) -> &[u8] {
        &self.input
    }

    /// Removes the first `length` bytes of the buffer.
    pub fn consume(&mut self, length: usize) {
        self.input.advance(length);
    }

    /// Reads the bytes that are there, or waits until some come. Returns their number. Cancel-safe.
    ///
    /// # Errors
    /// The connection broke or was closed.
    pub async fn read(&mut self) -> io::Result<usize> {
        self.make_room();
        let length = self.stream.read_buf(&mut self.input).await?;
        error_if_closed(length)
    }

    /// Reads the bytes that are there, without waiting. Returns their number. `None`: no bytes are there.
    ///
    /// # Errors
    /// The connection broke or was closed.
    pub fn try_read(&mut self) -> io::Result<Option<usize>> {
        self.make_room();
        match self.stream.read_buf(&mut self.input).now_or_never() {
            None => Ok(None),
            Some(length) => error_if_closed(length?).map(Some),
        }
    }

    /// Makes room for the next frame, if it is larger than what a read takes.
    ///
    /// # Errors
    /// The frame has a length that no server sends.
    pub fn reserve_for_next_frame(&mut self) -> Result<(), FrameError> {
        if let Some(length) = Frames::next_length(&self.input)?
            && length > self.input.len() + READ_ROOM_BYTES
        {
            self.input.reserve(length - self.input.len());
        }
        Ok(())
    }

    /// Whether the kernel's buffer is large enough for what comes in while the reader naps.
    #[must_use]
    pub fn buffers_while_napping(&self) -> bool {
        self.stream.buffers_while_napping()
    }

    /// Sends a status. Not cancel-safe: a status that is cut off breaks the stream.
    ///
    /// # Errors
    /// The connection broke, or the server took nothing for ten seconds.
    pub async fn send_status(&mut self, status: StandbyStatus) -> io::Result<()> {
        let message = status.to_message();
        let sent = tokio::time::timeout(Duration::from_secs(10), async {
            self.stream.write_all(&message).await?;
            self.stream.flush().await
        });
        sent.await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the server did not take the status message"))?
    }

    /// Ends the stream in order, so that the slot is free at once. Errors are ignored, since the server also ends a session whose client is gone.
    pub async fn close(mut self) {
        let mut out = BytesMut::new();
        frontend::copy_done(&mut out);
        frontend::terminate(&mut out);
        let closed = tokio::time::timeout(Duration::from_secs(1), async {
            self.stream.write_all(&out).await?;
            self.stream.shutdown().await
        });
        if !matches!(closed.await, Ok(Ok(()))) {
            tracing::debug!("the replication connection was gone already");
        }
    }

    fn make_room(&mut self) {
        if self.input.capacity() - self.input.len() < READ_ROOM_BYTES / 2 {
            self.input.reserve(READ_ROOM_BYTES);
        }
    }
}

impl StandbyStatus {
    /// The bytes of the message, as CopyData.
    fn to_message(self) -> [u8; 39] {
        let sent_at = now_us() - POSTGRES_EPOCH_US;
        let mut message = [0; 39];
        message[0] = b'd';
        message[1..5].copy_from_slice(&38u32.to_be_bytes());
        message[5] = b'r';
        message[6..14].copy_from_slice(&self.received.0.to_be_bytes());
        message[14..22].copy_from_slice(&self.confirmed.0.to_be_bytes());
        message[22..30].copy_from_slice(&self.confirmed.0.to_be_bytes());
        message[30..38].copy_from_slice(&sent_at.to_be_bytes());
        message[38] = u8::from(self.reply_requested);
        message
    }
}

/// A read of 0 bytes means that the server has closed the connection.
fn error_if_closed(length: usize) -> io::Result<usize> {
    if length == 0 {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the server closed the replication connection",
        ));
    }
    Ok(length)
}

/// Microseconds since 1970, or 0 if the clock is set to before 1970. The server only shows this time.
fn now_us() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}
