//! The planted bugs of parked rows. Without the feature `faults` none of them is there.

use crate::process::faults::{self, Bug};

pub(super) fn forgets_parked_keys() -> bool {
    faults::is_planted(Bug::ForgetParkedKeys)
}

pub(super) fn has_room_for_two_rows() -> bool {
    faults::is_planted(Bug::RoomForTwoParkedRows)
}

pub(super) fn removes_parked_rows() -> bool {
    faults::is_planted(Bug::RemoveParkedRows)
}

pub(super) fn goes_on_without_lost_rows() -> bool {
    faults::is_planted(Bug::MissParkedRows)
}
