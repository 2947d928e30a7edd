//! `recover`: goes on where the checkpoint, the slot or the server does not continue the other two any more, from the rows that are still in
//! the outbox.
//!
//! The order of its steps is what makes it safe to kill at any moment and to run again:
//!
//! 1. **Look, compare, ask.** Nothing is changed before the operator has seen what will be done, and said yes.
//! 2. **Fence.** `init_transactions` ends what an earlier relay, or an earlier `recover`, left open; from here on the topics hold still.
//! 3. **Write a checkpoint that says `recovering`**, of the next generation, so that it counts whatever position it has: no relay goes on from
//!    the new slot before it is complete. Where the database was moved, only now are the producers of the former cluster fenced. A relay that
//!    still runs there and starts again finds this checkpoint, and stops; fenced before, it could have started again in between.
//! 4. **Make the slot anew, and own it.** Its snapshot is everything that the stream will not send. Owning it keeps a relay that starts meanwhile
//!    waiting. That is done also where the slot is good and the checkpoint is what is broken: how much of what the slot would send is
//!    published already is not known then, and the comparison needs a snapshot that ends where a stream begins.
//! 5. **Compare again**, in that snapshot, with the topics to their committed ends, and publish what is missing, in several Kafka transactions.
//!    The new positions are raised where they would not be above the published ones, see [`crate::continuity::positions`].
//! 6. **Write a checkpoint that says `running`**, at the slot's beginning, with the last rows.
//!
//! After a kill before step 6 the checkpoint is `recovering`, and the next `recover` makes the slot anew and compares again: what was published
//! already is found in the topics.

mod compare;
mod loss;
mod plan;
mod publish;
mod scope;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use service::Shutdown;
use tokio::time::{Instant, sleep};

use self::compare::{ComparedOutbox, compare_outbox_with_topics};
use self::loss::{Situation, named_for_recover};
use self::plan::{ask_operator_to_confirm, ensure_every_row_is_decided, print_plan};
use self::publish::{RowsToPublish, publish_rows};
use self::scope::{Scope, ensure_is_published, oldest_row_ms, since_ms};
use crate::commands::failed_command;
use crate::commands::init::{self, commit, create_slot, fence};
use crate::continuity::checkpoint::{Checkpoint, FORMAT, Lineage, State};
use crate::continuity::parking_note::ParkingNote;
use crate::continuity::positions::{highest_position, raise_above};
use crate::continuity::progress::Published;
use crate::intake::existing_rows::{ExistingRowsWriter, OutboxSnapshot, lsn_before};
use crate::kafka::{NewTopic, Publisher};
use crate::outbox::source::{self, System};
use crate::outbox::standby;
use crate::parking::{behind::ParksBehind, log::counted, send::send_entry};
use crate::process::faults::{self, Bug};
use crate::process::stop::{RelayError, Stop};
use crate::relay::startup::while_answering;
use crate::settings::{Config, RecoverOptions};
use crate::topics::destination;
use crate::topics::identity;
use pg_replication::Lsn;
use pg_replication::{Connection, Mode};

/// How long the server may take to set a slot free whose reader has ended.
const RELEASE_PATIENCE: Duration = Duration::from_secs(10);

/// Does everything; what it returns is for a person.
///
/// # Errors
/// A [`crate::process::stop::Stop`] where there is nothing to recover, where it cannot be done, or where nobody said yes; anything else is worth another try.
pub async fn recover(config: &Config, options: &RecoverOptions, shutdown: &Shutdown) -> Result<String, RelayError> {
    let done = look_ask_and_carry_out(config, options, shutdown).await;
    done.map_err(|err| match err {
        // The topic may also have come by partitions while this was at work.
        RelayError::Stop(stop) => named_for_recover(stop).into(),
        transient => transient,
    })
}

/// Steps 1 to 6.
async fn look_ask_and_carry_out(
    config: &Config,
    options: &RecoverOptions,
    shutdown: &Shutdown,
) -> Result<String, RelayError> {
    let mut connection = Connection::open(&config.target, Mode::Replication).await?;
    let config = &config.pinned_to(&mut connection).await?;
    let since_ms = since_ms(&mut connection, options).await?;
    let situation = Situation::look(&mut connection, config, options).await?;
    let mut snapshot = OutboxSnapshot::open(config, None, situation.detached_tables.clone()).await?;
    let oldest_row_ms = oldest_row_ms(&mut snapshot).await?;
    let scope = Scope::of(&mut snapshot, since_ms).await?;
    let mut lineage = lineage_to_go_on_from(config, &situation);
    let compared = compare_outbox_with_topics(
        config,
        &mut lineage,
        &situation.recreated,
        &mut snapshot,
        scope,
        shutdown,
    )
    .await?;
    snapshot.close().await?;
    ensure_is_published(options, highest_published(&compared, &situation))?;
    print_plan(config, options, &situation, &compared, oldest_row_ms)?;
    ensure_every_row_is_decided(&compared.verdicts, options)?;
    ask_operator_to_confirm(options).await?;
    let topics = lineage.partitions.keys().chain([&config.parking_topic]);
    destination::learn_batch_limits(config, topics).await;
    carry_out(config, options, since_ms, connection, compared, shutdown).await
}

/// The lineage that the last checkpoint pinned, also where it is broken: it knows the topics. Without one, nothing is pinned yet. Numbers of partitions
/// are those of now, where the operator accepts them.
fn lineage_to_go_on_from(config: &Config, situation: &Situation) -> Lineage {
    let known = situation.checkpoint().map(|checkpoint| Lineage {
        server_started_us: situation.system.started_us,
        ..checkpoint.lineage.clone()
    });
    let mut lineage =
        known.unwrap_or_else(|| source::lineage(config, &situation.system, &situation.publication, BTreeMap::new()));
    for stop in &situation.other_partitions {
        if let Stop::PartitionsChanged { topic, found, .. } = stop {
            lineage.repin(topic, *found);
        }
    }
    lineage
}

/// The highest position that is known to be published, as readers see it.
fn highest_published(compared: &ComparedOutbox, situation: &Situation) -> Option<u64> {
    compared
        .highest_position
        .max(situation.checkpoint().map(highest_position))
}

/// Steps 2 to 6. `planned` is what the comparison of step 1 found.
async fn carry_out(
    config: &Config,
    options: &RecoverOptions,
    since_ms: Option<i64>,
    mut connection: Connection,
    planned: ComparedOutbox,
    shutdown: &Shutdown,
) -> Result<String, RelayError> {
    faults::point("recover.planned")?;
    wait_until_slot_is_free(&mut connection, config).await?;
    destination::create(config, &[NewTopic::compacted(&config.checkpoint_topic)]).await?;
    let system = source::identify(&mut connection).await?;
    let publisher = fence(config, &system, shutdown).await?;
    let identifier = system.identifier.clone();
    match carry_out_fenced(
        config, options, since_ms, connection, system, publisher, planned, shutdown,
    )
    .await
    {
        Ok(done) => Ok(done),
        Err(err) => Err(failed_command::ended(config, &identifier, err).await),
    }
}

/// Steps 3 to 6.
#[expect(clippy::too_many_arguments, reason = "each is another part of one job")]
async fn carry_out_fenced(
    config: &Config,
    options: &RecoverOptions,
    since_ms: Option<i64>,
    mut connection: Connection,
    system: System,
    mut publisher: Publisher,
    planned: ComparedOutbox,
    shutdown: &Shutdown,
) -> Result<String, RelayError> {
    // Before the fence an earlier relay could still have committed; only what is found now counts.
    let situation = Situation::look(&mut connection, config, options).await?;
    let parking = counted(config, situation.checkpoint()).await?;
    let mut checkpoint = recovering_checkpoint(config, &situation, parking);
    commit(&mut publisher, config, &checkpoint).await?;
    for former in &situation.former_clusters {
        if !faults::is_planted(Bug::LeaveFormerClusterUnfenced) {
            fence_former_cluster(config, &system, former, shutdown).await?;
        }
    }
    let was_failover_slot = situation.source.slot.as_ref().is_some_and(|slot| slot.is_failover);
    if situation.source.slot.is_some() {
        init::drop_slot(&mut connection, config)
            .await
            .context("cannot drop the slot that is to be made anew")?;
    }
    let failover = options.failover || was_failover_slot;
    let (consistent_point, exported) = create_slot(&mut connection, config, failover).await?;
    let mut snapshot = OutboxSnapshot::open(config, Some(&exported), situation.detached_tables.clone()).await?;
    // The session that exported the snapshot may go on now that another one has it.
    connection
        .start_replication(&config.slot, Lsn::INVALID, &config.publication)
        .await
        .context("the new slot is in use already; run recover again")?;
    let mut stream = connection.into_stream();
    let mut lineage = checkpoint.lineage.clone();
    let publishing = async {
        let scope = Scope::of(&mut snapshot, since_ms).await?;
        let mut compared = compare_outbox_with_topics(
            config,
            &mut lineage,
            &situation.recreated,
            &mut snapshot,
            scope,
            shutdown,
        )
        .await?;
        if faults::is_planted(Bug::CompareBeforeFence) {
            compared = planned;
        }
        ensure_every_row_is_decided(&compared.verdicts, options)?;
        let highest_position = highest_published(&compared, &situation);
        let raised_by = lineage.positions_raised_by;
        lineage.positions_raised_by = raise_above(highest_position, raised_by, lsn_before(consistent_point));
        checkpoint.lineage.positions_raised_by = lineage.positions_raised_by;
        let ComparedOutbox {
            verdicts,
            parked,
            parked_in_table,
            parked_and_published,
            ..
        } = compared;
        for position in &parked_and_published {
            send_entry(&mut publisher, config, *position, None).await?;
        }
        checkpoint.parking.rows = parked.len() as u64;
        let to_publish = RowsToPublish::of(verdicts, options.undecided);
        let mut writer = ExistingRowsWriter::new(config, &mut lineage, &mut publisher, consistent_point);
        writer.parks = ParksBehind::new(config, &parked, |id| parked_in_table.contains(id)).await?;
        publish_rows(config, &mut snapshot, &to_publish, &mut writer, &mut checkpoint).await?;
        let behind = writer.parks.as_ref().map_or(0, ParksBehind::parked);
        Ok::<_, RelayError>((writer.rows - behind, behind))
    };
    let mut shutdown = shutdown.clone();
    let Some(rows) = while_answering(&mut stream, publishing, &mut shutdown).await? else {
        return Err(anyhow::anyhow!("told to stop; run recover again").into());
    };
    let (rows, behind) = rows?;
    snapshot.close().await?;
    checkpoint.state = State::Running;
    // Within one generation positions ascend, and the new one may lie below the one that was known.
    checkpoint.generation += 1;
    checkpoint.lineage = Lineage {
        partitions: lineage.partitions,
        former_partitions: lineage.former_partitions,
        topic_ids: lineage.topic_ids,
        positions_raised_by: lineage.positions_raised_by,
        ..source::lineage(config, &system, &situation.publication, BTreeMap::new())
    };
    checkpoint.published = Published {
        lsn: consistent_point,
        partial: None,
    };
    identity::pin_all_ids(config, &mut checkpoint.lineage).await?;
    commit(&mut publisher, config, &checkpoint).await?;
    stream.close().await;
    tracing::info!(
        slot = config.slot,
        rows,
        checkpoint.lsn = %consistent_point,
        positions_raised_by = checkpoint.lineage.positions_raised_by,
        "recovered"
    );
    Ok(format!(
        "slot {} is made anew; {rows} rows that were missing are published{}; the checkpoint is {consistent_point}\n",
        config.slot,
        match behind {
            0 => String::new(),
            behind => format!(", and {behind} are parked behind parked rows of their keys"),
        }
    ))
}

/// Waits until nobody reads the slot, where there is one: a relay that runs has to be stopped before.
async fn wait_until_slot_is_free(connection: &mut Connection, config: &Config) -> Result<(), RelayError> {
    let started = Instant::now();
    while standby::is_taken(connection, &config.slot).await? {
        if started.elapsed() > RELEASE_PATIENCE {
            return Err(anyhow::anyhow!("a relay has slot `{}`; stop what reads it first", config.slot).into());
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// The checkpoint of step 3: what is known, in the next generation. Its lineage stays that of before, so that a `recover` which is killed here
/// does not forget where the records came from.
fn recovering_checkpoint(config: &Config, situation: &Situation, parking: ParkingNote) -> Checkpoint {
    Checkpoint {
        format: FORMAT,
        state: State::Recovering,
        lineage: lineage_to_go_on_from(config, situation),
        published: situation
            .checkpoint()
            .map_or_else(Published::default, |checkpoint| checkpoint.published),
        incarnation: uuid::Uuid::new_v4().to_string(),
        generation: situation.next_generation,
        existing_rows: None,
        begun: None,
        parking,
    }
}

/// Ends whatever a relay of the cluster that the database was moved from has open in Kafka, and keeps it from committing anything more.
async fn fence_former_cluster(
    config: &Config,
    system: &System,
    former_identifier: &str,
    shutdown: &Shutdown,
) -> Result<(), RelayError> {
    let former = System {
        identifier: former_identifier.to_owned(),
        ..system.clone()
    };
    fence(config, &former, shutdown).await?;
    tracing::info!(
        system_identifier = former_identifier,
        "fenced the producers of the former cluster"
    );
    Ok(())
}
