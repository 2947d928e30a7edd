//! What `park` and `parked` ask for.

use clap::{Args, Subcommand};

use crate::process::row_name::RowPosition;
use crate::settings::Settings;

#[derive(Clone, Debug, Args)]
pub struct ParkArgs {
    #[command(flatten)]
    pub settings: Settings,
    /// The row's position, LSN:INDEX, as the relay's last line names it.
    pub position: RowPosition,
}

#[derive(Clone, Debug, Subcommand)]
pub enum ParkedCommand {
    /// Print the parked rows. Changes nothing, also while a relay runs.
    List(ListArgs),
    /// Publish parked rows after all, with the settings as they are now, each once and in the order of their positions. A row that still cannot be
    /// published stays, and so do the rows of its key behind it. The relay must be stopped.
    Retry(RetryArgs),
    /// Give a parked row up: it is in no topic then. The rows of its key behind it stay, for a retry. The relay must be stopped.
    Discard(DiscardArgs),
}

#[derive(Clone, Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    pub settings: Settings,
    /// As a JSON array, with everything that is parked.
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Debug, Args)]
pub struct RetryArgs {
    #[command(flatten)]
    pub settings: Settings,
    /// The one row to publish, LSN:INDEX; no earlier row of its key may be parked.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub position: Option<RowPosition>,
    /// All parked rows.
    #[arg(long)]
    pub all: bool,
}

#[derive(Clone, Debug, Args)]
pub struct DiscardArgs {
    #[command(flatten)]
    pub settings: Settings,
    /// The row to give up, LSN:INDEX.
    pub position: RowPosition,
    /// Do not ask. Needed where there is no terminal.
    #[arg(long)]
    pub yes: bool,
}
