//! From an outbox row to a Kafka record: a pure function, with the semantics, defaults and option names of Debezium's Outbox Event Router.
//!
//! See <https://debezium.io/documentation/reference/stable/transformations/outbox-event-router.html>.

mod options;
mod partition;
mod plan;

pub use options::{Additional, InvalidOperation, InvalidOption, Placement, RouterOptions};
pub use partition::{murmur2, partition_of_key};
pub use plan::{Column, Header, Plan, PlanError, RouteError, Routed, RowScratch};
