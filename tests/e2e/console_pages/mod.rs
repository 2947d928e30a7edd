//! The console's pages of events, traces and dead letters, on a whole pipeline, as they come without scripts.

mod events;
mod letters;
mod markup;
mod page;
mod server;
mod trace;
