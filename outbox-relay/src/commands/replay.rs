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

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use service::Shutdown;
use tokio::time::{Instant, sleep};

use crate::commands::confirm::{ask_for_yes, print_now};
use crate::commands::planted;
use crate::continuity::checkpoint::{Lineage, State};
use crate::intake::existing_rows::ExistingRowsWriter;
use crate::intake::outbox_snapshot::{FETCH_ROWS, OutboxSnapshot, RowOrder};
use crate::kafka::{Delivery, Publisher, StoredCheckpoint, partition_counts};
use crate::outbox::rows::{first_row, named_rows};
use crate::outbox::source;
use crate::parking::log::read_entries_off_thread;
use crate::process::faults;
use crate::process::progress_bar::RowsProgress;
use crate::process::stop::{PARTITIONS_CURE, RelayError, Stop};
use crate::relay::survey::read_last_checkpoint;
use crate::settings::{Config, ReplayOptions};
use crate::topics::destination;
use crate::topics::hanging_transaction::wait_until_nothing_is_open;
use outbox_router::Plan;
use pg_replication::Lsn;
use pg_replication::{Connection, Mode, quote_identifier, quote_literal};

/// Rows of one Kafka transaction. Readers of the topics wait for its end.
const TRANSACTION_ROWS: u64 = 1_000;
/// After so long without its producer, the broker ends a transaction that a killed replay left open.
const TRANSACTION_TIMEOUT_MS: u64 = 10_000;
/// librdkafka wants it to be no longer.
const MESSAGE_TIMEOUT_MS: u64 = 9_000;
/// How long the relay may take until it has published the chosen rows; an idle one writes its checkpoint every 10 s.
const RELAY_PATIENCE: Duration = Duration::from_secs(60);
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Keys that the plan names.
const KEYS_SHOWN: usize = 10;

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
    let condition = condition(config, options, snapshot.has_created_at())?;
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
    let condition = format!("{condition} and not {}", is_parked(config).await?);
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

/// SQL for the rows that are parked. What is published for the first time by a retry is not to be replayed before.
async fn is_parked(config: &Config) -> Result<String, RelayError> {
    let entries = read_entries_off_thread(config).await?;
    let ids: Vec<String> = entries
        .values()
        .filter_map(|entry| entry.id.as_deref())
        .map(quote_literal)
        .collect();
    if ids.is_empty() {
        return Ok("false".to_owned());
    }
    let id = quote_identifier(&config.outbox.router.id_column);
    // A list is hashed once; a row without an id is in none.
    Ok(format!("coalesce({id}::text in ({}), false)", ids.join(", ")))
}

/// SQL for the chosen rows.
fn condition(config: &Config, options: &ReplayOptions, has_created_at: bool) -> Result<String, Stop> {
    let mut terms = Vec::new();
    let below = if planted::replays_to_inclusive() { "<=" } else { "<" };
    for (flag, operator, moment) in [("--from", ">=", &options.from), ("--to", below, &options.to)] {
        let Some(moment) = moment else { continue };
        if !has_created_at {
            return Err(Stop::Config {
                what: format!("{flag}: the outbox table has no column created_at to go by; choose by --key or --id"),
            });
        }
        terms.push(format!("created_at {operator} {}::timestamptz", quote_literal(moment)));
    }
    for (values, column) in [
        (&options.keys, &config.outbox.router.key_column),
        (&options.ids, &config.outbox.router.id_column),
    ] {
        if values.is_empty() {
            continue;
        }
        let values: Vec<String> = values.iter().map(|value| quote_literal(value)).collect();
        terms.push(format!("{}::text in ({})", quote_identifier(column), values.join(", ")));
    }
    if terms.is_empty() {
        return Err(Stop::Config {
            what: "choose rows by --from, --to, --key or --id".to_owned(),
        });
    }
    Ok(terms.join(" and "))
}

/// What will be published.
struct Planned {
    rows: u64,
    text: String,
}

async fn plan(config: &Config, snapshot: &mut OutboxSnapshot, chosen: &str) -> Result<Planned, RelayError> {
    let is_parked = is_parked(config).await?;
    let answer = snapshot
        .summary("count(*) as rows", &format!("{chosen} and {is_parked}"), "")
        .await?;
    let parked: u64 = first_row(&answer).context("no count")?.parse("rows")?;
    let condition = &format!("{chosen} and not {is_parked}");
    let route = format!("{}::text", quote_identifier(&config.outbox.router.route_column));
    let key = format!("{}::text", quote_identifier(&config.outbox.router.key_column));
    let answer = snapshot
        .summary(
            &format!("{route} as route, count(*) as rows, count(distinct {key}) as keys"),
            condition,
            "group by 1 order by 1",
        )
        .await?;
    let router = Plan::new(&config.outbox.router, snapshot.columns().to_vec())
        .map_err(|err| Stop::Config { what: err.to_string() })?;
    let (mut rows, mut text_of_plan) = (0, String::new());
    if parked > 0 {
        let _infallible = writeln!(
            text_of_plan,
            "{parked} of the chosen rows are parked and left out: `outbox-relay parked retry` publishes them"
        );
    }
    for row in named_rows(&answer) {
        let rows_of_topic: u64 = row.parse("rows")?;
        rows += rows_of_topic;
        let (topic, keys) = (router.topic(row.text("route")?), row.text("keys")?);
        // Writing to a String cannot fail.
        let _infallible = writeln!(text_of_plan, "{topic:<30} {rows_of_topic} rows of {keys} keys");
    }
    if rows == 0 {
        return Ok(Planned {
            rows,
            text: text_of_plan,
        });
    }
    let keys = snapshot
        .summary(
            &format!("{key} as key, count(*) as rows"),
            condition,
            &format!("group by 1 order by 2 desc, 1 limit {KEYS_SHOWN}"),
        )
        .await?;
    let _infallible = writeln!(text_of_plan, "keys with the most rows:");
    for row in named_rows(&keys) {
        let key = row.nullable("key")?.unwrap_or("(none)");
        let _infallible = writeln!(text_of_plan, "  {key}: {}", row.text("rows")?);
    }
    let _infallible = writeln!(
        text_of_plan,
        "they are published again, behind what is in the topics, in the order of the rows, without a position and with a header `replay`"
    );
    Ok(Planned {
        rows,
        text: text_of_plan,
    })
}

/// Asks on a terminal; elsewhere `--yes` is the answer.
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
