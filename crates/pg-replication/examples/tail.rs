//! Prints what a slot streams, and confirms nothing: `cargo run --example tail -- URL SLOT PUBLICATION`.
//!
//! Before that, make the publication with `create publication PUBLICATION for table …` and the slot with `select
//! pg_create_logical_replication_slot('SLOT', 'pgoutput')`.

#![expect(clippy::print_stdout, reason = "the example prints what it reads")]

use anyhow::Context;
use pg_replication::pgoutput::{self, Message};
use pg_replication::{Connection, Frame, Frames, Lsn, Mode, StandbyStatus, Target};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |what| arguments.next().with_context(|| format!("{what} is missing"));
    let (url, slot, publication) = (next("the URL")?, next("the slot")?, next("the publication")?);

    let mut session = Connection::open(&Target::parse(&url)?, Mode::Replication).await?;
    session.start_replication(&slot, Lsn::INVALID, &publication).await?;
    let mut stream = session.into_stream();
    loop {
        let mut frames = Frames::new(stream.buffer());
        let mut received = None;
        while let Some((frame, length)) = frames.peek()? {
            match frame {
                Frame::Data(bytes) => match pgoutput::decode(bytes)? {
                    Message::Begin { commit_lsn, .. } => println!("begin {commit_lsn}"),
                    other => println!("  {other:?}"),
                },
                Frame::KeepAlive {
                    wal_end,
                    reply_requested,
                } if reply_requested => received = Some(wal_end),
                Frame::Error { code, message } => anyhow::bail!("{message} (SQLSTATE {code})"),
                Frame::Done => return Ok(()),
                Frame::KeepAlive { .. } | Frame::Notice { .. } => {}
            }
            frames.advance(length);
        }
        let consumed = frames.consumed();
        stream.consume(consumed);
        if let Some(received) = received {
            let status = StandbyStatus {
                received,
                confirmed: Lsn::INVALID,
                reply_requested: false,
            };
            stream.send_status(status).await?;
        }
        stream.reserve_for_next_frame()?;
        anyhow::ensure!(stream.read().await? > 0, "the server closed the connection");
    }
}
