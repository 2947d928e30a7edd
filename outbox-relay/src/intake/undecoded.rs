//! What waits in the buffer, before anything of it is decoded.

use super::Intake;
use pg_replication::pgoutput::{self, Message};
use pg_replication::{Frame, Frames, POSTGRES_EPOCH_US};

impl Intake {
    /// When the first transaction in `buffer` was committed of which rows may still have to be published, in microseconds since 1970. `None`: there is none.
    /// Decodes nothing. It passes over all frames before that transaction: while a relay is paused, keepalives pile up there, and the buffer's limit
    /// bounds their number.
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
    // What is wrong with a frame is said when it is decoded.
    while let Ok(Some((frame, length))) = frames.peek() {
        if let Frame::Data(bytes) = frame
            && let Ok(Message::Begin { commit_timestamp, .. }) = pgoutput::decode(bytes)
        {
            return Some(commit_timestamp + POSTGRES_EPOCH_US);
        }
        frames.advance(length);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{POSTGRES_EPOCH_US, first_commit_us};

    /// A frame of the protocol: `d`, the length with itself, and the body.
    fn frame(body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [b"d", &length[..], body].concat()
    }

    fn keepalive() -> Vec<u8> {
        let (wal_end, sent_at) = (7_i64.to_be_bytes(), 8_i64.to_be_bytes());
        frame(&[b"k", &wal_end[..], &sent_at[..], &[0]].concat())
    }

    /// A transaction that was committed at this time of Postgres' epoch.
    fn begin(commit_us: i64) -> Vec<u8> {
        let (lsn, xid) = (9_i64.to_be_bytes(), 10_i32.to_be_bytes());
        let message = [b"B", &lsn[..], &commit_us.to_be_bytes()[..], &xid[..]].concat();
        frame(&[b"w", &lsn[..], &lsn[..], &lsn[..], &message[..]].concat())
    }

    #[test]
    fn the_first_transaction_is_found_behind_any_number_of_keepalives() {
        assert_eq!(first_commit_us(&[]), None);
        assert_eq!(first_commit_us(&keepalive().repeat(100)), None);
        let buffer = [keepalive().repeat(100), begin(5), begin(6)].concat();
        assert_eq!(first_commit_us(&buffer), Some(5 + POSTGRES_EPOCH_US));
        let cut = &buffer[..buffer.len() - begin(6).len() - 1];
        assert_eq!(first_commit_us(cut), None, "half of a frame");
    }
}
