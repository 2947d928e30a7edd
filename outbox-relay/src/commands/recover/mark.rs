//! Step 3 of `recover`: a checkpoint that says `recovering`.

use service::Shutdown;

use super::situation::Situation;
use crate::commands::fence::fence_relays_of_cluster;
use crate::commands::planted;
use crate::continuity::checkpoint::{Checkpoint, FORMAT, State};
use crate::continuity::progress::Published;
use crate::kafka::Publisher;
use crate::outbox::source::System;
use crate::parking::log::count_parked_rows;
use crate::process::stop::RelayError;
use crate::settings::{Config, RecoverOptions};
use crate::topics::checkpoint_topic::commit_checkpoint;
use pg_replication::Connection;

/// What step 2 leaves: nobody else writes to the topics.
pub(super) struct Fenced {
    pub(super) publisher: Publisher,
    pub(super) system: System,
}

/// What step 3 leaves: no relay goes on until the last step is done.
pub(super) struct Marked {
    pub(super) publisher: Publisher,
    pub(super) system: System,
    /// As found after the fence.
    pub(super) situation: Situation,
    /// The checkpoint that says `recovering`.
    pub(super) checkpoint: Checkpoint,
}

/// Writes the checkpoint that says `recovering`. It is of the next generation, so it counts even if its position is lower. From then on a relay that starts stops.
///
/// 1. Look again. Before the fence an earlier relay could still have committed; only what is found now counts.
/// 2. Write the checkpoint.
/// 3. Fence the relays of the cluster that the database was moved from. If such a relay starts again, it finds the checkpoint of step 2, and stops. If we
///    fenced it before step 2, it could start again in between.
///
/// # Errors
/// Nothing is to be recovered any more; anything else is worth another try.
pub(super) async fn mark_as_recovering(
    config: &Config,
    options: &RecoverOptions,
    connection: &mut Connection,
    fenced: Fenced,
    shutdown: &Shutdown,
) -> Result<Marked, RelayError> {
    let Fenced { mut publisher, system } = fenced;
    let situation = Situation::read(connection, config, options).await?;
    let parking = count_parked_rows(config, situation.checkpoint()).await?;
    let checkpoint = Checkpoint {
        format: FORMAT,
        state: State::Recovering,
        // Still the old lineage: if this `recover` is killed here, the next one must know where the records came from.
        lineage: situation.lineage_to_go_on_from(config),
        published: situation
            .checkpoint()
            .map_or_else(Published::default, |checkpoint| checkpoint.published),
        newest_commit_us: None,
        incarnation: uuid::Uuid::new_v4().to_string(),
        generation: situation.next_generation,
        existing_rows: None,
        begun: None,
        parking,
    };
    commit_checkpoint(&mut publisher, config, &checkpoint).await?;
    for former in &situation.former_clusters {
        if planted::leaves_former_cluster_unfenced() {
            continue;
        }
        drop(fence_relays_of_cluster(config, former, shutdown).await?);
        tracing::info!(system_identifier = former, "fenced the producers of the former cluster");
    }
    Ok(Marked {
        publisher,
        system,
        situation,
        checkpoint,
    })
}
