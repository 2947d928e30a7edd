//! Where the relay was: facts that a start holds against what it finds.
//!
//! Pure: nothing here asks a server. [`checkpoint`] is the record that Kafka keeps, [`progress`] counts up to where rows are published,
//! [`lineage`] and [`timeline`] tell whether a server continues the one of before, [`other_relays`] whether another relay publishes the same rows, [`comparison`] holds the ids of rows against those of records.

pub mod checkpoint;
pub mod comparison;
pub(crate) mod format;
pub mod lineage;
pub mod other_relays;
pub mod parking_note;
mod planted;
pub(crate) mod positions;
pub mod progress;
pub mod source;
pub mod timeline;
