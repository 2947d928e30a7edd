//! What an operator has accepted for a rebuild. It is stored with the rebuild, so a command that resumes the rebuild need not repeat the flag.

use tokio_postgres::{Client, Error};

use crate::process::faults::{self, Bug};
use crate::settings::RebuildConfig;

#[derive(Clone, Copy, Debug)]
pub(super) struct Accepted {
    /// Events that retention has removed may be missing.
    pub(super) truncated: bool,
    /// Rows of keys with dead letters may be missing, since compaction has removed their events.
    pub(super) compacted: bool,
}

/// Adds what this command accepts to what was accepted before.
pub(super) async fn add_acceptance(client: &Client, config: &RebuildConfig, view: &str) -> Result<Accepted, Error> {
    let row = client
        .query_one(
            "update view_rebuilds set
                accepts_truncated = accepts_truncated or $2,
                accepts_compacted = accepts_compacted or $3
             where view = $1 returning accepts_truncated, accepts_compacted",
            &[&view, &config.accept_truncated, &config.accept_compacted],
        )
        .await?;
    let accepted = Accepted {
        truncated: row.get("accepts_truncated"),
        compacted: row.get("accepts_compacted"),
    };
    Ok(forget_earlier_acceptance(config).unwrap_or(accepted))
}

/// The planted bug: only what this command accepts counts.
fn forget_earlier_acceptance(config: &RebuildConfig) -> Option<Accepted> {
    faults::is_planted(Bug::ForgetAcceptance).then_some(Accepted {
        truncated: config.accept_truncated,
        compacted: config.accept_compacted,
    })
}
