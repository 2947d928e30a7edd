//! Step 1 of `init --accept-…`: owns the slot and fences, so that from here on nobody else can publish or confirm.

use service::Shutdown;

use super::acceptance::Acceptance;
use crate::commands::fence::fence_relays_of_cluster;
use crate::commands::planted;
use crate::kafka::{NewTopic, Publisher, Reading};
use crate::outbox::publication::{Publication, create_publication, require_usable_publication};
use crate::outbox::slot::take_over_slot;
use crate::outbox::source;
use crate::process::stop::RelayError;
use crate::relay::survey::read_checkpoint_history;
use crate::settings::Config;
use crate::topics::checkpoint_topic::commit_checkpoint;
use crate::topics::destination;
use anyhow::Context;
use pg_replication::Connection;

/// How often we fence a relay of a former cluster that begins again each time.
const FENCE_TRIES: u32 = 10;

/// What step 1 has: the slot, if there is one that can be read, a producer that has fenced the earlier ones, and the checkpoints that those have written.
pub(super) struct OwnedAndFenced {
    pub(super) connection: Connection,
    /// The session that has the slot. `None`: there is no slot, or none that a relay could read.
    pub(super) slot_owner: Option<Connection>,
    pub(super) publisher: Publisher,
    pub(super) publication: Publication,
    /// The checkpoints, read after the last fence.
    pub(super) reading: Reading,
    pub(super) former: FormerClusters,
}

/// System identifiers of the clusters that the database was in before, whose relays are fenced.
pub(super) struct FormerClusters(Vec<String>);

impl OwnedAndFenced {
    /// Owns the slot, fences, and reads the checkpoints, in this order. `config` leads to the server of `connection`.
    ///
    /// # Errors
    /// A relay runs and does not let go of the slot, or the publication cannot be used; anything else is worth another try.
    pub(super) async fn take(
        config: &Config,
        mut connection: Connection,
        accepted: &[Acceptance],
        shutdown: &Shutdown,
    ) -> Result<Self, RelayError> {
        if accepted.contains(&Acceptance::Publication) {
            create_publication(&mut connection, config).await?;
        }
        let publication = require_usable_publication(&mut connection, config).await?;
        let system = source::identify_server(&mut connection).await?;
        // Without its topic there is no checkpoint to read or write, and it may be the topic that was deleted.
        destination::create_topics(config, &[NewTopic::compacted(&config.sink.checkpoint_topic)]).await?;
        let slot = source::find_slot(&mut connection, &config.source.slot).await?;
        let can_be_owned = slot.as_ref().is_some_and(|slot| {
            slot.plugin == "pgoutput" && slot.database == config.source.target.database && slot.wal_status != "lost"
        });
        // This comes before the fence: a relay that is fenced and still has the slot would begin again at once.
        let slot_owner = if can_be_owned {
            Some(take_over_slot(config).await?)
        } else {
            None
        };
        let publisher = fence_relays_of_cluster(config, &system.identifier, shutdown).await?;
        let (reading, former) = read_and_fence_former_clusters(config, accepted, &system.identifier, shutdown).await?;
        Ok(Self {
            connection,
            slot_owner,
            publisher,
            publication,
            reading,
            former,
        })
    }
}

/// Reads the checkpoints. Where another cluster is accepted, fences the relays of the clusters that wrote them, and reads again after each fence: a
/// relay that was not fenced yet may have written a later one meanwhile.
async fn read_and_fence_former_clusters(
    config: &Config,
    accepted: &[Acceptance],
    system_identifier: &str,
    shutdown: &Shutdown,
) -> Result<(Reading, FormerClusters), RelayError> {
    let accepts_cluster = accepted.contains(&Acceptance::Cluster);
    let mut former = Vec::new();
    loop {
        let reading = read_checkpoint_history(config.clone()).await?;
        let unfenced = reading
            .system_identifiers()
            .find(|cluster| *cluster != system_identifier && !former.contains(*cluster))
            .cloned();
        match unfenced {
            Some(cluster) if accepts_cluster && !planted::leaves_former_cluster_unfenced() => {
                drop(fence_relays_of_cluster(config, &cluster, shutdown).await?);
                former.push(cluster);
            }
            _ => return Ok((reading, FormerClusters(former))),
        }
    }
}

impl FormerClusters {
    /// Makes sure that the relays of the former clusters stop. `generation` is that of the new checkpoint.
    ///
    /// A relay that is fenced begins again at once, from the last checkpoint. If it is faster than this command, the last checkpoint is still one of its own
    /// cluster. So we fence each relay once more, and write the new checkpoint again by the producer that has fenced it. That write fails if the
    /// relay has begun again meanwhile. Once it succeeds, the relay's next start finds the checkpoint of another cluster, and stops.
    ///
    /// # Errors
    /// A relay begins again more often than [`FENCE_TRIES`]; anything else is worth another try.
    pub(super) async fn end_their_relays(
        &self,
        config: &Config,
        generation: u64,
        shutdown: &Shutdown,
    ) -> Result<(), RelayError> {
        if self.0.is_empty() {
            return Ok(());
        }
        let reading = read_checkpoint_history(config.clone()).await?;
        let written = reading
            .of_generation(generation)
            .context("the new checkpoint is not in its topic")?;
        for cluster in &self.0 {
            let mut tries = 1;
            loop {
                let mut publisher = fence_relays_of_cluster(config, cluster, shutdown).await?;
                match commit_checkpoint(&mut publisher, config, written).await {
                    Ok(()) => break,
                    Err(RelayError::Transient(_)) if tries < FENCE_TRIES => tries += 1,
                    Err(err) => return Err(err),
                }
            }
        }
        Ok(())
    }
}
