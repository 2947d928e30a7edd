//! Which losses `recover` can repair, and which it cannot.

use crate::continuity::checkpoint::{Checkpoint, State};
use crate::continuity::lineage::find_breaks;
use crate::continuity::source::Source;
use crate::process::stop::{PARTITIONS_CURE, RECOVER_PARTITIONS_CURE, Stop};
use crate::settings::{Config, RecoverOptions};
use crate::topics::identity;

/// Lists everything that is broken. What says most comes first.
///
/// `unreadable` says why the last checkpoint cannot be used. `other_topics` is what was found broken in topics other than that of the checkpoints.
///
/// # Errors
/// The [`Stop`] that `recover` cannot repair, or [`Stop::NothingToRecover`].
pub(super) fn find_losses(
    source: &Source,
    checkpoint: Option<&Checkpoint>,
    unreadable: Option<Stop>,
    other_topics: &[Stop],
    config: &Config,
    compare_anyway: bool,
) -> Result<Vec<Stop>, Stop> {
    let is_init_unfinished = checkpoint.is_some_and(|checkpoint| {
        checkpoint.state == State::Initialising
            && checkpoint.lineage.system_identifier == source.system_identifier
            && unreadable.is_none()
    });
    if is_init_unfinished {
        return Err(Stop::NotInitialised {
            slot: config.source.slot.to_string(),
            database: config.source.target.database.clone(),
            topic: config.sink.checkpoint_topic.to_string(),
        });
    }
    let is_unreadable = unreadable.is_some();
    let says_checkpoint_is_missing =
        |stop: &Stop| matches!(stop, Stop::CheckpointMissing { .. } | Stop::NotInitialised { .. });
    let broken = find_breaks(source, checkpoint, config.names_for_messages()).into_iter();
    let losses: Vec<Stop> = unreadable
        .into_iter()
        // If the checkpoint cannot be read, `unreadable` says so. That it is missing need not be said as well.
        .chain(broken.filter(|stop| !(is_unreadable && says_checkpoint_is_missing(stop))))
        .chain(other_topics.iter().cloned())
        .collect();
    if let Some(stop) = losses.iter().find(|stop| describe_loss(stop).is_none()) {
        return Err(stop.clone());
    }
    match checkpoint {
        Some(checkpoint) if losses.is_empty() && !compare_anyway => Err(Stop::NothingToRecover {
            slot: config.source.slot.to_string(),
            checkpoint: checkpoint.published.lsn,
        }),
        _ => Ok(losses),
    }
}

/// Leaves out the topics that were made anew: the checkpoint knows nothing of the new topic, not even how many partitions it should have.
pub(super) fn without_recreated_topics(mut other_partitions: Vec<Stop>, recreated: &[Stop]) -> Vec<Stop> {
    other_partitions.retain(
        |stop| !matches!(stop, Stop::PartitionsChanged { topic, .. } if identity::is_recreated(recreated, topic)),
    );
    other_partitions
}

/// Fails if a topic has another number of partitions and the operator did not give `--accept-partitions`, and if it was given without need.
///
/// `--yes` is not enough for this. `recover` cannot keep the order of a key's events when its later events go to another partition. The operator
/// can keep it, by waiting until the readers have read the topic to its end.
///
/// # Errors
/// [`Stop::PartitionsChanged`] or [`Stop::Config`].
pub(super) fn ensure_other_partitions_are_accepted(
    other_partitions: &[Stop],
    checkpoint: Option<&Checkpoint>,
    options: &RecoverOptions,
) -> Result<(), Stop> {
    match other_partitions.first() {
        Some(stop) if !options.accept_partitions => Err(with_advice_for_recover(stop.clone())),
        // A `recover` that was killed may have pinned the new numbers already, and the operator repeats the same command.
        None if options.accept_partitions
            && checkpoint.is_none_or(|checkpoint| checkpoint.state != State::Recovering) =>
        {
            Err(Stop::Config {
                what: "--accept-partitions: there is nothing of the kind to accept; leave it out".to_owned(),
            })
        }
        _ => Ok(()),
    }
}

/// The same stop, with advice for an operator who runs `recover`.
pub(super) fn with_advice_for_recover(stop: Stop) -> Stop {
    match stop {
        Stop::PartitionsChanged {
            topic,
            expected,
            found,
            cure: PARTITIONS_CURE,
        } => Stop::PartitionsChanged {
            topic,
            expected,
            found,
            cure: RECOVER_PARTITIONS_CURE,
        },
        other => other,
    }
}

/// Says in a few words what is lost, for the plan of `recover`; `None` if `recover` cannot repair it.
pub(super) fn describe_loss(stop: &Stop) -> Option<String> {
    Some(match stop {
        Stop::NotInitialised { slot, topic, .. } => {
            format!("there is neither a slot {slot} nor a checkpoint in topic {topic}")
        }
        Stop::SlotGone { slot, .. } => format!("slot {slot} is gone"),
        Stop::SlotInvalidated { slot, .. } => format!("slot {slot} was invalidated by Postgres"),
        Stop::SlotAhead { slot, slot_lsn, .. } => format!("slot {slot} stands at {slot_lsn}, ahead of the checkpoint"),
        Stop::CheckpointMissing { topic, .. } => format!("topic {topic} has no checkpoint of this relay"),
        Stop::CheckpointGarbled { offset, what, .. } => {
            format!("the last checkpoint, at offset {offset}, cannot be read ({what})")
        }
        Stop::CheckpointWentBack {
            offset,
            expected,
            found,
            ..
        } => format!("the checkpoint at offset {offset} went back to {found} from {expected}"),
        Stop::OtherCluster { expected, found, .. } => format!(
            "the database is in cluster {found}, and the checkpoint is from cluster {expected}: say yes only where this database is that one, moved or restored"
        ),
        Stop::OtherTimeline { expected, found, .. } => {
            format!(
                "the server is on timeline {found} instead of {expected}, and it is not proven that its slot has seen every event"
            )
        }
        Stop::ServerBehind { server, checkpoint } => format!(
            "the server's WAL ends at {server}, behind {checkpoint}, up to where events are published: it was restored from an older backup"
        ),
        Stop::PublicationChanged { publication, what } => {
            format!("publication {publication}: {what}; events may be in no stream")
        }
        Stop::RowsCountedOtherwise {
            commit_lsn, rows, then, ..
        } => {
            format!("the transaction at {commit_lsn} is published up to its row {rows}, counted with {then}")
        }
        Stop::TopicRecreated { topic, .. } => format!("topic {topic} was deleted and made anew"),
        Stop::TopicGone { topic, .. } => format!("topic {topic} was deleted"),
        Stop::ParkedRowsMissing { topic, expected, found } => {
            format!(
                "topic {topic} has {found} of {expected} parked rows; those that are lost there are published where they can be"
            )
        }
        Stop::PartitionsChanged {
            topic, expected, found, ..
        } => format!(
            "topic {topic} has {found} partitions and had {expected}: later events of a key go to another partition than its earlier ones, and a reader that has not read those yet may see them in another order"
        ),
        Stop::RecoveryUnfinished { slot } => format!("an earlier recover of slot {slot} did not finish"),
        _ => return None,
    })
}
