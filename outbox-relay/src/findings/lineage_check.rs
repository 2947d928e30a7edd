//! Whether slot and server continue the checkpoint.

use crate::continuity::lineage::verify;
use crate::continuity::other_relays::ensure_written_for_this_server;
use crate::continuity::source::Source;
use crate::kafka::StoredCheckpoint;
use crate::process::stop::Stop;
use crate::settings::Config;
use pg_replication::Lsn;

/// Compares what the server says with the checkpoint, as a start does. Returns the checkpoint's position.
///
/// # Errors
/// The stop with which a relay would end.
pub(crate) fn ensure_continues(
    config: &Config,
    source: &Source,
    found: Option<&StoredCheckpoint>,
) -> Result<Lsn, Stop> {
    let stored = found.map(|found| &found.checkpoint);
    let checkpoint = verify(source, stored, config.names_for_messages())?;
    ensure_written_for_this_server(source, checkpoint, found.and_then(|found| found.written_ms))?;
    Ok(checkpoint.published.lsn)
}
