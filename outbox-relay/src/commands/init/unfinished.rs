//! What an `init` that did not finish has left for the `init` that goes on with it.

use std::collections::BTreeMap;

use anyhow::Context;

use super::OtherPartitions;
use crate::continuity::checkpoint::{Checkpoint, ExistingRowsProgress, Lineage, State};
use crate::continuity::parking_note::ParkingNote;
use crate::continuity::positions::highest_position;
use crate::kafka::partition_counts;
use crate::outbox::source::System;
use crate::process::stop::{RelayError, Stop};
use crate::settings::{Config, ExistingRows, InitOptions};
use crate::topics::identity;

/// What this `init` takes over from an earlier one. If there was none, everything is at its beginning.
#[derive(Debug)]
pub(super) struct CarriedOver {
    pub(super) lineage: Lineage,
    pub(super) generation: u64,
    /// The highest position that readers may have seen: see [`crate::continuity::positions`].
    pub(super) highest_position: Option<u64>,
    pub(super) parking: ParkingNote,
    /// Which rows are published.
    pub(super) progress: Option<ExistingRowsProgress>,
}

impl CarriedOver {
    /// `new_lineage` has the present server and publication, and no topics.
    ///
    /// # Errors
    /// [`Stop::PartitionsChanged`] if a topic has another number of partitions and that is refused. Any other error is worth another try.
    pub(super) async fn from_earlier_init(
        config: &Config,
        new_lineage: Lineage,
        unfinished: Option<&Checkpoint>,
        other_partitions: OtherPartitions,
    ) -> Result<Self, RelayError> {
        let Some(unfinished) = unfinished else {
            return Ok(Self {
                lineage: new_lineage,
                generation: 0,
                highest_position: None,
                parking: ParkingNote::default(),
                progress: None,
            });
        };
        // A topic that was made anew has lost the records that the earlier init published there. So it counts as a new topic.
        let recreated = identity::find_recreated_now(config, Some(unfinished)).await?;
        let mut known = unfinished.lineage.clone();
        identity::release_recreated(&mut known, &recreated);
        let (partitions, former_partitions) = match other_partitions {
            OtherPartitions::Refused => (
                ensure_partitions_are_as_pinned(config, &known).await?,
                known.former_partitions,
            ),
            OtherPartitions::Accepted => (BTreeMap::new(), known.all_partition_counts()),
        };
        let has_same_history = unfinished.lineage.timeline == new_lineage.timeline && recreated.is_empty();
        Ok(Self {
            lineage: Lineage {
                partitions,
                former_partitions,
                positions_raised_by: unfinished.lineage.positions_raised_by,
                ..new_lineage
            },
            generation: unfinished.generation,
            highest_position: Some(highest_position(unfinished)),
            parking: unfinished.parking.clone(),
            progress: progress_of(unfinished, has_same_history),
        })
    }
}

/// Whether an `init` of this cluster wrote the checkpoint and did not finish.
pub(super) fn is_unfinished(checkpoint: &Checkpoint, system: &System) -> bool {
    checkpoint.state == State::Initialising && checkpoint.lineage.system_identifier == system.identifier
}

/// Fails if the earlier `init` was told to skip the existing rows and this one is told to publish them. Rows that came after the earlier one may be published
/// already, and would come twice.
///
/// # Errors
/// [`Stop::Config`] names both ways to go on.
pub(super) fn ensure_same_choice(unfinished: &Checkpoint, options: &InitOptions) -> Result<(), Stop> {
    let skips = unfinished.begun.is_some_and(|begun| begun.skips_existing_rows);
    if skips && options.existing_rows != ExistingRows::Skip {
        return Err(Stop::Config {
            what: "--existing-rows: an earlier init began with `skip` and did not finish; go on with it by `outbox-relay init --existing-rows skip`; `outbox-relay replay` publishes chosen rows afterwards".to_owned(),
        });
    }
    Ok(())
}

/// Which rows the earlier init has published.
fn progress_of(unfinished: &Checkpoint, has_same_history: bool) -> Option<ExistingRowsProgress> {
    let mut progress = unfinished.existing_rows.clone()?;
    if !has_same_history {
        // In another history the same transaction ids may belong to other transactions, and a new topic has none of the records. So the ids say nothing, and
        // all these rows are looked up.
        progress.snapshot_xmin = 0;
    }
    Some(progress)
}

/// Returns the partition counts that the lineage pins. Fails if Kafka has other counts.
async fn ensure_partitions_are_as_pinned(
    config: &Config,
    known: &Lineage,
) -> Result<BTreeMap<String, i32>, RelayError> {
    let settings = config.sink.kafka.clone();
    let names: Vec<String> = known.partitions.keys().cloned().collect();
    let counts = tokio::task::spawn_blocking(move || partition_counts(&settings, &names))
        .await
        .context("metadata task")??;
    let mut pinned = known.clone();
    for topic in known.partitions.keys() {
        // A topic that does not exist any more counts as 0 partitions.
        pinned.pin(topic, counts.get(topic).copied().unwrap_or(0))?;
    }
    Ok(pinned.partitions)
}
