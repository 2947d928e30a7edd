//! `view-builder replay`: printing a topic's events, and having a group read them again.
//!
//! A replay is always safe: an event older than what a view has changes nothing, one of the same version is applied again. Nobody
//! stops for it and no reader sees the past.

mod print;
mod reset;
mod start;

pub use print::print;
pub(crate) use reset::confirmed;
pub use reset::reset;
