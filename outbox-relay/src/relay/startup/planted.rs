//! The planted bugs of a start. Without the feature `faults` none of them is there.

use std::time::Duration;

use crate::continuity::checkpoint::Checkpoint;
use crate::continuity::progress::Published;
use crate::continuity::source::Source;
use crate::kafka::{CheckpointLog, Delivery, StoredCheckpoint};
use crate::process::faults::{self, Bug};
use crate::process::stop::RelayError;

/// Long enough for an earlier producer's commit to come in between.
const BETWEEN_READ_AND_FENCE: Duration = Duration::from_secs(4);

/// Reads the checkpoint before earlier producers are fenced, where that bug is planted.
pub(super) fn read_checkpoint_before_fence(
    log: &CheckpointLog<'_>,
    key: &str,
    delivery: Delivery,
    gives_up: &dyn Fn() -> bool,
) -> Result<Option<StoredCheckpoint>, RelayError> {
    if !faults::is_planted(Bug::CheckpointBeforeFence) {
        return Ok(None);
    }
    let stored = log.last(key, delivery, gives_up)?;
    std::thread::sleep(BETWEEN_READ_AND_FENCE);
    Ok(stored)
}

pub(super) fn goes_on_behind_open_transactions() -> bool {
    faults::is_planted(Bug::GoOnBehindOpenTransactions)
}

pub(super) fn trusts_any_reader() -> bool {
    faults::is_planted(Bug::TrustAnyReader)
}

/// The position of a relay that believes in another one than the checkpoint's.
pub(super) fn believe_in_another_position(checkpoint: &mut Checkpoint, source: &Source) {
    let lsn = match &source.slot {
        Some(slot) if faults::is_planted(Bug::TrustTheSlot) => slot.confirmed,
        _ if faults::is_planted(Bug::StartFromNow) => source.wal_end,
        _ => return,
    };
    checkpoint.published = Published { lsn, partial: None };
}
