//! The relay's side of Kafka.
//!
//! Rooms, from the top: [`logs`] is what the relay reads again, [`publish`] sends, [`topics`] asks what the cluster knows, [`client`] makes the
//! clients for all of them.

mod client;
mod logs;
mod publish;
mod topics;

pub use client::*;
pub use kafka_client::{Ends, TopicFacts};
pub use logs::*;
pub use publish::*;
pub use topics::*;
