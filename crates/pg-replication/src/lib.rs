//! Logical replication from PostgreSQL 15 and later, for programs that must not lose a row.
//!
//! A [`Connection`] is a session: it speaks SQL by the simple query protocol, and in [`Mode::Replication`] it becomes a
//! [`ReplicationStream`] of a slot. [`Frames`] are what the server sent, borrowed from one read buffer; [`pgoutput`] reads the messages in
//! them. What the program has made safe it confirms by a [`StandbyStatus`], and the server keeps the rest.
//!
//! A [`Target`] is read from a URL with libpq's names: several hosts, `sslmode`, client certificates, SCRAM with channel binding, Unix
//! sockets. A [`ServerInstance`] tells whether two sessions are with the same running server, which a name does not.
//!
//! What this crate leaves to its user: when to confirm, what to do when a connection breaks, and the meaning of rows.
//!
//! ```no_run
//! # async fn tail() -> anyhow::Result<()> {
//! use pg_replication::{Connection, Frame, Frames, Lsn, Mode, Target};
//!
//! let target = Target::parse("postgresql://user:password@localhost/shop?sslmode=require")?;
//! let mut session = Connection::open(&target, Mode::Replication).await?;
//! session.start_replication("my_slot", Lsn::INVALID, "my_publication").await?;
//! let mut stream = session.into_stream();
//! # Ok(())
//! # }
//! ```

mod address;
mod binding;
mod connection;
mod frame;
mod hosts;
mod instance;
mod lsn;
mod password;
pub mod pgoutput;
mod pinned;
mod replication;
mod stream;
mod target;
mod tls;

pub use address::Address;
pub use connection::{Answer, Connection, Mode, PgError, Row, quote_identifier, quote_literal};
pub use frame::{Frame, FrameError, Frames};
pub use hosts::SessionKind;
pub use instance::{MovedAway, ServerInstance};
pub use lsn::{InvalidLsn, Lsn};
pub use password::Password;
pub use replication::{POSTGRES_EPOCH_US, ReplicationStream, StandbyStatus};
pub use target::{Binding, InvalidUrl, Target, TlsMode};
