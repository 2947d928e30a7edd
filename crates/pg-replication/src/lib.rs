//! Logical replication from PostgreSQL 15 and later, for programs that must not lose a row.
//!
//! A [`Connection`] is a session: it speaks SQL by the simple query protocol, and in [`Mode::Replication`] it becomes a
//! [`ReplicationStream`] of a slot. [`Frames`] are what the server sent. They borrow from one read buffer. [`pgoutput`] decodes the messages in them.
//! With a [`StandbyStatus`] the program confirms what it has stored safely. The server keeps everything behind that.
//!
//! A [`Target`] is parsed from a URL whose parameters have libpq's names: several hosts, `sslmode`, client certificates, SCRAM with channel binding,
//! Unix sockets. A [`ServerInstance`] tells whether two sessions are with the same running server. A host's name cannot tell that.
//!
//! With the feature `tokio-postgres` a target opens sessions of that crate as well, with the same TLS and channel binding
//! (`Target::open_tokio_postgres`).
//!
//! Three things are left to the program that uses this crate: when to confirm, what to do when a connection breaks, and what the rows mean.
//!
//! This prints what a slot streams. It confirms nothing (`examples/tail.rs` is the whole program):
//!
//! ```no_run
//! # #[cfg(feature = "session")]
//! # async fn tail() -> anyhow::Result<()> {
//! use pg_replication::pgoutput::{self, Message};
//! use pg_replication::{Connection, Frame, Frames, Lsn, Mode, Target};
//!
//! let target = Target::parse("postgresql://user:password@localhost/shop?sslmode=verify-full")?;
//! let mut session = Connection::open(&target, Mode::Replication).await?;
//! session.start_replication("my_slot", Lsn::INVALID, "my_publication").await?;
//! let mut stream = session.into_stream();
//! while stream.read().await? > 0 {
//!     let mut frames = Frames::new(stream.buffer());
//!     while let Some((frame, length)) = frames.peek()? {
//!         if let Frame::Data(bytes) = frame {
//!             match pgoutput::decode(bytes)? {
//!                 Message::Begin { commit_lsn, .. } => println!("a transaction that committed at {commit_lsn}"),
//!                 message => println!("  {message:?}"),
//!             }
//!         }
//!         frames.advance(length);
//!     }
//!     let consumed = frames.consumed();
//!     stream.consume(consumed);
//!     stream.reserve_for_next_frame()?;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A session in [`Mode::Sql`] runs SQL:
//!
//! ```no_run
//! # #[cfg(feature = "session")]
//! # async fn slots() -> anyhow::Result<()> {
//! # use pg_replication::{Connection, Mode, Target};
//! let target = Target::parse("postgresql://user@localhost/shop?passwordfile=/run/secrets/postgres")?;
//! let mut session = Connection::open(&target, Mode::Sql).await?;
//! for row in session.rows("select slot_name from pg_replication_slots").await? {
//!     println!("{:?}", row[0]);
//! }
//! # Ok(())
//! # }
//! ```

#[cfg(feature = "session")]
mod frame;
mod lsn;
pub mod pgoutput;
#[cfg(feature = "session")]
mod session;

pub use lsn::{InvalidLsn, Lsn};
#[cfg(feature = "tokio-postgres")]
pub use session::{SecuredStream, SessionError, SessionTask};
#[cfg(feature = "session")]
pub use {
    frame::{Frame, FrameError, Frames},
    session::{
        Address, Answer, Binding, Connection, InvalidUrl, Mode, MovedAway, POSTGRES_EPOCH_US, Password, PgError,
        ReplicationStream, Row, ServerInstance, SessionKind, StandbyStatus, Target, TlsMode, quote_identifier,
        quote_literal,
    },
};
