//! What `recover` finds before it changes anything: what the server says, and what the checkpoint topic says.

use std::collections::{BTreeMap, BTreeSet};

use super::loss::{ensure_other_partitions_are_accepted, find_losses, without_recreated_topics};
use crate::continuity::checkpoint::{Checkpoint, Lineage};
use crate::continuity::source::Source;
use crate::kafka::{Delivery, Reading, StoredCheckpoint};
use crate::outbox::partitions::names_of_detached_tables;
use crate::outbox::publication::{Publication, require_usable_publication};
use crate::outbox::source::{self, System};
use crate::parking::log::find_missing_parked_rows;
use crate::process::stop::{RelayError, Stop};
use crate::relay::survey::{ensure_no_existing_slot_publishes, read_checkpoint_history};
use crate::settings::{Config, RecoverOptions};
use crate::topics::identity;
use pg_replication::Connection;

/// The situation before anything is changed.
pub(super) struct Situation {
    /// Everything that is broken. `recover` can repair each of them. Empty only with `--compare-anyway`.
    pub(super) losses: Vec<Stop>,
    /// The last checkpoint. If it cannot be used, the furthest one that can be read.
    pub(super) known: Option<StoredCheckpoint>,
    /// The generation for the next checkpoint. It is above that of every checkpoint that can be read.
    pub(super) next_generation: u64,
    /// System identifiers of other clusters, whose relays may still run.
    pub(super) former_clusters: BTreeSet<String>,
    /// The topics that were deleted and made anew. They are among the losses.
    pub(super) recreated: Vec<Stop>,
    /// The topics with another number of partitions. If the operator accepts them, they are among the losses.
    pub(super) other_partitions: Vec<Stop>,
    pub(super) source: Source,
    pub(super) system: System,
    pub(super) publication: Publication,
    /// Tables that retention has detached from the outbox and not dropped yet: their rows are compared, too.
    pub(super) names_of_detached_tables: Vec<String>,
}

impl Situation {
    /// Reads everything. If the caller has not fenced, a relay may change it meanwhile.
    ///
    /// # Errors
    /// A [`Stop`] if there is nothing to recover or `recover` cannot repair it; anything else is worth another try.
    pub(super) async fn read(
        connection: &mut Connection,
        config: &Config,
        options: &RecoverOptions,
    ) -> Result<Self, RelayError> {
        let publication = require_usable_publication(connection, config).await?;
        // The slot, then the checkpoint, then the server: the order of `take_survey`, since a relay may be publishing meanwhile.
        let slot = source::find_slot(connection, &config.source.slot).await?;
        let reading = read_checkpoint_history(config.clone()).await?;
        let system = source::identify_server(connection).await?;
        let next_generation = reading.next_generation();
        // We need these even if the last checkpoint is of this cluster: a relay of another cluster may still run, and may write the next checkpoint.
        let former_clusters = reading
            .system_identifiers()
            .filter(|cluster| **cluster != system.identifier)
            .cloned()
            .collect();
        let (known, unreadable) = known_checkpoint(reading, config.sink.delivery);
        let source = source::describe_source(config, &system, slot, &publication);
        let checkpoint = known.as_ref().map(|stored| &stored.checkpoint);
        // A mistyped slot name looks like a slot that is lost together with its checkpoint.
        if checkpoint.is_none() && unreadable.is_none() && !options.another_slot {
            ensure_no_existing_slot_publishes(connection, config, &system, &source).await?;
        }
        let (other_partitions, recreated): (Vec<Stop>, Vec<Stop>) = identity::find_breaks_now(config, checkpoint)
            .await?
            .into_iter()
            .partition(|stop| matches!(stop, Stop::PartitionsChanged { .. }));
        let other_partitions = without_recreated_topics(other_partitions, &recreated);
        let parked_loss = match checkpoint {
            Some(checkpoint) => find_missing_parked_rows(config, checkpoint).await?,
            None => None,
        };
        let mut broken_topics: Vec<Stop> = recreated.iter().cloned().chain(parked_loss).collect();
        if options.accept_partitions {
            broken_topics.extend(other_partitions.iter().cloned());
        }
        let losses = find_losses(
            &source,
            checkpoint,
            unreadable,
            &broken_topics,
            config,
            options.compare_anyway,
        )?;
        ensure_other_partitions_are_accepted(&other_partitions, checkpoint, options)?;
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
            names_of_detached_tables: names_of_detached_tables(connection, config).await?,
        })
    }

    /// The checkpoint of [`Situation::known`].
    pub(super) fn checkpoint(&self) -> Option<&Checkpoint> {
        self.known.as_ref().map(|stored| &stored.checkpoint)
    }

    /// The lineage of the last checkpoint, even if it is broken: it knows the topics. Without a checkpoint no topic is pinned. If the operator accepts
    /// other numbers of partitions, those of now are pinned.
    pub(super) fn lineage_to_go_on_from(&self, config: &Config) -> Lineage {
        let mut lineage = match self.checkpoint() {
            Some(checkpoint) => Lineage {
                server_started_us: self.system.started_us,
                ..checkpoint.lineage.clone()
            },
            None => source::new_lineage(config, &self.system, &self.publication, BTreeMap::new()),
        };
        for stop in &self.other_partitions {
            if let Stop::PartitionsChanged { topic, found, .. } = stop {
                lineage.repin(topic, *found);
            }
        }
        lineage
    }
}

/// The checkpoint to use, and why the last one cannot be used, if that is so.
fn known_checkpoint(reading: Reading, delivery: Delivery) -> (Option<StoredCheckpoint>, Option<Stop>) {
    match reading.unusable {
        None => (reading.last, None),
        // Without Kafka transactions, a relay that was held up may write an older checkpoint after its successor's: see `Reading::into_usable`.
        Some(Stop::CheckpointWentBack { .. }) if delivery == Delivery::AtLeastOnce => (reading.furthest, None),
        Some(stop) => (reading.furthest, Some(stop)),
    }
}

#[cfg(test)]
mod tests {
    use super::known_checkpoint;
    use crate::continuity::checkpoint::{Checkpoint, tests::example};
    use crate::kafka::{Delivery, Reading, StoredCheckpoint};
    use crate::process::stop::Stop;
    use pg_replication::Lsn;

    fn stored(generation: u64, offset: i64) -> Option<StoredCheckpoint> {
        Some(StoredCheckpoint {
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
    fn where_the_last_checkpoint_is_no_good_the_furthest_is_what_is_known() {
        let reading = || Reading {
            last: stored(1, 2),
            furthest: stored(1, 1),
            unusable: went_back(),
        };
        let (known, unreadable) = known_checkpoint(reading(), Delivery::ExactlyOnce);
        assert_eq!((known.map(|stored| stored.offset), unreadable), (Some(1), went_back()));
        let (known, unreadable) = known_checkpoint(reading(), Delivery::AtLeastOnce);
        assert_eq!((known.map(|stored| stored.offset), unreadable), (Some(1), None));
    }
}
