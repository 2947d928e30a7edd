//! What a person types besides `run`: each command is one way from a look at both servers to a change of one of them.
//!
//! A command may know everything below, the relay's start included, since most of them begin as a start does. Nothing below knows a command.

pub mod accept;
pub mod check;
mod confirm;
mod failed_command;
mod fence;
pub mod init;
pub mod park;
mod planted;
pub mod recover;
pub mod replay;
pub mod status;
