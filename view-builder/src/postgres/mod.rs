//! Postgres: a connection with the settings that views rest on, what a refusal means, and how an outage is told.

pub mod connection;
pub mod outage;
pub(crate) mod refusal;
pub mod server;
