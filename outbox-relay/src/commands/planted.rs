//! The planted bugs of commands. Without the feature `faults` none of them is there.

use crate::process::faults::{self, Bug};

pub(super) fn leaves_failed_transaction_open() -> bool {
    faults::is_planted(Bug::LeaveFailedTransactionOpen)
}

pub(super) fn continues_behind_last_row() -> bool {
    faults::is_planted(Bug::ContinueBehindLastRow)
}

pub(super) fn leaves_former_cluster_unfenced() -> bool {
    faults::is_planted(Bug::LeaveFormerClusterUnfenced)
}

pub(super) fn compares_before_fence() -> bool {
    faults::is_planted(Bug::CompareBeforeFence)
}

pub(super) fn replays_to_inclusive() -> bool {
    faults::is_planted(Bug::ReplayToInclusive)
}

pub(super) fn replays_unpublished_rows() -> bool {
    faults::is_planted(Bug::ReplayUnpublished)
}
