//! `replay`: publishes chosen rows of the outbox again, and marks them as replayed.
//!
//! It works beside a running relay and does not disturb it. It has producers of its own, and never touches the checkpoint or the slot. Its Kafka
//! transactions are small, since a read_committed reader waits behind each open transaction.
//!
//! The order of its steps:
//!
//! 1. **Choose** the rows in one snapshot, and ask where the WAL ends. Every row of the snapshot was committed before that.
//! 2. **Print** what will be published, and ask the operator.
//! 3. **Wait** until the checkpoint is beyond that position. Without this, a row could be replayed before the relay has published it, and a reader would
//!    see the replayed record first.
//! 4. **Publish** the rows in their order. Each transaction carries a marker under a key of its own in the checkpoint topic. The marker says how many
//!    rows are replayed so far.
//!
//! A replayed record has the row's key, value, headers and `id`, and goes to the row's partition. Its header `replay` has the replay's id. It has **no
//! position**: the records before it have higher positions, and a reader that drops every record below its own position would drop it. Such a reader has to
//! process a record again if it has no position, or has the header `replay`.

mod choice;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use service::Shutdown;
use tokio::time::{Instant, sleep};

use self::choice::{chosen_rows_condition, parked_rows_condition, plan};
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

/// How many rows one Kafka transaction has, about. Readers of the topics wait for its end.
const TRANSACTION_ROWS: u64 = 1_000;
/// If a replay was killed, the broker ends its open transaction after so long.
const TRANSACTION_TIMEOUT_MS: u64 = 10_000;
/// librdkafka requires that this is not longer than the transaction's timeout.
const MESSAGE_TIMEOUT_MS: u64 = 9_000;
/// How long the relay may take until it has published the chosen rows. An idle relay writes its checkpoint every 10 s.
const RELAY_PATIENCE: Duration = Duration::from_secs(60);
/// How often we read the relay's checkpoint meanwhile.
const CHECKPOINT_INTERVAL: Duration = Duration::from_millis(500);

/// The marker of a replay, as JSON. It is a record of each of its transactions.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Marker<'a> {
    format: u32,
    replay: &'a str,
    /// How many rows the replay has published, this transaction included.
    rows: u64,
}

/// Runs the four steps. Returns a text for the operator.
///
/// # Errors
/// A [`Stop`] if the options do not fit the table, or if the operator did not agree. Any other error is worth another try, which is a new replay.
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
    // Asked again, since rows may have been parked while we waited.
    let condition = format!("{condition} and not {}", parked_rows_condition(config).await?);
    let replay_id = uuid::Uuid::new_v4().to_string();
    let mut publisher = start_publisher(config, &system.identifier, shutdown).await?;
    wait_until_nothing_is_open(config, lineage.partitions.keys(), shutdown).await?;
    let rows_to_replay = RowsToReplay {
        config,
        replay_id: &replay_id,
        condition: &condition,
        planned_rows: planned.rows,
    };
    let rows = rows_to_replay
        .publish(&mut snapshot, lineage, &mut publisher, shutdown)
        .await?;
    snapshot.close().await?;
    tracing::info!(replay = replay_id, rows, "replayed");
    Ok(format!(
        "{rows} rows are published again, with the header replay = {replay_id}\n"
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

/// Waits until the relay has published everything below `wal_end`. Returns the lineage of its checkpoint, whose partition counts are still right.
async fn wait_until_published(
    config: &Config,
    system_identifier: &str,
    wal_end: Lsn,
    shutdown: &Shutdown,
) -> Result<Lineage, RelayError> {
    let started = Instant::now();
    let mut is_logged = false;
    loop {
        let last = read_last_checkpoint(config.clone()).await?;
        if let Some(StoredCheckpoint { checkpoint, .. }) = last
            && checkpoint.state == State::Running
            && checkpoint.lineage.system_identifier == system_identifier
            && (checkpoint.published.lsn >= wal_end || planted::replays_unpublished_rows())
        {
            ensure_partition_counts_are_unchanged(config, &checkpoint.lineage).await?;
            return Ok(checkpoint.lineage);
        }
        if started.elapsed() > RELAY_PATIENCE || shutdown.is_triggered() {
            return Err(Stop::NotConfirmed {
                what: format!(
                    "the relay has not published everything up to {wal_end}, and a row must not be replayed before it is published; start the relay, then replay again"
                ),
            }
            .into());
        }
        if !is_logged {
            is_logged = true;
            tracing::info!(lsn = %wal_end, "waiting until the relay has published the chosen rows");
        }
        sleep(CHECKPOINT_INTERVAL).await;
    }
}

async fn ensure_partition_counts_are_unchanged(config: &Config, lineage: &Lineage) -> Result<(), RelayError> {
    let (settings, names) = (
        config.sink.kafka.clone(),
        lineage.partitions.keys().cloned().collect::<Vec<_>>(),
    );
    let counts: BTreeMap<String, i32> = tokio::task::spawn_blocking(move || partition_counts(&settings, &names))
        .await
        .context("metadata task")??;
    for (topic, expected) in &lineage.partitions {
        // A topic that does not exist any more counts as 0 partitions.
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
    Ok(())
}

/// Starts the replay's own producers. They fence the producers of an earlier replay, and nobody else.
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

/// The rows that one replay publishes.
struct RowsToReplay<'a> {
    config: &'a Config,
    replay_id: &'a str,
    /// SQL that chooses the rows.
    condition: &'a str,
    planned_rows: u64,
}

impl RowsToReplay<'_> {
    /// Publishes the rows, oldest first. Returns how many were published.
    async fn publish(
        &self,
        snapshot: &mut OutboxSnapshot,
        mut lineage: Lineage,
        publisher: &mut Publisher,
        shutdown: &Shutdown,
    ) -> Result<u64, RelayError> {
        let mut writer = ExistingRowsWriter::for_replay(self.config, &mut lineage, publisher, self.replay_id);
        let mut bar = RowsProgress::start("replaying rows", self.planned_rows);
        let mut committed_rows = 0;
        snapshot
            .open_cursor("existing", "*", self.condition, RowOrder::OldestFirst)
            .await?;
        loop {
            let answer = snapshot.fetch_from("existing", FETCH_ROWS).await?;
            let is_end = answer.rows.is_empty();
            writer.write(&answer).await?;
            let rows = writer.rows;
            bar.advance(answer.rows.len() as u64);
            if rows > committed_rows && (is_end || rows - committed_rows >= TRANSACTION_ROWS) {
                self.commit(rows, writer.publisher()).await?;
                committed_rows = rows;
            }
            if is_end {
                bar.finish();
                return Ok(rows);
            }
            // librdkafka may have sent the EndTxn twice, and the late one could end the next transaction.
            if shutdown.is_triggered() || writer.publisher().is_disturbed() {
                return Err(anyhow::anyhow!(
                    "ended after {committed_rows} of {} rows of replay {}: told to stop, or the connection to kafka was disturbed",
                    self.planned_rows,
                    self.replay_id
                )
                .into());
            }
        }
    }

    /// Commits the open Kafka transaction, with the marker that says that `rows` are replayed.
    async fn commit(&self, rows: u64, publisher: &mut Publisher) -> Result<(), RelayError> {
        faults::point("replay.before-commit")?;
        let marker = serde_json::to_string(&Marker {
            format: 1,
            replay: self.replay_id,
            rows,
        });
        let key = format!("{}/replay", self.config.checkpoint_key());
        publisher.commit(&self.config.sink.checkpoint_topic, &key, &marker.context("the marker")?)?;
        publisher.wait_for_commits().await?;
        faults::point("replay.committed")?;
        Ok(())
    }
}
