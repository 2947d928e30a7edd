//! What the programs ask Kafka for and librdkafka's safe wrapper lacks: topics by their ids, where partitions end at both isolation
//! levels, and the offset at which a broker says that a partition ends.
//!
//! Everything here works on a client that is there already, whatever its context, and blocks. No `unsafe` is needed outside of this crate.

mod admin_request;
mod assign;
mod list_offsets;
mod log_parting;
mod partition_bounds;
mod partition_ends;
mod topic_facts;
mod topic_reader;

pub use assign::assign;
pub use list_offsets::Reader;
pub use log_parting::{ReadUpTo, first_offsets_behind, leader_epoch};
pub use partition_bounds::{PartitionBounds, bounds_by, leaders_by};
pub use partition_ends::{Ends, ends_by};
pub use topic_facts::{TopicFacts, facts_by};
pub use topic_reader::{Next, Record, TopicReader};
