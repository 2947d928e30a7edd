//! `replay`: publishes chosen rows of the outbox again, marked as such.
//!
//! It goes on beside a running relay and takes nothing from it: it has producers of its own, never touches the checkpoint or the slot, and keeps its Kafka
//! transactions small, since a read_committed reader waits behind each that is open.
//!
//! The order of its steps:
//!
//! 1. **Choose** the rows in one snapshot, and ask where the WAL ends. Every row of the snapshot was committed before that.
//! 2. **Say** what will be published, and ask.
//! 3. **Wait** until the checkpoint is beyond that position. Else a row could be replayed before the relay has published it, and the replay would be the first
//!    that a reader sees.
//! 4. **Publish** in the order of the rows. Each transaction carries a marker with how many rows it makes, under a key of its own in the checkpoint topic.
//!
//! A replayed record has the row's key, value, headers and `id`, goes to the row's partition, and has the header `replay` with the replay's id. It has **no
//! position**: it stands behind records with higher ones, and a reader that drops what its position has passed would drop it. Such a reader takes a
//! record without a position, or with `replay`, as one to be processed again.

mod choice;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use service::Shutdown;
use tokio::time::{Instant, sleep};

use self::choice::{Planned, chosen_rows_condition, parked_rows_condition, plan};
use crate::commands::confirm::{ask_for_yes, print_now};
use crate::commands::planted;
use crate::continuity::checkpoint::{Lineage, State};
use crate::intake::existing_rows::ExistingRowsWriter;
use crate::intake::outbox_snapshot::{FETCH_ROWS, OutboxSnapshot, RowOrder};
use crate::kafka::{Delivery, Publisher, StoredCheckpoint, partition_counts};
use crate::outbox::rows::first_row;
use crate::outbox::source;
use crate::process::faults;
use crate::process::progress_bar::RowsProgress;
use crate::process::stop::{PARTITIONS_CURE, RelayError, Stop};
use crate::relay::survey::read_last_checkpoint;
use crate::settings::{Config, ReplayOptions};
use crate::topics::destination;
use crate::topics::hanging_transaction::wait_until_nothing_is_open;
use pg_replication::{Connection, Lsn, Mode};

/// Rows of one Kafka transaction. Readers of the topics wait for its end.
const TRANSACTION_ROWS: u64 = 1_000;
/// After so long without its producer, the broker ends a transaction that a killed replay left open.
const TRANSACTION_TIMEOUT_MS: u64 = 10_000;
/// librdkafka wants it to be no longer.
const MESSAGE_TIMEOUT_MS: u64 = 9_000;
/// How long the relay may take until it has published the chosen rows; an idle one writes its checkpoint every 10 s.
const RELAY_PATIENCE: Duration = Duration::from_secs(60);
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// The marker of a replay, as JSON.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Marker<'a> {
    format: u32,
    replay: &'a str,
    rows: u64,
}

/// Does everything; what it returns is for a person.
///
/// # Errors
/// A [`Stop`] where there is nothing to go by, or where nobody agreed; anything else is worth another try, which is another replay.
pub async fn replay(config: &Config, options: &ReplayOptions, shutdown: &Shutdown) -> Result<String, RelayError> {
    let mut connection = Connection::open(&config.source.target, Mode::Replication).await?;
    let config = &config.pinned_to(&mut connection).await?;
    let mut snapshot = OutboxSnapshot::open(config, None, Vec::new()).await?;
    let condition = chosen_rows_condition(config, options, snapshot.has_created_at())?;
    // The first query takes the snapshot; the WAL's end is asked for after it.
    let planned = plan(config, &mut snapshot, &condition).await?;
    let system = source::identify_server(&mut connection).await?;
    let written_up_to = wal_insert_position(&mut connection).await?;
    if planned.rows == 0 {
        return Ok(format!(
            "{}no row of the outbox is chosen: nothing to replay\n",
            planned.text
        ));
    }
    print_now(&planned.text)?;
    ask_operator_to_confirm(options).await?;
    let lineage = wait_until_published(config, &system.identifier, written_up_to, shutdown).await?;
    destination::learn_batch_limits(config, lineage.partitions.keys()).await;
    // Those that were parked meanwhile, too.
    let condition = format!("{condition} and not {}", parked_rows_condition(config).await?);
    let id = uuid::Uuid::new_v4().to_string();
    let mut publisher = start_publisher(config, &system.identifier, shutdown).await?;
    wait_until_nothing_is_open(config, lineage.partitions.keys(), shutdown).await?;
    let rows = publish(
        config,
        &mut snapshot,
        &condition,
        &planned,
        lineage,
        &id,
        &mut publisher,
        shutdown,
    )
    .await?;
    snapshot.close().await?;
    tracing::info!(replay = id, rows, "replayed");
    Ok(format!(
        "{rows} rows are published again, with the header replay = {id}\n"
    ))
}

/// Where the next WAL record will be written. Every commit that a snapshot sees lies below, also one that is not flushed yet.
async fn wal_insert_position(connection: &mut Connection) -> Result<Lsn, RelayError> {
    let answer = connection
        .query("select pg_current_wal_insert_lsn() as wal_end")
        .await?;
    let row = first_row(&answer).context("the server does not tell where its WAL ends")?;
    Ok(row.parse("wal_end")?)
}

/// Asks on the terminal, unless `--yes` was given.
async fn ask_operator_to_confirm(options: &ReplayOptions) -> Result<(), RelayError> {
    if options.yes {
        return Ok(());
    }
    ask_for_yes(
        "carry this out? [yes/no] ",
        "there is no terminal to ask on; add --yes to carry this out",
        "the answer was not `yes`",
    )
    .await
}

/// Waits until the relay has published everything below `wal_end`; the lineage of its checkpoint, with partition counts as they are.
async fn wait_until_published(
    config: &Config,
    system_identifier: &str,
    wal_end: Lsn,
    shutdown: &Shutdown,
) -> Result<Lineage, RelayError> {
    let started = Instant::now();
    let mut said = false;
    loop {
        let found = read_last_checkpoint(config.clone()).await?;
        if let Some(StoredCheckpoint { checkpoint, .. }) = found
            && checkpoint.state == State::Running
            && checkpoint.lineage.system_identifier == system_identifier
            && (checkpoint.published.lsn >= wal_end || planted::replays_unpublished_rows())
        {
            return with_checked_partitions(config, checkpoint.lineage).await;
        }
        if started.elapsed() > RELAY_PATIENCE || shutdown.is_triggered() {
            return Err(Stop::NotConfirmed {
                what: format!(
                    "the relay has not published everything up to {wal_end}, and a row must not be replayed before it is published; start the relay, then replay again"
                ),
            }
            .into());
        }
        if !said {
            said = true;
            tracing::info!(lsn = %wal_end, "waiting until the relay has published the chosen rows");
        }
        sleep(LOOK_INTERVAL).await;
    }
}

async fn with_checked_partitions(config: &Config, lineage: Lineage) -> Result<Lineage, RelayError> {
    let (settings, names) = (
        config.sink.kafka.clone(),
        lineage.partitions.keys().cloned().collect::<Vec<_>>(),
    );
    let counts: BTreeMap<String, i32> = tokio::task::spawn_blocking(move || partition_counts(&settings, &names))
        .await
        .context("metadata task")??;
    for (topic, expected) in &lineage.partitions {
        // A topic that is gone has no partitions.
        let found = counts.get(topic).copied().unwrap_or(0);
        if found != *expected {
            return Err(Stop::PartitionsChanged {
                topic: topic.clone(),
                expected: *expected,
                found,
                cure: PARTITIONS_CURE,
            }
            .into());
        }
    }
    Ok(lineage)
}

/// Producers of the replay's own; they fence those of an earlier replay, and nobody else.
async fn start_publisher(
    config: &Config,
    system_identifier: &str,
    shutdown: &Shutdown,
) -> Result<Publisher, RelayError> {
    let settings = config.sink.kafka.with_transaction_timeout(TRANSACTION_TIMEOUT_MS);
    let settings = settings.with_message_timeout(MESSAGE_TIMEOUT_MS);
    let id = format!("{}-replay", config.transactional_id(system_identifier));
    let (topic, shutdown) = (config.sink.checkpoint_topic.clone(), shutdown.clone());
    tokio::task::spawn_blocking(move || {
        Publisher::start(&settings, Delivery::ExactlyOnce, &id, &topic, &|| {
            shutdown.is_triggered()
        })
    })
    .await
    .context("kafka task")?
}

#[expect(clippy::too_many_arguments, reason = "each is another part of one job")]
async fn publish(
    config: &Config,
    snapshot: &mut OutboxSnapshot,
    condition: &str,
    planned: &Planned,
    mut lineage: Lineage,
    id: &str,
    publisher: &mut Publisher,
    shutdown: &Shutdown,
) -> Result<u64, RelayError> {
    let mut writer = ExistingRowsWriter::for_replay(config, &mut lineage, publisher, id);
    let mut bar = RowsProgress::start("replaying rows", planned.rows);
    let mut committed_rows = 0;
    snapshot
        .open_cursor("existing", "*", condition, RowOrder::OldestFirst)
        .await?;
    loop {
        let answer = snapshot.fetch_from("existing", FETCH_ROWS).await?;
        let is_end = answer.rows.is_empty();
        writer.write(&answer).await?;
        let rows = writer.rows;
        bar.advance(answer.rows.len() as u64);
        if rows > committed_rows && (is_end || rows - committed_rows >= TRANSACTION_ROWS) {
            faults::point("replay.before-commit")?;
            let marker = serde_json::to_string(&Marker {
                format: 1,
                replay: id,
                rows,
            });
            let key = format!("{}/replay", config.checkpoint_key());
            writer
                .publisher()
                .commit(&config.sink.checkpoint_topic, &key, &marker.context("the marker")?)?;
            writer.publisher().wait_for_commits().await?;
            committed_rows = rows;
            faults::point("replay.committed")?;
        }
        if is_end {
            bar.finish();
            return Ok(rows);
        }
        // librdkafka may have sent the EndTxn twice, and the late one could end the next transaction.
        if shutdown.is_triggered() || writer.publisher().is_disturbed() {
            return Err(anyhow::anyhow!(
                "ended after {committed_rows} of {} rows of replay {id}: told to stop, or the connection to kafka was disturbed",
                planned.rows
            )
            .into());
        }
    }
}
