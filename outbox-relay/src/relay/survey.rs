//! Reads slot, checkpoint and server without owning anything. A relay may be publishing meanwhile.

use std::collections::BTreeMap;

use anyhow::Context;

use crate::continuity::checkpoint::Checkpoint;
use crate::continuity::other_relays::ensure_no_other_slot_publishes_outbox;
use crate::continuity::source::{Slot, Source};
use crate::kafka::{ReadFrom, Reading, StoredCheckpoint};
use crate::outbox::publication::Publication;
use crate::outbox::source::{self, System};
use crate::process::stop::{RelayError, Stop};
use crate::settings::Config;
use pg_replication::Connection;

/// What is there while another relay may be publishing.
pub(crate) struct Survey {
    pub(crate) slot: Option<Slot>,
    pub(crate) stored: Option<StoredCheckpoint>,
    pub(crate) system: System,
}

/// Reads the slot, then the checkpoint, then the server.
///
/// The order matters. While a relay runs, the slot's confirmed position is never above the checkpoint, and the checkpoint is never above the end of the
/// WAL. All three only grow. So what we read first is never above what we read later. In another order the slot of a healthy relay could look as if it
/// were ahead of the checkpoint, or the server as if it had lost the end of its WAL.
///
/// # Errors
/// A checkpoint that cannot be read; anything else is worth another try.
pub(crate) async fn take_survey(connection: &mut Connection, config: &Config) -> Result<Survey, RelayError> {
    let slot = source::find_slot(connection, &config.source.slot).await?;
    let stored = read_last_checkpoint(config.clone()).await?;
    let system = source::identify_server(connection).await?;
    Ok(Survey { slot, stored, system })
}

/// Reads the last checkpoint. Unless the caller has fenced, a relay may still write a later one.
///
/// # Errors
/// As [`crate::kafka::CheckpointLog::last`].
pub(crate) async fn read_last_checkpoint(config: Config) -> Result<Option<StoredCheckpoint>, RelayError> {
    tokio::task::spawn_blocking(move || {
        let log = config.checkpoint_log();
        log.last(&config.checkpoint_key(), config.sink.delivery, &|| false)
    })
    .await
    .context("checkpoint task")?
}

/// Reads all that the checkpoint topic holds for this relay. As for [`read_last_checkpoint`], only a caller that has fenced reads the end of it.
///
/// # Errors
/// Worth another try.
pub(crate) async fn read_checkpoint_history(config: Config) -> Result<Reading, RelayError> {
    tokio::task::spawn_blocking(move || {
        let log = config.checkpoint_log();
        log.read(&config.checkpoint_key(), ReadFrom::Beginning, &|| false)
    })
    .await
    .context("checkpoint task")?
}

/// Reads the checkpoints of all relays that share the topic. Fails where one of them, of another slot, publishes this outbox.
///
/// # Errors
/// [`Stop::PublishedByAnotherSlot`]; anything else is worth another try.
pub(crate) async fn ensure_no_other_slot_publishes(
    config: &Config,
    system: &System,
    publication: &Publication,
) -> Result<(), RelayError> {
    let checkpoints = read_checkpoints_of_all_relays(config).await?;
    Ok(ensure_none_is_of_this_outbox(
        config,
        system,
        publication.outbox.as_deref(),
        &checkpoints,
    )?)
}

/// As [`ensure_no_other_slot_publishes`], but counts only slots that this database still has.
///
/// A slot that is gone publishes nothing. If another database has a slot of that name by now, its relay has another checkpoint key.
///
/// # Errors
/// [`Stop::PublishedByAnotherSlot`]; anything else is worth another try.
pub(crate) async fn ensure_no_existing_slot_publishes(
    connection: &mut Connection,
    config: &Config,
    system: &System,
    source: &Source,
) -> Result<(), RelayError> {
    let mut of_existing_slots = BTreeMap::new();
    for (key, checkpoint) in read_checkpoints_of_all_relays(config).await? {
        let slot = source::find_slot(connection, &checkpoint.lineage.slot).await?;
        if slot.is_some_and(|slot| slot.database == config.source.target.database) {
            of_existing_slots.insert(key, checkpoint);
        }
    }
    Ok(ensure_none_is_of_this_outbox(
        config,
        system,
        source.outbox.as_deref(),
        &of_existing_slots,
    )?)
}

fn ensure_none_is_of_this_outbox(
    config: &Config,
    system: &System,
    outbox: Option<&str>,
    checkpoints: &BTreeMap<String, Checkpoint>,
) -> Result<(), Stop> {
    ensure_no_other_slot_publishes_outbox(
        outbox,
        &system.identifier,
        &config.source.target.database,
        checkpoints,
        config.names_for_messages(),
    )
}

async fn read_checkpoints_of_all_relays(config: &Config) -> Result<BTreeMap<String, Checkpoint>, RelayError> {
    let config = config.clone();
    tokio::task::spawn_blocking(move || {
        let log = config.checkpoint_log();
        log.last_of_each_key(&|| false)
    })
    .await
    .context("checkpoint task")?
}
