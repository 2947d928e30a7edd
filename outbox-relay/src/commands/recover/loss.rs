//! What `recover` makes up for, and what it cannot help with.

use crate::continuity::checkpoint::{Checkpoint, State};
use crate::continuity::lineage::find_breaks;
use crate::continuity::source::Source;
use crate::process::stop::{PARTITIONS_CURE, RECOVER_PARTITIONS_CURE, Stop};
use crate::settings::{Config, RecoverOptions};
use crate::topics::identity;

/// Everything that is broken, the most telling first: the source, and what was found in topics other than the checkpoints', `elsewhere`.
/// `unreadable` says why the last checkpoint cannot be gone on from.
///
/// # Errors
/// The [`Stop`] that `recover` cannot help with, or [`Stop::NothingToRecover`].
pub(super) fn find_losses(
    source: &Source,
    checkpoint: Option<&Checkpoint>,
    unreadable: Option<Stop>,
    elsewhere: &[Stop],
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
    let without_checkpoint = |stop: &Stop| matches!(stop, Stop::CheckpointMissing { .. } | Stop::NotInitialised { .. });
    let broken = find_breaks(source, checkpoint, config.names_for_messages()).into_iter();
    let losses: Vec<Stop> = unreadable
        .into_iter()
        // Where the checkpoint cannot be read, that it is missing is the same thing once more.
        .chain(broken.filter(|stop| !(is_unreadable && without_checkpoint(stop))))
        .chain(elsewhere.iter().cloned())
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

/// Leaves out the topics that were made anew: nothing is known of them any more, their numbers of partitions included.
pub(super) fn without_recreated_topics(mut other_partitions: Vec<Stop>, recreated: &[Stop]) -> Vec<Stop> {
    other_partitions.retain(
        |stop| !matches!(stop, Stop::PartitionsChanged { topic, .. } if identity::is_recreated(recreated, topic)),
    );
    other_partitions
}

/// Fails for other numbers of partitions that the operator did not accept, and for an acceptance of what is not there.
///
/// `recover` makes up for what was lost, and the order of a key's events over another number of partitions is not among that: `--yes` does not stand for
/// it, and the operator can let the readers come to the end of the topic first.
///
/// # Errors
/// [`Stop::PartitionsChanged`] or [`Stop::Config`].
pub(super) fn ensure_other_partitions_are_accepted(
    other_partitions: &[Stop],
    checkpoint: Option<&Checkpoint>,
    options: &RecoverOptions,
) -> Result<(), Stop> {
    match other_partitions.first() {
        Some(stop) if !options.accept_partitions => Err(named_for_recover(stop.clone())),
        // One that was killed may have pinned them, and the same command goes on.
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

/// The stop with the command that goes on where `recover` met it.
pub(super) fn named_for_recover(stop: Stop) -> Stop {
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

/// In a few words, what `recover` makes up for; `None` for what it cannot help with.
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
