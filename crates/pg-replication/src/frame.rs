//! The frames of a replication stream, borrowed from the read buffer.

use crate::lsn::Lsn;

/// One message of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A piece of the WAL as the output plugin wrote it (`XLogData`).
    Data(&'a [u8]),
    /// The server's position, and whether it wants an answer at once.
    KeepAlive { wal_end: Lsn, reply_requested: bool },
    /// A warning: SQLSTATE and text.
    Notice { code: &'a str, message: &'a str },
    /// The server ends the stream with an error: SQLSTATE and text.
    Error { code: &'a str, message: &'a str },
    /// The server ends the stream, as it does when it shuts down.
    Done,
}

/// The bytes are not those of a replication stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the replication stream is garbled: {0}")]
pub struct FrameError(pub &'static str);

/// Largest length of a frame, in bytes. A frame that claims to be longer is an error. A value of Postgres has at most 1 GiB.
const FRAME_BYTES_MAX: usize = (1 << 30) + (1 << 20);

/// Walks over the complete frames at the beginning of a buffer. An incomplete frame stays in the buffer until the rest of it has come.
pub struct Frames<'a> {
    buffer: &'a [u8],
    consumed: usize,
}

impl<'a> Frames<'a> {
    #[must_use]
    pub fn new(buffer: &'a [u8]) -> Self {
        Self { buffer, consumed: 0 }
    }

    /// The length of all frames that [`Frames::advance`] has passed, in bytes.
    #[must_use]
    pub fn consumed(&self) -> usize {
        self.consumed
    }

    /// Length of the next frame with its header, in bytes. `None` if the buffer does not have the whole header yet.
    ///
    /// # Errors
    /// The header has a length that no server sends.
    pub fn next_length(buffer: &[u8]) -> Result<Option<usize>, FrameError> {
        let Some(length) = buffer.get(1..5) else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
        if !(4..=FRAME_BYTES_MAX).contains(&length) {
            return Err(FrameError("impossible length"));
        }
        Ok(Some(length + 1))
    }

    /// The next complete frame and its length in bytes. To go on to the frame after it, call [`Frames::advance`] with this length.
    ///
    /// # Errors
    /// A server never sends such bytes.
    pub fn peek(&self) -> Result<Option<(Frame<'a>, usize)>, FrameError> {
        let rest = &self.buffer[self.consumed..];
        let Some(length) = Self::next_length(rest)? else {
            return Ok(None);
        };
        let Some(frame) = rest.get(..length) else {
            return Ok(None);
        };
        Ok(Some((parse_frame(frame[0], &frame[5..])?, length)))
    }

    /// Goes on to what follows a frame of this length.
    pub fn advance(&mut self, length: usize) {
        self.consumed += length;
    }
}

fn parse_frame(tag: u8, body: &[u8]) -> Result<Frame<'_>, FrameError> {
    match tag {
        b'd' => match body.split_first() {
            // 'w': start LSN, end LSN, send time (8 bytes each), data.
            Some((b'w', rest)) => rest.get(24..).map(Frame::Data).ok_or(FrameError("short XLogData")),
            // 'k': end LSN, send time (8 bytes each), reply flag.
            Some((b'k', rest)) => {
                let wal_end = rest
                    .get(..8)
                    .and_then(|bytes| bytes.try_into().ok())
                    .map(u64::from_be_bytes);
                match (wal_end, rest.get(16)) {
                    (Some(wal_end), Some(reply)) => Ok(Frame::KeepAlive {
                        wal_end: Lsn(wal_end),
                        reply_requested: *reply != 0,
                    }),
                    _ => Err(FrameError("short keepalive")),
                }
            }
            _ => Err(FrameError("unknown CopyData message")),
        },
        b'N' => {
            let (code, message) = code_and_message(body)?;
            Ok(Frame::Notice { code, message })
        }
        b'E' => {
            let (code, message) = code_and_message(body)?;
            Ok(Frame::Error { code, message })
        }
        // CopyDone, CommandComplete, ReadyForQuery.
        b'c' | b'C' | b'Z' => Ok(Frame::Done),
        // ParameterStatus: a setting of the session has changed. No reader of a stream needs it.
        b'S' => Ok(Frame::Notice { code: "", message: "" }),
        _ => Err(FrameError("unknown message")),
    }
}

/// SQLSTATE and text of an ErrorResponse or NoticeResponse.
fn code_and_message(mut body: &[u8]) -> Result<(&str, &str), FrameError> {
    let (mut code, mut message) = ("", "");
    while let Some((&kind, rest)) = body.split_first() {
        if kind == 0 {
            break;
        }
        let end = rest
            .iter()
            .position(|byte| *byte == 0)
            .ok_or(FrameError("unterminated field"))?;
        let text = std::str::from_utf8(&rest[..end]).unwrap_or("(not UTF-8)");
        match kind {
            b'C' => code = text,
            b'M' => message = text,
            _ => {}
        }
        body = &rest[end + 1..];
    }
    Ok((code, message))
}

#[cfg(test)]
mod tests {
    use super::{Frame, Frames};
    use crate::lsn::Lsn;

    fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag];
        bytes.extend_from_slice(&u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    fn keepalive(wal_end: u64, reply: u8) -> Vec<u8> {
        let mut body = vec![b'k'];
        body.extend_from_slice(&wal_end.to_be_bytes());
        body.extend_from_slice(&[0; 8]);
        body.push(reply);
        frame(b'd', &body)
    }

    #[test]
    fn an_incomplete_frame_stays_for_later() {
        let whole = keepalive(0x1_0000_0002, 1);
        let mut buffer = whole.clone();
        buffer.extend_from_slice(&whole[..whole.len() - 1]);
        let mut frames = Frames::new(&buffer);
        let (first, length) = frames.peek().unwrap().unwrap();
        assert_eq!(
            first,
            Frame::KeepAlive {
                wal_end: Lsn(0x1_0000_0002),
                reply_requested: true
            }
        );
        frames.advance(length);
        assert_eq!(frames.peek().unwrap(), None);
        assert_eq!(frames.consumed(), whole.len());
        for cut in 0..whole.len() {
            assert_eq!(Frames::new(&whole[..cut]).peek().unwrap(), None, "cut at {cut}");
        }
    }

    #[test]
    fn a_skipped_publication_shows_as_a_notice() {
        let body = b"SWARNING\0C55000\0Mskipped loading publication \"outbox\"\0\0";
        let buffer = frame(b'N', body);
        let (notice, _) = Frames::new(&buffer).peek().unwrap().unwrap();
        assert_eq!(
            notice,
            Frame::Notice {
                code: "55000",
                message: "skipped loading publication \"outbox\""
            }
        );
    }

    #[test]
    fn garbage_is_an_error_and_never_a_panic() {
        for buffer in [
            &[b'd', 0, 0, 0, 3][..],
            &[b'd', 0xFF, 0xFF, 0xFF, 0xFF],
            &frame(b'd', b""),
            &frame(b'd', b"w123"),
            &frame(b'd', b"k123"),
            &frame(b'?', b""),
            &frame(b'E', b"Cx"),
        ] {
            assert!(Frames::new(buffer).peek().is_err(), "{buffer:?}");
        }
    }
}
