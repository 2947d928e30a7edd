//! What the two REST programs share: how they speak HTTP and how they speak to their database.
//!
//! Nothing here knows what a user or a post is. A service says in a [`Program`] what is its own and leaves the rest to
//! [`program::run`], down to the exit code. Its routes read bodies through [`JsonBody`] and [`Fields`], and paths through [`Id`] and
//! [`Segment`]. [`MinVersion`] and [`MinVersions`] are the versions that an answer must have at least. [`IfMatch`] are the versions that a change may
//! replace. [`change_with_event!`] makes the statement of a change. A route answers with JSON text that its database made ([`answer`], [`listing`]),
//! or with a [`Problem`].

pub mod answer;
mod change;
mod connections;
pub mod database;
mod edge;
mod fields;
mod health;
mod if_match;
mod json;
pub mod listing;
mod media;
mod migrations;
mod minimum;
mod path;
pub mod probe;
mod problem;
pub mod program;
mod room;
mod server;

pub use database::Database;
pub use fields::Fields;
pub use if_match::IfMatch;
pub use json::{JsonBody, Object};
pub use minimum::{MinVersion, MinVersions};
pub use path::{Id, Segment};
pub use problem::{FieldError, Problem};
pub use program::Program;
pub use room::{Room, SHORT_BYTES};
