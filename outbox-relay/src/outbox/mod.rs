//! The outbox in Postgres: where its rows are and what the server knows of them.
//!
//! [`source`] asks for the server and the slot, [`publication`] for what puts the outbox into the stream, [`slot`] changes the slot, [`partitions`] and [`days`] know the table's partitions, [`messages`] the rows
//! that an application sends as logical messages in place of inserts. Nothing here knows Kafka.

pub mod days;
pub(crate) mod messages;
pub mod partitions;
pub mod publication;
pub(crate) mod rows;
pub(crate) mod slot;
pub mod source;
pub mod standby;
pub mod table;
