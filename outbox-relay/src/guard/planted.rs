//! The planted bugs of the guard. Without the feature `faults` none of them is there.

use crate::process::faults::{self, Bug};

pub(super) fn streams_on_after_promotion() -> bool {
    faults::is_planted(Bug::StreamOnAfterPromotion)
}

pub(super) fn trusts_any_slot() -> bool {
    faults::is_planted(Bug::GuardTrustsAnySlot)
}

pub(super) fn trusts_any_table() -> bool {
    faults::is_planted(Bug::TrustAnyTable)
}
