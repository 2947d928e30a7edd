//! What the two REST programs share: how they speak HTTP and how they speak to their database.
//!
//! Nothing here knows what a user or a post is. A program gives its routes to [`server::run`], reads bodies through
//! [`JsonBody`] and [`Fields`], paths through [`Id`] and [`Segment`], which version must
//! be there at least through [`MinVersion`] and [`MinVersions`], which one must not have been changed through [`IfMatch`], and answers with JSON text that its database made
//! ([`answer`], [`listing`]) or with a [`Problem`].

pub mod answer;
mod connections;
pub mod database;
mod edge;
mod fields;
mod health;
mod if_match;
mod json;
pub mod listing;
mod media;
pub mod migrations;
mod minimum;
mod path;
pub mod probe;
mod problem;
mod room;
pub mod server;

pub use database::Database;
pub use fields::Fields;
pub use if_match::IfMatch;
pub use json::{JsonBody, Object};
pub use minimum::{MinVersion, MinVersions};
pub use path::{Id, Segment};
pub use problem::{FieldError, Problem};
pub use room::{Room, SHORT_BYTES};
