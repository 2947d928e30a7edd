//! What a person types: `run`, and all that looks at views or changes them beside it.
//!
//! A command may know everything below, and nothing below knows a command.

pub mod accept;
pub mod dead_letters;
pub mod pause;
pub mod rebuild;
pub mod replay;
mod run;
pub mod status;
pub mod verify;
pub mod views;

pub use run::run;
