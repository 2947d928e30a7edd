//! How far the relay was: the facts that a start compares with what it finds.
//!
//! Pure: nothing here asks a server.
//!
//! - [`checkpoint`] is the record that Kafka keeps.
//! - [`progress`] knows up to where rows are published.
//! - [`lineage`] and [`timeline`] decide whether a server continues the one that the checkpoint knows.
//! - [`other_relays`] decides whether another relay publishes the same rows.
//! - [`comparison`] compares the ids of rows with the ids of records, and [`event_ids`] is a set of such ids.

pub mod checkpoint;
pub mod comparison;
pub mod event_ids;
pub(crate) mod format;
pub mod lineage;
pub mod other_relays;
pub mod parking_note;
mod planted;
pub(crate) mod positions;
pub mod progress;
pub mod source;
pub mod timeline;
