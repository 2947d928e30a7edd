//! The planted bugs of the intake. Without the feature `faults` none of them is there.

use crate::process::faults::{self, Bug};

pub(super) fn knows_outbox_by_name() -> bool {
    faults::is_planted(Bug::KnowOutboxByName)
}

pub(super) fn puts_existing_rows_at_consistent_point() -> bool {
    faults::is_planted(Bug::ExistingRowsAtConsistentPoint)
}

pub(super) fn ignores_batch_limit() -> bool {
    faults::is_planted(Bug::IgnoreDeliveryError)
}
