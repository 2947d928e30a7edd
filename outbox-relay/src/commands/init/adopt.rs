//! `init --adopt-slot`: goes on with a slot that something else has read.

use anyhow::Context;
use service::Shutdown;

use super::Initialised;
use crate::commands::fence::fence_relays_of_cluster;
use crate::continuity::checkpoint::{Checkpoint, FORMAT, Lineage, State};
use crate::continuity::progress::Published;
use crate::continuity::source::{Slot, ensure_slot_is_usable};
use crate::outbox::slot::take_over_slot;
use crate::outbox::source::{self, System};
use crate::parking::log::count_parked_rows;
use crate::process::stop::RelayError;
use crate::settings::Config;
use crate::topics::checkpoint_topic::commit_checkpoint;
use crate::topics::compaction;
use crate::topics::identity;
use pg_replication::{Connection, Mode};

/// Writes the first checkpoint, at the slot's confirmed position.
///
/// # Errors
/// A relay cannot read the slot, or somebody reads it now; anything else is worth another try.
pub(super) async fn adopt(
    config: &Config,
    system: &System,
    slot: Slot,
    mut lineage: Lineage,
    shutdown: &Shutdown,
) -> Result<Initialised, RelayError> {
    ensure_slot_is_usable(&slot, &config.source.slot, &config.source.target.database)?;
    compaction::ensure_checkpoint_topic_keeps_its_last_record(config).await?;
    // Owned until the checkpoint is written: nobody may move the slot meanwhile. Fails where the slot is active.
    let owner = take_over_slot(config).await?;
    // Its position is read again, since it may have moved before it was owned. The session that owns it streams, so another session asks.
    let mut connection = Connection::open(&config.source.target, Mode::Replication).await?;
    let owned_slot = source::find_slot(&mut connection, &config.source.slot)
        .await?
        .context("the slot vanished")?;
    let mut publisher = fence_relays_of_cluster(config, &system.identifier, shutdown).await?;
    identity::pin_all_ids(config, &mut lineage).await?;
    let checkpoint = Checkpoint {
        format: FORMAT,
        state: State::Running,
        lineage,
        published: Published {
            lsn: owned_slot.confirmed,
            partial: None,
        },
        newest_commit_us: None,
        incarnation: uuid::Uuid::new_v4().to_string(),
        generation: 0,
        existing_rows: None,
        begun: None,
        // Rows may be parked from an earlier life of the slot, whose checkpoint is lost.
        parking: count_parked_rows(config, None).await?,
    };
    commit_checkpoint(&mut publisher, config, &checkpoint).await?;
    tracing::warn!(
        slot = config.source.slot.as_str(),
        checkpoint.new_lsn = %owned_slot.confirmed,
        "an operator hands over an existing slot: the relay goes on from its confirmed position"
    );
    owner.into_stream().close().await;
    Ok(Initialised::Adopted {
        checkpoint: owned_slot.confirmed,
    })
}
