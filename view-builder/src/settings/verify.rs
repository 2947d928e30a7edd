//! Settings of `view-builder verify`.

use clap::Args;

use super::sources::Sources;
use super::{Servers, ViewsFolder};
use crate::process::checked::Checked;

/// Settings of `view-builder verify`.
#[derive(Clone, Debug, Args)]
pub struct VerifyConfig {
    #[command(flatten)]
    pub servers: Servers,
    #[command(flatten)]
    pub folder: ViewsFolder,
    #[command(flatten)]
    pub sources: Checked<Sources>,
    /// Longest wait for events on their way, for each comparison. A relay without anything to publish confirms the
    /// log's end within 15 s; a shorter wait than that may leave a row undecided.
    #[arg(long, env = "VERIFY_WAIT_SECONDS", value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=3_600))]
    pub wait: u32,
    /// Most differing rows that are listed for each table; the others are counted.
    #[arg(long, env = "VERIFY_LIMIT", value_name = "ROWS", default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=50_000))]
    pub limit: u32,
    /// Also list the buckets that are equal.
    #[arg(long, env = "VERIFY_ALL")]
    pub all: bool,
    /// Print JSON.
    #[arg(long, env = "VERIFY_JSON")]
    pub json: bool,
}
