//! What is broken, and what is still known: the source as it is, and what the checkpoint topic says.

use std::collections::BTreeSet;

use crate::commands::accept::read_checkpoints;
use crate::continuity::checkpoint::{Checkpoint, State};
use crate::continuity::lineage::{Source, breaks};
use crate::kafka::{Delivery, Found, Reading};
use crate::outbox::partitions::detached_tables;
use crate::outbox::source::{self, Publication, System};
use crate::parking::log::missing;
use crate::process::stop::{PARTITIONS_CURE, RECOVER_PARTITIONS_CURE, RelayError, Stop};
use crate::relay::startup::{self, names};
use crate::settings::{Config, RecoverOptions};
use crate::topics::identity;
use pg_replication::Connection;

/// What there is before anything is changed.
pub(super) struct Situation {
    /// Everything that is broken, the most telling first; `recover` makes up for each of them. Empty only with `--compare-anyway`.
    pub(super) losses: Vec<Stop>,
    /// The last checkpoint; where it cannot be gone on from, the furthest that can be read.
    pub(super) known: Option<Found>,
    /// Above the generation of every checkpoint that can be read.
    pub(super) next_generation: u64,
    /// System identifiers of other clusters, whose relays may still run.
    pub(super) former_clusters: BTreeSet<String>,
    /// Those of the losses that are topics which were deleted and made anew.
    pub(super) recreated: Vec<Stop>,
    /// Those of the losses that are other numbers of partitions, which the operator accepts.
    pub(super) other_partitions: Vec<Stop>,
    pub(super) source: Source,
    pub(super) system: System,
    pub(super) publication: Publication,
    /// Tables that retention has detached from the outbox and not dropped yet: their rows are compared, too.
    pub(super) detached_tables: Vec<String>,
}

impl Situation {
    /// Looks at everything, without owning anything.
    ///
    /// # Errors
    /// A [`Stop`] where there is nothing to recover, or where `recover` cannot help; anything else is worth another try.
    pub(super) async fn look(
        connection: &mut Connection,
        config: &Config,
        options: &RecoverOptions,
    ) -> Result<Self, RelayError> {
        let publication = source::usable_publication(connection, config).await?;
        // In the order of `survey`, since a relay may be publishing.
        let slot = source::slot(connection, &config.slot).await?;
        let reading = read_checkpoints(config.clone()).await?;
        let system = source::identify(connection).await?;
        let next_generation = next_generation(&reading);
        let former_clusters = former_clusters(&reading, &system);
        let (known, unreadable) = known_checkpoint(reading, config.delivery);
        let source = source::source(&system, &config.target.database, slot, &publication);
        let checkpoint = known.as_ref().map(|found| &found.checkpoint);
        // A slot with a letter wrong looks like one that is lost together with its checkpoint.
        if checkpoint.is_none() && unreadable.is_none() && !options.another_slot {
            startup::ensure_no_other_slot_can_publish(connection, config, &system, &source).await?;
        }
        let (other_partitions, recreated): (Vec<Stop>, Vec<Stop>) = identity::breaks_now(config, checkpoint)
            .await?
            .into_iter()
            .partition(|stop| matches!(stop, Stop::PartitionsChanged { .. }));
        let other_partitions = of_topics_that_stayed(other_partitions, &recreated);
        let parked_loss = match checkpoint {
            Some(checkpoint) => missing(config, checkpoint).await?,
            None => None,
        };
        let mut elsewhere: Vec<Stop> = recreated.iter().cloned().chain(parked_loss).collect();
        if options.accept_partitions {
            elsewhere.extend(other_partitions.iter().cloned());
        }
        let losses = losses(
            &source,
            checkpoint,
            unreadable,
            &elsewhere,
            config,
            options.compare_anyway,
        )?;
        partitions_are_accepted(&other_partitions, checkpoint, options)?;
        Ok(Self {
            losses,
            known,
            recreated,
            other_partitions,
            next_generation,
            former_clusters,
            source,
            system,
            publication,
            detached_tables: detached_tables(connection, config).await?,
        })
    }

    /// The checkpoint that is known, where there is one.
    pub(super) fn checkpoint(&self) -> Option<&Checkpoint> {
        self.known.as_ref().map(|found| &found.checkpoint)
    }
}

/// System identifiers of other clusters whose relays wrote what can be read: one of them may have gone on behind a checkpoint of this cluster.
fn former_clusters(reading: &Reading, system: &System) -> BTreeSet<String> {
    let readable = [&reading.last, &reading.furthest].into_iter().flatten();
    let clusters = readable.map(|found| found.checkpoint.lineage.system_identifier.clone());
    clusters.filter(|cluster| *cluster != system.identifier).collect()
}

fn next_generation(reading: &Reading) -> u64 {
    let readable = [&reading.last, &reading.furthest].into_iter().flatten();
    readable.map(|found| found.checkpoint.generation).max().unwrap_or(0) + 1
}

/// The checkpoint that says most, and why it is not to be gone on from.
fn known_checkpoint(reading: Reading, delivery: Delivery) -> (Option<Found>, Option<Stop>) {
    match reading.trouble {
        None => (reading.last, None),
        // Without transactions a relay that was held up writes an older one behind its successor's, see `Reading::checkpoint`.
        Some(Stop::CheckpointWentBack { .. }) if delivery == Delivery::AtLeastOnce => (reading.furthest, None),
        Some(stop) => (reading.furthest, Some(stop)),
    }
}

/// Everything that is broken: the source, and what was found in topics other than the checkpoints', `elsewhere`.
fn losses(
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
            slot: config.slot.clone(),
            database: config.target.database.clone(),
            topic: config.checkpoint_topic.clone(),
        });
    }
    let is_unreadable = unreadable.is_some();
    let without_checkpoint = |stop: &Stop| matches!(stop, Stop::CheckpointMissing { .. } | Stop::NotInitialised { .. });
    let broken = breaks(source, checkpoint, names(config)).into_iter();
    let losses: Vec<Stop> = unreadable
        .into_iter()
        // Where the checkpoint cannot be read, that it is missing is the same thing once more.
        .chain(broken.filter(|stop| !(is_unreadable && without_checkpoint(stop))))
        .chain(elsewhere.iter().cloned())
        .collect();
    if let Some(stop) = losses.iter().find(|stop| describe(stop).is_none()) {
        return Err(stop.clone());
    }
    match checkpoint {
        Some(checkpoint) if losses.is_empty() && !compare_anyway => Err(Stop::NothingToRecover {
            slot: config.slot.clone(),
            checkpoint: checkpoint.published.lsn,
        }),
        _ => Ok(losses),
    }
}

/// Of topics that were made anew nothing is known any more, their numbers of partitions included.
fn of_topics_that_stayed(mut other_partitions: Vec<Stop>, recreated: &[Stop]) -> Vec<Stop> {
    other_partitions.retain(
        |stop| !matches!(stop, Stop::PartitionsChanged { topic, .. } if identity::is_recreated(recreated, topic)),
    );
    other_partitions
}

/// `recover` makes up for what was lost, and the order of a key's events over another number of partitions is not among that: `--yes` does not stand for
/// it, and the operator can let the readers come to the end of the topic first.
fn partitions_are_accepted(
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
pub(super) fn describe(stop: &Stop) -> Option<String> {
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

#[cfg(test)]
mod tests {
    use super::{known_checkpoint, next_generation};
    use crate::continuity::checkpoint::{Checkpoint, tests::example};
    use crate::kafka::{Delivery, Found, Reading};
    use crate::process::stop::Stop;
    use pg_replication::Lsn;

    fn found(generation: u64, offset: i64) -> Option<Found> {
        Some(Found {
            checkpoint: Checkpoint {
                generation,
                ..example()
            },
            offset,
            written_ms: None,
        })
    }

    fn went_back() -> Option<Stop> {
        Some(Stop::CheckpointWentBack {
            key: String::new(),
            topic: String::new(),
            offset: 2,
            expected: Lsn(2),
            found: Lsn(1),
        })
    }

    #[test]
    fn the_next_generation_is_above_every_one_that_can_be_read() {
        assert_eq!(next_generation(&Reading::default()), 1);
        let reading = Reading {
            last: found(2, 2),
            furthest: found(4, 1),
            trouble: went_back(),
        };
        assert_eq!(next_generation(&reading), 5);
    }

    #[test]
    fn where_the_last_checkpoint_is_no_good_the_furthest_is_what_is_known() {
        let reading = || Reading {
            last: found(1, 2),
            furthest: found(1, 1),
            trouble: went_back(),
        };
        let (known, unreadable) = known_checkpoint(reading(), Delivery::ExactlyOnce);
        assert_eq!((known.map(|found| found.offset), unreadable), (Some(1), went_back()));
        let (known, unreadable) = known_checkpoint(reading(), Delivery::AtLeastOnce);
        assert_eq!((known.map(|found| found.offset), unreadable), (Some(1), None));
    }
}
