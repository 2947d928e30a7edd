//! A session with a server: where it is, the bytes to and from it, the login, SQL, and the stream of a slot.

mod address;
mod binding;
mod connection;
#[cfg(feature = "tokio-postgres")]
mod for_tokio_postgres;
mod hosts;
mod instance;
mod password;
mod pinned;
mod replication;
mod stream;
mod target;
mod tls;

pub use address::Address;
pub use connection::{Answer, Connection, Mode, PgError, Row, quote_identifier, quote_literal};
#[cfg(feature = "tokio-postgres")]
pub use for_tokio_postgres::{SecuredStream, SessionError, SessionTask};
pub use hosts::SessionKind;
pub use instance::{MovedAway, ServerInstance};
pub use password::Password;
pub use replication::{POSTGRES_EPOCH_US, ReplicationStream, StandbyStatus};
pub use target::{Binding, InvalidUrl, Target, TlsMode};
