//! What an init that did not finish has left for the one that goes on.

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

/// What the init that goes on has to know. Where there was no earlier one, everything is at its beginning.
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
    /// `now` is the lineage of server and publication as they are now, without topics.
    ///
    /// # Errors
    /// [`Stop::PartitionsChanged`] where a topic has other partitions and that is refused; anything else is worth another try.
    pub(super) async fn from_earlier_init(
        config: &Config,
        now: Lineage,
        unfinished: Option<&Checkpoint>,
        other_partitions: OtherPartitions,
    ) -> Result<Self, RelayError> {
        let Some(unfinished) = unfinished else {
            return Ok(Self {
                lineage: now,
                generation: 0,
                highest_position: None,
                parking: ParkingNote::default(),
                progress: None,
            });
        };
        // What had been published to topics that were made anew is gone, so they are pinned as they are now.
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
        let has_same_history = unfinished.lineage.timeline == now.timeline && recreated.is_empty();
        Ok(Self {
            lineage: Lineage {
                partitions,
                former_partitions,
                positions_raised_by: unfinished.lineage.positions_raised_by,
                ..now
            },
            generation: unfinished.generation,
            highest_position: Some(highest_position(unfinished)),
            parking: unfinished.parking.clone(),
            progress: progress_of(unfinished, has_same_history),
        })
    }
}

/// Whether the checkpoint is that of an init of this cluster that did not come to its end.
pub(super) fn is_unfinished(checkpoint: &Checkpoint, system: &System) -> bool {
    checkpoint.state == State::Initialising && checkpoint.lineage.system_identifier == system.identifier
}

/// Fails where the earlier init was to leave the existing rows, and this one is to publish them: rows that come later may be published already.
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
        // Another history may have given the same transaction ids to others, and another topic has none of the records: no id tells anything, and
        // all these rows are looked up.
        progress.snapshot_xmin = 0;
    }
    Some(progress)
}

/// Returns the partition counts that the lineage pins, where Kafka has the same ones.
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
        // A topic that is gone has no partitions.
        pinned.pin(topic, counts.get(topic).copied().unwrap_or(0))?;
    }
    Ok(pinned.partitions)
}
