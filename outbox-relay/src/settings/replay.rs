//! What `replay` asks for.

use clap::Args;

use super::Settings;

#[derive(Clone, Debug, Args)]
pub struct ReplayArgs {
    #[command(flatten)]
    pub settings: Settings,
    #[command(flatten)]
    pub replay: ReplayOptions,
}

/// Which rows to replay: those for which all that is given holds.
#[derive(Clone, Debug, Args)]
pub struct ReplayOptions {
    /// Rows with this created_at or a later one: a moment as Postgres reads it, like 2026-11-25T08:00:00Z. (A row does not say at which LSN it was committed.)
    #[arg(long, value_name = "TIME")]
    pub from: Option<String>,
    /// Rows with an earlier created_at.
    #[arg(long, value_name = "TIME")]
    pub to: Option<String>,
    /// Rows with this key, repeatable.
    #[arg(long = "key", value_name = "KEY")]
    pub keys: Vec<String>,
    /// Rows with this event id, repeatable.
    #[arg(long = "id", value_name = "ID")]
    pub ids: Vec<String>,
    /// Do not ask. Needed where there is no terminal.
    #[arg(long)]
    pub yes: bool,
}
