//! What waits in the buffer, before anything of it is decoded.

use super::Intake;
use pg_replication::pgoutput::{self, Message};
use pg_replication::{Frame, Frames, POSTGRES_EPOCH_US};

/// How many frames are looked at. A keepalive or a commit may stand before the next transaction, and hardly more.
const FRAMES_MAX: usize = 16;

impl Intake {
    /// When the first transaction in `buffer` was committed of which rows may still have to be published, in microseconds since 1970. `None`: there is none, or
    /// it does not begin near the beginning of the buffer. Decodes nothing.
    #[must_use]
    pub(crate) fn oldest_undecoded_us(&self, buffer: &[u8]) -> Option<i64> {
        if !self.progress.is_between_transactions() {
            return (!buffer.is_empty()).then_some(self.newest_commit_us);
        }
        first_commit_us(buffer)
    }
}

fn first_commit_us(buffer: &[u8]) -> Option<i64> {
    let mut frames = Frames::new(buffer);
    for _ in 0..FRAMES_MAX {
        // What is wrong with a frame is said when it is decoded.
        let (frame, length) = frames.peek().ok()??;
        if let Frame::Data(bytes) = frame
            && let Ok(Message::Begin { commit_timestamp, .. }) = pgoutput::decode(bytes)
        {
            return Some(commit_timestamp + POSTGRES_EPOCH_US);
        }
        frames.advance(length);
    }
    None
}
