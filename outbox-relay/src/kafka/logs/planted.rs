//! The planted bugs of reading a topic to its end. Without the feature `faults` none of them is there.

use crate::process::faults::{self, Bug};

pub(super) fn believes_any_end() -> bool {
    faults::is_planted(Bug::BelievesAnyEnd)
}
