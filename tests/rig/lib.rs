//! What the tests share: servers, and for each test an outbox, a slot, a topic and a relay of its own.
//!
//! This crate uses no code of the relay. It reads the topic with an ordinary consumer, and compares the topic with the outbox table.

pub mod cluster;
pub mod half_open_proxy;
pub mod item_view;
pub mod json_schema;
pub mod kafka_proxy;
pub mod lagging_proxy;
pub mod ledger;
pub mod memory;
pub mod metrics;
pub mod moving_address;
pub mod partitions;
pub mod promtool;
pub mod relay_exit;
pub mod rest;
pub mod rig;
pub mod servers;
pub mod status;
pub mod storm;
pub mod topic;
pub mod topic_settings;
pub mod view_builder_exit;
pub mod view_rig;
pub mod workload;

pub use ledger::Ledger;
pub use metrics::Metrics;
pub use moving_address::MovingAddress;
pub use promtool::run_promtool;
pub use rig::Rig;
pub use servers::Servers;
pub use status::Status;
pub use topic::{Isolation, Record};
pub use view_rig::ViewRig;
pub use workload::Workload;
