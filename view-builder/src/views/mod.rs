//! The views: their SQL, what the database keeps of them, and the connection by which they are kept.
//!
//! [`view`] reads a view's folder, [`install`] brings it into the database, [`catalog`] is what the database keeps, [`pauses`] are the views that are
//! not applied. [`database`] has one connection with all statements prepared.

pub(crate) mod catalog;
pub mod database;
pub(crate) mod epochs;
pub mod install;
pub(crate) mod pauses;
pub(crate) mod stuck;
pub mod view;
