//! Settings of the commands that change what is kept: views, and partitions that have lost events.

use clap::Args;

use super::partition_argument::AcceptFrom;
use super::{Servers, ViewsFolder};
use crate::contract::name::ViewName;
use crate::contract::place::TopicPartition;
use crate::postgres::server::ViewsDatabase;
use crate::process::checked::Checked;

/// Settings of `view-builder rebuild`.
#[derive(Clone, Debug, Args)]
pub struct RebuildConfig {
    #[command(flatten)]
    pub servers: Servers,
    #[command(flatten)]
    pub folder: ViewsFolder,
    /// The view: its folder's name.
    pub view: ViewName,
    /// Begin at the topics' first offsets also where earlier events have been removed: rows that only those tell of will be missing. Counts until
    /// this rebuild is done or abandoned, also for events that are removed while it fills.
    #[arg(long)]
    pub accept_truncated: bool,
    /// Swap also where the topic has no event any more of a key with dead letters, since compaction has removed them: its row will be missing.
    #[arg(long)]
    pub accept_compacted: bool,
    /// Drop what an unfinished rebuild has left, and do nothing else.
    #[arg(long, conflicts_with_all = ["accept_truncated", "accept_compacted"])]
    pub abandon: bool,
}

/// Settings of `view-builder accept`.
#[derive(Clone, Debug, Args)]
pub struct AcceptConfig {
    #[command(flatten)]
    pub servers: Servers,
    /// The partition, such as user-events/3.
    #[arg(value_name = "TOPIC/PARTITION", value_parser = super::partition_argument::partition)]
    pub partition: TopicPartition,
    /// Where a paused partition goes on: beginning, the topic's first offset; or an offset that the topic has.
    #[arg(long, value_name = "beginning|OFFSET")]
    pub from: Option<AcceptFrom>,
}

/// Settings of `view-builder drop`.
#[derive(Clone, Debug, Args)]
pub struct DropConfig {
    #[command(flatten)]
    pub database: Checked<ViewsDatabase>,
    /// The view's name. A builder that starts with it in its VIEWS would make it again: take the folder away first.
    pub view: ViewName,
    /// Do not ask.
    #[arg(long)]
    pub yes: bool,
}

/// Settings of `view-builder pause`.
#[derive(Clone, Debug, Args)]
pub struct PauseConfig {
    #[command(flatten)]
    pub database: Checked<ViewsDatabase>,
    /// The view's name.
    pub view: ViewName,
    /// Why, for the others who look at it.
    #[arg(long, default_value = "an operator wants it")]
    pub reason: String,
}

/// Settings of `view-builder resume`.
#[derive(Clone, Debug, Args)]
pub struct ResumeConfig {
    #[command(flatten)]
    pub servers: Servers,
    /// The view's name.
    pub view: ViewName,
}
