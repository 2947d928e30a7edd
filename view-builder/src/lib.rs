//! Keeps SQL views in step with Kafka topics, exactly once.
//!
//! Kafka's consumer group shares the partitions among the processes; Postgres holds the positions. Each batch is one
//! transaction that moves the positions and applies the events, see [`apply`]. A view is a folder with SQL, see [`views::view`].
//!
//! The rooms, from the top: [`cli`] reads the command line, [`commands`] are what people type, [`builder`] joins Kafka and Postgres, [`apply`] is one batch's transaction,
//! [`views`] are the SQL and the connection that keeps it, [`letters`] the events that cannot be applied. [`settings`], [`continuity`], [`kafka`] and
//! [`postgres`] stand below them, and at the bottom [`contract`], which makes events of bytes, and [`process`].

#![allow(
    rustdoc::private_intra_doc_links,
    reason = "a program: whoever reads its pages makes them with --document-private-items"
)]

pub mod apply;
pub mod builder;
pub mod cli;
pub mod commands;
pub mod continuity;
pub mod contract;
pub mod kafka;
pub mod letters;
pub mod postgres;
pub mod process;
pub mod settings;
pub mod views;

pub use commands::run;
pub use process::failure::Failure;
pub use settings::Config;
