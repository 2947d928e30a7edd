//! Makes the slot, publishes the rows that were there before it, and writes the checkpoint that lets a relay begin.

use service::Shutdown;

use super::Initialised;
use super::pieces::ExistingRowsJob;
use crate::commands::failed_command;
use crate::continuity::checkpoint::{BegunInit, Checkpoint, ExistingRowsProgress, FORMAT, Lineage, State};
use crate::continuity::parking_note::ParkingNote;
use crate::continuity::positions::raise_above;
use crate::continuity::progress::Published;
use crate::intake::existing_rows::lsn_before;
use crate::kafka::Publisher;
use crate::outbox::slot::{Failover, NewSlot, create_slot};
use crate::outbox::source::System;
use crate::outbox::table::has_table;
use crate::process::faults;
use crate::process::stop::RelayError;
use crate::settings::{Config, ExistingRows, InitOptions};
use crate::topics::checkpoint_topic::commit_checkpoint;
use crate::topics::hanging_transaction::wait_until_nothing_is_open;
use crate::topics::identity;
use pg_replication::Connection;

/// Whoever has one may make a slot: no relay of this name can publish any more, and there is no slot.
pub(crate) struct FencedInit {
    pub(crate) connection: Connection,
    /// It has fenced all earlier publishers.
    pub(crate) publisher: Publisher,
    pub(crate) system: System,
    pub(crate) lineage: Lineage,
    pub(crate) generation: u64,
    /// The highest position that readers may have seen: see [`crate::continuity::positions`].
    pub(crate) highest_position: Option<u64>,
    pub(crate) parking: ParkingNote,
}

/// Makes the slot, publishes the rows that are there, and writes the checkpoint that is `running`. `progress` says which rows an earlier init has
/// published.
///
/// # Errors
/// If a row cannot be published, the error names it. In no case is a Kafka transaction left open.
pub(crate) async fn make_slot_and_publish_existing_rows(
    config: &Config,
    options: &InitOptions,
    fenced: FencedInit,
    progress: Option<ExistingRowsProgress>,
    shutdown: &Shutdown,
) -> Result<Initialised, RelayError> {
    let system_identifier = fenced.system.identifier.clone();
    wait_until_nothing_is_open(config, fenced.lineage.partitions.keys(), shutdown).await?;
    match make_and_publish(config, options, fenced, progress, shutdown).await {
        Ok(initialised) => Ok(initialised),
        Err(err) => Err(failed_command::end_failed_transaction(config, &system_identifier, err).await),
    }
}

/// 1. **Write a checkpoint that says `initialising`.** From here on the next `init` knows that the slot is its own to drop.
/// 2. **Make the slot.** Its snapshot is everything that the stream will not send.
/// 3. **Publish the rows of the snapshot**, with positions below the stream's.
/// 4. **Write a checkpoint that says `running`**, in one Kafka transaction with the last rows. If it came before them, a relay could begin without them.
async fn make_and_publish(
    config: &Config,
    options: &InitOptions,
    fenced: FencedInit,
    progress: Option<ExistingRowsProgress>,
    shutdown: &Shutdown,
) -> Result<Initialised, RelayError> {
    let FencedInit {
        mut connection,
        mut publisher,
        system,
        mut lineage,
        generation,
        highest_position,
        parking,
    } = fenced;
    // Step 1.
    identity::pin_all_ids(config, &mut lineage).await?;
    let mut checkpoint = Checkpoint {
        format: FORMAT,
        state: State::Initialising,
        lineage,
        published: Published {
            lsn: system.wal_end,
            partial: None,
        },
        newest_commit_us: None,
        incarnation: uuid::Uuid::new_v4().to_string(),
        generation,
        // Written again at once. Without this, a kill before the first piece would lose it.
        existing_rows: progress,
        begun: Some(BegunInit {
            skips_existing_rows: options.existing_rows == ExistingRows::Skip,
            highest_position,
        }),
        parking,
    };
    commit_checkpoint(&mut publisher, config, &checkpoint).await?;
    faults::point("init.begun")?;
    // Step 2. We look for the table before we make the slot: the snapshot ends when this session runs anything else.
    let has_table = has_table(&mut connection, config).await?;
    let failover = if options.failover { Failover::Yes } else { Failover::No };
    let NewSlot {
        consistent_point,
        exported_snapshot,
    } = create_slot(&mut connection, config, failover).await?;
    let raised_by = checkpoint.lineage.positions_raised_by;
    checkpoint.lineage.positions_raised_by = raise_above(highest_position, raised_by, lsn_before(consistent_point));
    checkpoint.published.lsn = consistent_point;
    faults::point("init.slot-made")?;
    // Step 3.
    let rows = match options.existing_rows {
        ExistingRows::Skip => 0,
        // Messages are not in a table. Those that were emitted before the slot cannot be found any more.
        ExistingRows::Publish if !has_table => 0,
        ExistingRows::Publish => {
            let job = ExistingRowsJob {
                config,
                exported_snapshot: &exported_snapshot,
                consistent_point,
                undecided: options.undecided,
                shutdown,
            };
            job.publish(&mut checkpoint, &mut publisher).await?
        }
    };
    // Step 4.
    checkpoint.state = State::Running;
    checkpoint.existing_rows = None;
    checkpoint.begun = None;
    faults::point("init.before-end")?;
    commit_checkpoint(&mut publisher, config, &checkpoint).await?;
    faults::point("init.ended")?;
    Ok(Initialised::Created {
        checkpoint: consistent_point,
        rows,
    })
}
