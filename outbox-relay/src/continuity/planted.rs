//! The planted bugs of what a checkpoint proves. Without the feature `faults` none of them is there.

use crate::process::faults::{self, Bug};

pub(super) fn takes_two_phase_slots() -> bool {
    faults::is_planted(Bug::TakeTwoPhaseSlots)
}

/// How many rows of a transaction are published. The bug takes all rows that share an LSN for published with the first.
pub(super) fn published_rows(of_transaction: u64) -> u64 {
    if faults::is_planted(Bug::RowLsnDedupe) {
        return u64::MAX;
    }
    of_transaction
}

pub(super) fn confirms_before_commit() -> bool {
    faults::is_planted(Bug::ConfirmBeforeCommit)
}

pub(super) fn confirms_mid_transaction() -> bool {
    faults::is_planted(Bug::ConfirmMidTransaction)
}

pub(super) fn lets_positions_go_back() -> bool {
    faults::is_planted(Bug::PositionsGoBack)
}

pub(super) fn lets_any_slot_publish() -> bool {
    faults::is_planted(Bug::AnySlotPublishes)
}

pub(super) fn trusts_any_copy() -> bool {
    faults::is_planted(Bug::TrustAnyCopy)
}

pub(super) fn forgets_former_partitions() -> bool {
    faults::is_planted(Bug::ForgetFormerPartitions)
}
