//! Turns an outbox row into a Kafka record. This is a pure function with the semantics, defaults and option names of Debezium's Outbox Event Router.
//!
//! [`RouterOptions`] are parsed from Debezium's option names. A [`Plan`] finds the columns that they name in a table, once. [`Plan::route`] turns
//! each row into key, value and headers, without copying them. Nothing here reads or writes anything. The rows are [`Tuple`]s of pgoutput.
//!
//! ```
//! use outbox_router::{Column, Plan, RouterOptions, RowScratch};
//! use pg_replication::pgoutput::Tuple;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let options = RouterOptions::parse(&["route.topic.replacement=${routedByValue}-events"])?;
//! let columns = ["id", "aggregatetype", "aggregateid", "type", "payload"];
//! let columns = columns.map(|name| Column { name: name.to_owned(), type_oid: 25 });
//! let plan = Plan::new(&options, columns.to_vec())?;
//!
//! let row = ["1", "user", "7", "Created", "{}"].map(|text| Some(text.as_bytes()));
//! let bytes = Tuple::encode(&row)?;
//! let tuple = Tuple::from_encoded(5, &bytes);
//! plan.route(&tuple, &mut RowScratch::default(), |record, _headers| {
//!     assert_eq!(plan.topic(record.route), "user-events");
//!     assert_eq!(record.key.as_deref(), Some(&b"7"[..]));
//! })?;
//! # Ok(())
//! # }
//! ```
//!
//! [`Tuple`]: pg_replication::pgoutput::Tuple
//!
//! See <https://debezium.io/documentation/reference/stable/transformations/outbox-event-router.html>.

mod options;
mod partition;
mod plan;
mod replacement;
mod values;

pub use options::{Additional, InvalidOperation, InvalidOption, Placement, RouterOptions};
pub use partition::{murmur2, partition_of_key};
pub use plan::{Column, Header, Plan, PlanError, RouteError, Routed};
pub use values::RowScratch;
