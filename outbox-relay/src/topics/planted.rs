//! The planted bugs of what is known of topics. Without the feature `faults` none of them is there.

use crate::process::faults::{self, Bug};

pub(super) fn lets_rows_go_anywhere() -> bool {
    faults::is_planted(Bug::PublishAnywhere)
}

pub(super) fn knows_topics_by_name() -> bool {
    faults::is_planted(Bug::KnowTopicsByName)
}
