//! The console: the whole pipeline on one page, from the outbox to the views.
//!
//! It reads. Whatever it changes, it changes by running `outbox-relay` and `view-builder` as a person would, and writes down who wanted it.
//!
//! The rooms, from the top: [`cli`] reads the command line, [`pages`] is what people see, [`actions`] are the changes with their audit, [`snapshot`] asks the parts
//! every few seconds, [`programs`] runs the commands, [`app`] is what all requests share, [`web`] has the layout, the sessions and the checks of a request, [`settings`] what the operator has set.

#![allow(
    rustdoc::private_intra_doc_links,
    reason = "a program: whoever reads its pages makes them with --document-private-items"
)]

pub mod actions;
pub mod app;
pub mod cli;
pub mod letters;
pub mod pages;
pub mod postgres;
pub mod programs;
pub mod search;
pub mod settings;
pub mod snapshot;
pub mod trace;
pub mod web;
