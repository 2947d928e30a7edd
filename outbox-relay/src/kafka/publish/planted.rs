//! The planted bugs of publishing. Without the feature `faults` none of them is there.

use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};

use crate::process::faults::{self, Bug};

pub(super) fn begins_at_any_lane() -> bool {
    faults::is_planted(Bug::BeginsAtAnyLane)
}

pub(super) fn fences_in_any_order() -> bool {
    faults::is_planted(Bug::FencesInAnyOrder)
}

pub(super) fn commits_checkpoint_before_data() -> bool {
    faults::is_planted(Bug::CheckpointBeforeData)
}

pub(super) fn lets_second_commit_first() -> bool {
    faults::is_planted(Bug::SecondCommitsFirst)
}

pub(super) fn reuses_disturbed_producers() -> bool {
    faults::is_planted(Bug::ReuseProducer)
}

pub(super) fn forgets_refused_records() -> bool {
    faults::is_planted(Bug::ForgetRefused)
}

/// Takes records for sent that librdkafka did not take.
pub(super) fn take_for_sent(outcome: KafkaResult<()>) -> KafkaResult<()> {
    match outcome {
        Err(_) if faults::is_planted(Bug::IgnoreDeliveryError) => Ok(()),
        Err(KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull))
            if faults::is_planted(Bug::DropWhenQueueFull) =>
        {
            Ok(())
        }
        outcome => outcome,
    }
}
