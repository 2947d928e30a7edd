//! Steps 2 to 6 of `recover`, which change something.
//!
//! After a kill before the last step the checkpoint says `recovering`. The next `recover` makes the slot anew and compares again: what was published
//! already is found in the topics.

use std::collections::BTreeMap;

use anyhow::Context;
use service::Shutdown;

use super::compare::{ComparedOutbox, compare_outbox_with_topics};
use super::mark::{Fenced, Marked, mark_as_recovering};
use super::plan::ensure_every_row_is_decided;
use super::publish::{RowsToPublish, publish_rows};
use super::scope::Scope;
use super::situation::Situation;
use crate::commands::failed_command;
use crate::commands::fence::fence_relays_of_cluster;
use crate::commands::planted;
use crate::continuity::checkpoint::{Checkpoint, Lineage, State};
use crate::continuity::positions::raise_above;
use crate::continuity::progress::Published;
use crate::intake::existing_rows::{ExistingRowsWriter, lsn_before};
use crate::intake::outbox_snapshot::OutboxSnapshot;
use crate::kafka::{NewTopic, Publisher};
use crate::outbox::slot::{Failover, NewSlot, create_slot, drop_slot, wait_until_slot_is_free};
use crate::outbox::source::{self, System};
use crate::parking::{behind::ParksBehind, send::send_entry};
use crate::process::faults;
use crate::process::stop::RelayError;
use crate::relay::keepalive::{UntilShutdown, keep_stream_alive_during};
use crate::settings::{Config, RecoverOptions};
use crate::topics::checkpoint_topic::commit_checkpoint;
use crate::topics::destination;
use crate::topics::identity;
use pg_replication::Lsn;
use pg_replication::{Connection, ReplicationStream};

/// A recovery to which the operator said yes.
pub(super) struct Recovery<'a> {
    pub(super) config: &'a Config,
    pub(super) options: &'a RecoverOptions,
    /// The moment of `--since` or `--since-position`, in milliseconds since 1970.
    pub(super) since_ms: Option<i64>,
    pub(super) shutdown: &'a Shutdown,
}

/// The new slot, which `stream` owns. `snapshot` has everything that the stream will not send.
struct SlotMadeAnew {
    stream: ReplicationStream,
    snapshot: OutboxSnapshot,
    consistent_point: Lsn,
}

/// How many rows were written, for the report to the operator.
struct RowsDone {
    published: u64,
    /// Rows that were parked, since an earlier row of their key is parked.
    parked: u64,
}

impl Recovery<'_> {
    /// 2. **Fence.** `init_transactions` ends the transactions that an earlier relay, or an earlier `recover`, left open. From here on nobody else writes to the
    ///    topics. A relay that has the slot would begin again at once, so we wait until the slot is free before.
    /// 3. **Write a checkpoint that says `recovering`**: see [`mark_as_recovering`].
    /// 4. **Make the slot anew, and own it**: see [`Recovery::make_slot_anew`].
    /// 5. **Compare again, and publish what is missing**: see [`Recovery::publish_missing`].
    /// 6. **Write a checkpoint that says `running`**: see [`Recovery::let_relays_go_on`].
    ///
    /// `planned` is what the comparison of step 1 found.
    ///
    /// # Errors
    /// A relay runs, or a row cannot be published; anything else is worth another try. In no case is a Kafka transaction left open.
    pub(super) async fn carry_out(
        &self,
        mut connection: Connection,
        planned: ComparedOutbox,
    ) -> Result<String, RelayError> {
        let config = self.config;
        faults::point("recover.planned")?;
        // Step 2. Without its topic there would be no checkpoint to write in step 3.
        wait_until_slot_is_free(&mut connection, config).await?;
        destination::create_topics(config, &[NewTopic::compacted(&config.sink.checkpoint_topic)]).await?;
        let system = source::identify_server(&mut connection).await?;
        let publisher = fence_relays_of_cluster(config, &system.identifier, self.shutdown).await?;
        let identifier = system.identifier.clone();
        match self.carry_out_fenced(connection, system, publisher, planned).await {
            Ok(report) => Ok(report),
            Err(err) => Err(failed_command::end_failed_transaction(config, &identifier, err).await),
        }
    }

    async fn carry_out_fenced(
        &self,
        mut connection: Connection,
        system: System,
        publisher: Publisher,
        planned: ComparedOutbox,
    ) -> Result<String, RelayError> {
        let config = self.config;
        // Step 3.
        let fenced = Fenced { publisher, system };
        let mut marked = mark_as_recovering(config, self.options, &mut connection, fenced, self.shutdown).await?;
        // Step 4.
        let SlotMadeAnew {
            mut stream,
            mut snapshot,
            consistent_point,
        } = self.make_slot_anew(connection, &marked.situation).await?;
        // Step 5.
        let mut lineage = marked.checkpoint.lineage.clone();
        let publishing = self.publish_missing(&mut marked, &mut lineage, &mut snapshot, consistent_point, planned);
        let mut shutdown = self.shutdown.clone();
        let outcome = keep_stream_alive_during(&mut stream, publishing, &mut shutdown).await?;
        let UntilShutdown::Done(rows) = outcome else {
            return Err(anyhow::anyhow!("told to stop; run recover again").into());
        };
        let rows = rows?;
        snapshot.close().await?;
        // Step 6.
        let checkpoint = self.let_relays_go_on(marked, lineage, consistent_point).await?;
        stream.close().await;
        tracing::info!(
            slot = config.source.slot.as_str(),
            rows = rows.published,
            checkpoint.lsn = %consistent_point,
            positions_raised_by = checkpoint.lineage.positions_raised_by,
            "recovered"
        );
        Ok(self.report(&rows, consistent_point))
    }

    /// Step 4. The new slot's snapshot has every row that its stream will not send. The slot is made anew even if only the checkpoint is broken: then nobody
    /// knows how much of the old slot's stream is published, and the comparison needs a snapshot that ends where a stream begins.
    ///
    /// 1. Drop the old slot, whose name the new one has.
    /// 2. Make the new one, which exports its snapshot.
    /// 3. Open that snapshot in another session. The session that exported it must run nothing before that.
    /// 4. Own the slot, so that a relay that starts meanwhile has to wait.
    async fn make_slot_anew(
        &self,
        mut connection: Connection,
        situation: &Situation,
    ) -> Result<SlotMadeAnew, RelayError> {
        let config = self.config;
        let was_failover_slot = situation.source.slot.as_ref().is_some_and(|slot| slot.is_failover);
        let failover = if self.options.failover || was_failover_slot {
            Failover::Yes
        } else {
            Failover::No
        };
        if situation.source.slot.is_some() {
            drop_slot(&mut connection, config)
                .await
                .context("cannot drop the slot that is to be made anew")?;
        }
        let NewSlot {
            consistent_point,
            exported_snapshot,
        } = create_slot(&mut connection, config, failover).await?;
        let names_of_detached_tables = situation.names_of_detached_tables.clone();
        let snapshot = OutboxSnapshot::open(config, Some(&exported_snapshot), names_of_detached_tables).await?;
        connection
            .start_replication(&config.source.slot, Lsn::INVALID, &config.source.publication)
            .await
            .context("the new slot is in use already; run recover again")?;
        Ok(SlotMadeAnew {
            stream: connection.into_stream(),
            snapshot,
            consistent_point,
        })
    }

    /// Step 5, in several Kafka transactions; the last rows stay in the open one.
    ///
    /// 1. Compare the new slot's snapshot with the topics, to their committed ends. The comparison of step 1 of `recover` may have missed what was
    ///    published or inserted since.
    /// 2. Raise the new positions, if they would not be above the published ones: see [`crate::continuity::positions`]. Each record has its
    ///    position in a header, so this comes before the first one.
    /// 3. Take published rows out of the parking topic. Only then do we know which keys have parked rows, behind which later rows have to wait.
    /// 4. Publish, in the order of the rows.
    async fn publish_missing(
        &self,
        marked: &mut Marked,
        lineage: &mut Lineage,
        snapshot: &mut OutboxSnapshot,
        consistent_point: Lsn,
        planned: ComparedOutbox,
    ) -> Result<RowsDone, RelayError> {
        let config = self.config;
        let scope = Scope::choose(snapshot, self.since_ms).await?;
        let recreated = &marked.situation.recreated;
        let compared = compare_outbox_with_topics(config, lineage, recreated, snapshot, scope, self.shutdown).await?;
        let compared = planted_comparison(planned, compared);
        ensure_every_row_is_decided(&compared.verdicts, self.options)?;

        let highest_position = compared.highest_published(&marked.situation);
        let raised_by = lineage.positions_raised_by;
        lineage.positions_raised_by = raise_above(highest_position, raised_by, lsn_before(consistent_point));
        marked.checkpoint.lineage.positions_raised_by = lineage.positions_raised_by;

        let ComparedOutbox {
            verdicts,
            parked,
            parked_in_table,
            parked_and_published,
            ..
        } = compared;
        for position in &parked_and_published {
            send_entry(&mut marked.publisher, config, *position, None).await?;
        }
        marked.checkpoint.parking.rows = parked.len() as u64;

        let to_publish = RowsToPublish::from_verdicts(verdicts, self.options.undecided);
        let mut writer = ExistingRowsWriter::new(config, lineage, &mut marked.publisher, consistent_point);
        writer.parks = ParksBehind::new(config, &parked, |id| parked_in_table.contains(id)).await?;
        publish_rows(config, snapshot, &to_publish, &mut writer, &mut marked.checkpoint).await?;
        let parked = writer.parks.as_ref().map_or(0, ParksBehind::parked);
        Ok(RowsDone {
            published: writer.rows - parked,
            parked,
        })
    }

    /// Step 6. Writes the checkpoint at the new slot's beginning, in one Kafka transaction with the last rows. If it came before them, a relay could go on
    /// without them.
    async fn let_relays_go_on(
        &self,
        marked: Marked,
        lineage: Lineage,
        consistent_point: Lsn,
    ) -> Result<Checkpoint, RelayError> {
        let config = self.config;
        let Marked {
            mut publisher,
            system,
            situation,
            mut checkpoint,
        } = marked;
        checkpoint.state = State::Running;
        // Within one generation positions only ascend, and the new position may lie below the old one.
        checkpoint.generation += 1;
        checkpoint.lineage = Lineage {
            partitions: lineage.partitions,
            former_partitions: lineage.former_partitions,
            topic_ids: lineage.topic_ids,
            positions_raised_by: lineage.positions_raised_by,
            ..source::new_lineage(config, &system, &situation.publication, BTreeMap::new())
        };
        checkpoint.published = Published {
            lsn: consistent_point,
            partial: None,
        };
        identity::pin_all_ids(config, &mut checkpoint.lineage).await?;
        commit_checkpoint(&mut publisher, config, &checkpoint).await?;
        Ok(checkpoint)
    }

    fn report(&self, rows: &RowsDone, consistent_point: Lsn) -> String {
        let RowsDone { published, parked } = rows;
        let behind_parked = match parked {
            0 => String::new(),
            parked => format!(", and {parked} are parked behind parked rows of their keys"),
        };
        format!(
            "slot {} is made anew; {published} rows that were missing are published{behind_parked}; the checkpoint is {consistent_point}\n",
            self.config.source.slot
        )
    }
}

/// The planted bug of a `recover` that publishes what it found before it fenced.
fn planted_comparison(planned: ComparedOutbox, compared: ComparedOutbox) -> ComparedOutbox {
    if planted::compares_before_fence() {
        return planned;
    }
    compared
}
