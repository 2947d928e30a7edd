//! `view-builder replay`: prints a topic's events, or sets a group back so that it reads them again.
//!
//! A replay is always safe. An event that is older than what a view has changes nothing, and one of the same version is applied again. No
//! builder has to stop for it, and no reader sees an older state.

mod print;
mod reset;
mod start;

pub use print::print;
pub(crate) use reset::ask_to_confirm;
pub use reset::reset_group;
