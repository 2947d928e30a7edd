//! What `recover` asks for.

use clap::{Args, ValueEnum};

use super::Settings;
use super::poison::PoisonOptions;

#[derive(Clone, Debug, Args)]
pub struct RecoverArgs {
    #[command(flatten)]
    pub settings: Settings,
    #[command(flatten)]
    pub recover: RecoverOptions,
    #[command(flatten)]
    pub poison: PoisonOptions,
}

#[derive(Clone, Debug, Args)]
pub struct RecoverOptions {
    /// Do not ask. Needed where there is no terminal.
    #[arg(long)]
    pub yes: bool,
    /// Compare the outbox with the topics also where nothing is found to be broken: rows may have been hidden in a way that leaves no trace.
    #[arg(long)]
    pub compare_anyway: bool,
    /// Go on although a topic has another number of partitions than the checkpoint knows: later events of a key go to another partition than its
    /// earlier ones, so let the topic's readers come to its end before. Nothing is lost or comes twice.
    #[arg(long)]
    pub accept_partitions: bool,
    /// Compare only rows whose created_at is not before this moment, as Postgres reads it: 2026-11-28 09:30+01. Older rows count as published,
    /// which you have to know; a transaction may commit long after it has inserted its row. Without it all rows are compared.
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// As --since, from the commit of the record whose header `position` has this value, as it stands there:
    /// 16/B374D848:0:1795344833217210. Refused where it is above all that is known to be published.
    #[arg(long, value_name = "LSN:INDEX:MICROSECONDS", conflicts_with = "since")]
    pub since_position: Option<events::Position>,
    /// What to do with rows that may have been published and removed from their topic since; without it, recover ends before it changes anything.
    #[arg(long, value_enum)]
    pub undecided: Option<Undecided>,
    /// Make the new slot a failover slot (PostgreSQL 17 and later).
    #[arg(long)]
    pub failover: bool,
    /// Another slot publishes this outbox, too, and that is wanted. Without it, recover ends where this slot has no checkpoint and another one has.
    #[arg(long)]
    pub another_slot: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Undecided {
    /// Publish them: they may come a second time.
    Publish,
    /// Leave them: they may be lost.
    Skip,
}
