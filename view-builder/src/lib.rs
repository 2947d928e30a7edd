//! Keeps SQL views in step with Kafka topics, exactly once.
//!
//! Kafka's consumer group shares the partitions among the processes; Postgres holds the positions. Each batch is one
//! transaction that moves the positions and applies the events, see [`apply`]. A view is a folder with SQL, see [`view`].
//!
//! What decides is pure and has its tests beside it: [`event`], [`batch`], [`assignment`], [`start`], [`letters`]. What talks is thin:
//! [`kafka`] to the brokers, [`database`], [`install`], [`claim`] and [`apply`] to Postgres. [`builder`] joins the two.

pub mod accept;
pub mod apply;
pub mod assignment;
pub mod batch;
pub mod beginning;
pub mod builder;
pub mod claim;
pub mod config;
pub mod continuity;
pub mod contract;
pub mod database;
pub mod event;
pub mod failure;
pub mod faults;
pub mod group;
pub mod install;
pub mod kafka;
pub mod lag;
pub mod letters;
pub mod measure;
pub mod moment;
pub mod offsets;
pub mod outage;
pub mod parting;
pub mod pause;
pub mod paused_partitions;
pub mod rebuild;
pub mod replay;
mod run;
pub mod start;
pub mod status;
pub mod takeover;
pub mod verify;
pub mod view;
pub mod waiting;

mod catalog;
mod json;
mod record;
mod refusal;
mod topics;

pub use config::Config;
pub use failure::Failure;
pub use run::run;
