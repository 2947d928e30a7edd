//! Our own thin Postgres client: ordinary SQL by the simple query protocol, and logical replication, which no mainline
//! Rust client speaks.

mod binding;
mod connection;
mod frame;
mod hosts;
mod instance;
pub mod lsn;
mod password;
pub mod pgoutput;
mod pinned;
mod replication;
mod stream;
mod target;
mod tls;

pub use connection::{Answer, Connection, Mode, PgError, Row, quote_identifier, quote_literal};
pub use frame::{Frame, FrameError, Frames};
pub use hosts::SessionKind;
pub use instance::{MovedAway, ServerInstance};
pub use password::Password;
pub(crate) use replication::POSTGRES_EPOCH_US;
pub use replication::{ReplicationStream, StandbyStatus};
pub use target::{Address, InvalidUrl, Target};
