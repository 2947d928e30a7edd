//! The topics that the relay writes to: which they may be, which they were, and what stands in their way.
//!
//! [`checkpoint_topic`] writes the relay's own record, [`destination`] makes them and refuses those that are not the relay's to write, [`identity`] knows them by their ids, [`hanging_transaction`]
//! and [`hidden_records`] know what an open transaction hides.

pub(crate) mod checkpoint_topic;
pub(crate) mod compaction;
pub(crate) mod destination;
pub(crate) mod hanging_transaction;
pub mod hidden_records;
pub mod identity;
mod planted;
