//! `recover`: goes on after the slot was lost, from the rows of the outbox that are still there.
//!
//! The order of its steps is what makes it safe to kill at any moment and to run again:
//!
//! 1. **Look, compare, ask.** Nothing is changed before the operator has seen what will be, and agreed.
//! 2. **Fence.** `init_transactions` ends what an earlier relay, or an earlier `recover`, left open; from here on the topics hold still.
//! 3. **Say so.** The checkpoint becomes `recovering`: no relay goes on from the new slot before it is complete.
//! 4. **A new slot, owned.** Its snapshot is everything that the stream will not send. Owning it keeps a relay that starts meanwhile waiting.
//! 5. **Compare again**, in that snapshot, with the topics to their committed ends, and publish what is missing, in several Kafka transactions.
//! 6. **The last one** carries a checkpoint that is `running`, at the slot's beginning.
//!
//! After a kill before step 6 the checkpoint is `recovering`, and the next `recover` makes the slot anew and compares again: what was published
//! already is found in the topics.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};

use anyhow::Context;
use service::Shutdown;

use crate::checkpoint::{Checkpoint, Lineage, State};
use crate::clock::now_us;
use crate::comparison::{Comparison, EventIds, Memory, Row, Verdicts};
use crate::config::{Config, RecoverOptions, Undecided};
use crate::existing_rows::{ExistingRowsWriter, OutboxSnapshot, columns_of, detached_tables};
use crate::init::{commit, create_slot, fence};
use crate::kafka::{Found, cleanup, partition_counts, read_ids};
use crate::lineage::{Source, verify};
use crate::lsn::Lsn;
use crate::pgoutput::Tuple;
use crate::postgres::{Answer, Connection, Mode, quote_identifier, quote_literal};
use crate::progress::Published;
use crate::router::{Plan, RowScratch, partition_of_key};
use crate::source;
use crate::startup::{Survey, names, survey, while_answering};
use crate::stop::{RelayError, Stop};
use crate::topic_identity;

/// Rows of one Kafka transaction; what bounds the memory of librdkafka's queue.
const TRANSACTION_ROWS: usize = 5_000;
const TRANSACTION_BYTES: usize = 16 << 20;
/// Columns that are added to a row's own, for the comparison.
const CREATED_MS: &str = "relay_created_ms";

/// Why the relay cannot go on by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Loss {
    Gone,
    Invalidated,
    Ahead(Lsn),
    OtherTimeline { expected: u32, found: u32 },
    Unfinished,
    TopicsRecreated,
}

/// Does everything; what it returns is for a person.
///
/// # Errors
/// A [`Stop`] where there is nothing to recover, where it cannot be done, or where nobody agreed; anything else is worth another try.
pub async fn recover(config: &Config, options: &RecoverOptions, shutdown: &Shutdown) -> Result<String, RelayError> {
    let mut connection = Connection::open(&config.target, Mode::Replication).await?;
    let config = &config.pinned_to(&mut connection).await?;
    let situation = Situation::look(&mut connection, config).await?;
    let mut snapshot = OutboxSnapshot::open(config, None, situation.detached.clone()).await?;
    let mut lineage = situation.found.checkpoint.lineage.clone();
    let planned = compare(config, &mut lineage, &situation.recreated, &mut snapshot, shutdown).await?;
    let reaches_back_ms = oldest_row_ms(&mut snapshot).await?;
    snapshot.close().await?;
    say(&plan(config, &situation, &planned, reaches_back_ms))?;
    decided(&planned.verdicts, options)?;
    agreed(options).await?;
    carry_out(config, options, connection, shutdown).await
}

/// What there is before anything is changed.
struct Situation {
    loss: Loss,
    /// Topics that were deleted and made anew, see [`Stop::TopicRecreated`].
    recreated: Vec<Stop>,
    found: Found,
    source: Source,
    publication_entry: u32,
    timeline: u32,
    detached: Vec<String>,
}

impl Situation {
    async fn look(connection: &mut Connection, config: &Config) -> Result<Self, RelayError> {
        let publication = source::usable_publication(connection, config).await?;
        let Survey { slot, found, system } = survey(connection, config).await?;
        let source = source::source(&system, &config.target.database, slot, &publication);
        let checkpoint = found.as_ref().map(|found| &found.checkpoint);
        let recreated = topic_identity::recreated_now(config, checkpoint).await?;
        let loss = loss(&source, checkpoint, &recreated, config)?;
        Ok(Self {
            loss,
            recreated,
            found: found.context("the checkpoint vanished")?,
            source,
            publication_entry: publication.entry,
            timeline: system.timeline,
            detached: detached_tables(connection, config).await?,
        })
    }
}

/// What was lost, or why `recover` is not the answer.
fn loss(source: &Source, checkpoint: Option<&Checkpoint>, recreated: &[Stop], config: &Config) -> Result<Loss, Stop> {
    let verified = verify(source, checkpoint, names(config));
    let Some(checkpoint) = checkpoint else {
        return Err(verified.err().unwrap_or(Stop::NotInitialised {
            slot: config.slot.clone(),
            database: config.target.database.clone(),
            topic: config.checkpoint_topic.clone(),
        }));
    };
    let published = checkpoint.published;
    let end = published
        .partial
        .map_or(published.lsn, |partial| partial.commit_lsn.max(published.lsn));
    let ours = source.system_identifier == checkpoint.lineage.system_identifier;
    if ours && source.wal_end < end {
        // New positions would lie below published ones, and readers that drop repeats would drop new events.
        return Err(Stop::ServerBehind {
            server: source.wal_end,
            checkpoint: end,
        });
    }
    if ours && checkpoint.state == State::Recovering {
        return Ok(Loss::Unfinished);
    }
    match verified {
        Ok(_) if !recreated.is_empty() => Ok(Loss::TopicsRecreated),
        Ok(_) => Err(Stop::NothingToRecover {
            slot: config.slot.clone(),
            checkpoint: published.lsn,
        }),
        Err(_) if checkpoint.state == State::Initialising => Err(Stop::CheckpointMissing {
            slot: config.slot.clone(),
            topic: config.checkpoint_topic.clone(),
            key: config.checkpoint_key(),
        }),
        Err(Stop::SlotGone { .. }) => Ok(Loss::Gone),
        Err(Stop::SlotInvalidated { .. }) => Ok(Loss::Invalidated),
        Err(Stop::SlotAhead { slot_lsn, .. }) => Ok(Loss::Ahead(slot_lsn)),
        Err(Stop::OtherTimeline { expected, found, .. }) => Ok(Loss::OtherTimeline { expected, found }),
        Err(stop) => Err(stop),
    }
}

/// The outbox held against the topics.
struct Compared {
    rows: u64,
    /// Records of each topic.
    topics: BTreeMap<String, u64>,
    verdicts: Verdicts,
}

/// Compares all rows of `snapshot` with the topics that they route to and that the lineage knows, which are read to their ends.
async fn compare(
    config: &Config,
    lineage: &mut Lineage,
    recreated: &[Stop],
    snapshot: &mut OutboxSnapshot,
    shutdown: &Shutdown,
) -> Result<Compared, RelayError> {
    topic_identity::forget(lineage, recreated);
    let id = quote_identifier(&config.router.id_column);
    let route = quote_identifier(&config.router.route_column);
    let mut absent = EventIds::default();
    let mut routes = BTreeSet::new();
    let mut rows = 0;
    snapshot.read(&format!("{id}::text, {route}::text"), false).await?;
    loop {
        let answer = snapshot.fetch().await?;
        if answer.rows.is_empty() {
            break;
        }
        for row in &answer.rows {
            absent.insert(source::text(row, 0)?);
            let route = source::text(row, 1)?;
            if !routes.contains(route) {
                routes.insert(route.to_owned());
            }
        }
        rows += answer.rows.len() as u64;
        if shutdown.is_triggered() {
            return Err(anyhow::anyhow!("told to stop").into());
        }
    }
    let topic_of = topics_of_routes(config, snapshot, &routes).await?;
    let names: BTreeSet<String> = lineage
        .partitions
        .keys()
        .cloned()
        .chain(topic_of.values().cloned())
        .collect();
    let mut topics = BTreeMap::new();
    let mut memories = Vec::new();
    let mut index_of = BTreeMap::new();
    for (topic, partitions) in existing_topics(config, lineage, &names).await? {
        let cleaned = cleanup(&config.kafka, &topic).await?;
        let (settings, name, stop) = (config.kafka.clone(), topic.clone(), shutdown.clone());
        let (read, rest) = tokio::task::spawn_blocking(move || {
            let mut absent = absent;
            let gives_up = || stop.is_triggered();
            let read = read_ids(&settings, &name, partitions, cleaned, &mut absent, &gives_up);
            (read, absent)
        })
        .await
        .context("reading a topic")?;
        absent = rest;
        let read = read?;
        topics.insert(topic.clone(), read.records);
        index_of.insert(topic.clone(), (memories.len(), partitions));
        // What a topic lacks that was made anew went with the former one; it has removed nothing.
        memories.push(if topic_identity::is_recreated(recreated, &topic) {
            Memory::default()
        } else {
            read.memory
        });
    }
    let verdicts = if absent.is_empty() || memories.iter().all(|memory| !memory.forgets()) {
        Verdicts {
            missing: absent,
            ..Verdicts::default()
        }
    } else {
        decide(config, snapshot, &absent, &topic_of, &index_of, memories).await?
    };
    Ok(Compared { rows, topics, verdicts })
}

/// The topic of each value of `route.by.field`.
async fn topics_of_routes(
    config: &Config,
    snapshot: &mut OutboxSnapshot,
    routes: &BTreeSet<String>,
) -> Result<BTreeMap<String, String>, RelayError> {
    snapshot.read("*", false).await?;
    let answer = snapshot.fetch().await?;
    let plan = plan_of(config, &answer)?;
    Ok(routes.iter().map(|route| (route.clone(), plan.topic(route))).collect())
}

fn plan_of(config: &Config, answer: &Answer) -> Result<Plan, Stop> {
    Plan::new(&config.router, columns_of(answer)).map_err(|err| Stop::Config { what: err.to_string() })
}

/// Partition counts of those topics that exist; those of the lineage must be there as they were.
async fn existing_topics(
    config: &Config,
    lineage: &mut Lineage,
    topics: &BTreeSet<String>,
) -> Result<BTreeMap<String, i32>, RelayError> {
    let (settings, asked) = (config.kafka.clone(), topics.iter().cloned().collect::<Vec<_>>());
    let counts = tokio::task::spawn_blocking(move || partition_counts(&settings, &asked))
        .await
        .context("metadata task")??;
    for (topic, expected) in &lineage.partitions {
        if !counts.contains_key(topic) {
            return Err(Stop::PartitionsChanged {
                topic: topic.clone(),
                expected: *expected,
                found: 0,
            }
            .into());
        }
    }
    for (topic, partitions) in &counts {
        lineage.pin(topic, *partitions)?;
    }
    Ok(counts)
}

/// Goes through the rows in their order, since some topic may have forgotten records.
async fn decide(
    config: &Config,
    snapshot: &mut OutboxSnapshot,
    absent: &EventIds,
    topic_of: &BTreeMap<String, String>,
    index_of: &BTreeMap<String, (usize, i32)>,
    mut memories: Vec<Memory>,
) -> Result<Verdicts, RelayError> {
    // Rows of a topic that does not exist yet: it has forgotten nothing.
    let no_topic = memories.len();
    memories.push(Memory::default());
    let created_ms = if snapshot.has_created_at() {
        "coalesce(floor(extract(epoch from created_at) * 1000)::bigint, 0)"
    } else {
        "0::bigint"
    };
    snapshot.read(&format!("*, {created_ms} as {CREATED_MS}"), true).await?;
    let mut comparison = Comparison::new(&memories);
    let mut scratch = RowScratch::default();
    loop {
        let answer = snapshot.fetch().await?;
        if answer.rows.is_empty() {
            return Ok(comparison.finish());
        }
        let plan = plan_of(config, &answer)?;
        let column_count = u16::try_from(answer.columns.len()).context("too many columns")?;
        for row in &answer.rows {
            let created_ms = source::text(row, row.len() - 1)?.parse().context("created_at")?;
            let values: Vec<Option<&[u8]>> = row.iter().map(|value| value.as_deref().map(str::as_bytes)).collect();
            let bytes = Tuple::encode(&values);
            let tuple = Tuple::from_encoded(column_count, &bytes);
            plan.route(&tuple, &mut scratch, |routed, _| {
                let topic = topic_of.get(routed.route).and_then(|topic| index_of.get(topic));
                let (topic, partitions) = topic.copied().unwrap_or((no_topic, 1));
                let spread = routed.key.as_deref().unwrap_or(routed.id.as_bytes());
                comparison.row(
                    Row {
                        id: routed.id,
                        topic,
                        partition: routed.partition.unwrap_or_else(|| partition_of_key(spread, partitions)),
                        key: routed.key.as_deref(),
                        created_ms,
                        is_tombstone: routed.value.is_none(),
                    },
                    absent,
                );
            })
            .map_err(|err| Stop::Row {
                row: "of the outbox".to_owned(),
                what: err.to_string(),
            })?;
        }
    }
}

async fn oldest_row_ms(snapshot: &mut OutboxSnapshot) -> Result<Option<i64>, RelayError> {
    if !snapshot.has_created_at() {
        return Ok(None);
    }
    let oldest = snapshot
        .value("floor(extract(epoch from min(created_at)) * 1000)::bigint")
        .await?;
    Ok(oldest.map(|text| text.parse()).transpose().context("created_at")?)
}

/// What will be done, for the operator.
fn plan(config: &Config, situation: &Situation, planned: &Compared, reaches_back_ms: Option<i64>) -> String {
    let mut text = String::new();
    let published = situation.found.checkpoint.published.lsn;
    let loss = match &situation.loss {
        Loss::Gone => format!("slot {} is gone", config.slot),
        Loss::Invalidated => format!("slot {} was invalidated by Postgres", config.slot),
        Loss::Ahead(lsn) => format!("slot {} stands at {lsn}, ahead of the checkpoint", config.slot),
        Loss::OtherTimeline { expected, found } => {
            format!("the server is on timeline {found} instead of {expected}, and what its slot has seen is not proven")
        }
        Loss::Unfinished => format!("an earlier recover of slot {} did not finish", config.slot),
        Loss::TopicsRecreated => "topics were deleted and made anew".to_owned(),
    };
    let topics: Vec<String> = planned
        .topics
        .iter()
        .map(|(topic, records)| format!("{topic} ({records} records)"))
        .collect();
    let lines = [
        ("why", loss),
        (
            "checkpoint",
            format!("{published}; the server's WAL ends at {}", situation.source.wal_end),
        ),
        ("rows to compare", planned.rows.to_string()),
        ("topics", topics.join(", ")),
        (
            "to be published",
            format!("{} rows that are in no topic", planned.verdicts.missing.len()),
        ),
        (
            "taken as published",
            format!(
                "{} rows whose records a topic has removed since",
                planned.verdicts.forgotten
            ),
        ),
        (
            "undecided",
            format!(
                "{} rows of which nothing tells whether they were published",
                planned.verdicts.undecided.len()
            ),
        ),
        ("the outbox", reach(reaches_back_ms, situation.found.written_ms)),
        (
            "then",
            format!(
                "slot {} is made anew, what is in no topic at its snapshot is published, and the relay goes on from there",
                config.slot
            ),
        ),
    ];
    for (name, value) in lines {
        // Writing to a String cannot fail.
        let _infallible = writeln!(text, "{name:<20}{value}");
    }
    text
}

/// How far back the outbox reaches, against when the last checkpoint was written.
fn reach(oldest_ms: Option<i64>, checkpoint_ms: Option<i64>) -> String {
    let age = |since_ms: i64| (now_us() / 1_000 - since_ms).max(0) / 1_000;
    match (oldest_ms, checkpoint_ms) {
        (Some(oldest_ms), Some(checkpoint_ms)) if oldest_ms <= checkpoint_ms => format!(
            "reaches back {} s, beyond the last checkpoint, {} s ago: rows since then are missing only if somebody deleted them",
            age(oldest_ms),
            age(checkpoint_ms)
        ),
        (Some(oldest_ms), Some(checkpoint_ms)) => format!(
            "reaches back {} s only, the last checkpoint is from {} s ago: rows that were deleted between the two are lost for good, if there were any",
            age(oldest_ms),
            age(checkpoint_ms)
        ),
        _ => "does not tell how far back it reaches: rows that were deleted unpublished are lost for good, if there were any"
            .to_owned(),
    }
}

#[expect(
    clippy::print_stdout,
    reason = "a command that tells a person what it is about to do"
)]
fn say(text: &str) -> Result<(), RelayError> {
    print!("{text}");
    std::io::stdout().flush()?;
    Ok(())
}

fn decided(verdicts: &Verdicts, options: &RecoverOptions) -> Result<(), Stop> {
    if verdicts.undecided.is_empty() || options.undecided.is_some() {
        return Ok(());
    }
    Err(Stop::NotConfirmed {
        what: format!(
            "{} rows may have been published and removed from their topic since, or not; say --undecided publish (they may come twice) or --undecided skip (they may be lost)",
            verdicts.undecided.len()
        ),
    })
}

/// Asks on a terminal; elsewhere `--yes` is the answer.
async fn agreed(options: &RecoverOptions) -> Result<(), RelayError> {
    if options.yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Stop::NotConfirmed {
            what: "there is no terminal to ask on; add --yes to carry this out".to_owned(),
        }
        .into());
    }
    say("carry this out? [yes/no] ")?;
    let answer = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map(|_| line)
    });
    if answer.await.context("reading the answer")??.trim() == "yes" {
        return Ok(());
    }
    Err(Stop::NotConfirmed {
        what: "the answer was not `yes`".to_owned(),
    }
    .into())
}

async fn carry_out(
    config: &Config,
    options: &RecoverOptions,
    mut connection: Connection,
    shutdown: &Shutdown,
) -> Result<String, RelayError> {
    let system = source::identify(&mut connection).await?;
    let mut publisher = fence(config, &system, shutdown).await?;
    // Before the fence an earlier relay could still have committed; only what is found now counts.
    let situation = Situation::look(&mut connection, config).await?;
    let mut checkpoint = Checkpoint {
        state: State::Recovering,
        incarnation: uuid::Uuid::new_v4().to_string(),
        ..situation.found.checkpoint
    };
    commit(&mut publisher, config, &checkpoint).await?;
    if situation.source.slot.is_some() {
        let drop = format!("select pg_drop_replication_slot({})", quote_literal(&config.slot));
        connection.rows(&drop).await.context("cannot drop the lost slot")?;
    }
    let (consistent_point, exported) = create_slot(&mut connection, config, options.failover).await?;
    let mut snapshot = OutboxSnapshot::open(config, Some(&exported), situation.detached).await?;
    // The session that exported the snapshot may go on now that another one has it.
    connection
        .start_replication(&config.slot, Lsn::INVALID, &config.publication)
        .await
        .context("the new slot is in use already; run recover again")?;
    let mut stream = connection.into_stream();
    let mut lineage = checkpoint.lineage.clone();
    let work = async {
        let compared = compare(config, &mut lineage, &situation.recreated, &mut snapshot, shutdown).await?;
        decided(&compared.verdicts, options)?;
        let Verdicts { missing, undecided, .. } = compared.verdicts;
        let mut wanted = Wanted {
            missing,
            undecided: None,
        };
        if options.undecided == Some(Undecided::Publish) {
            wanted.undecided = Some(undecided);
        }
        let mut writer = ExistingRowsWriter::new(config, &mut lineage, &mut publisher, consistent_point);
        publish(config, &mut snapshot, &wanted, &mut writer, &mut checkpoint).await?;
        Ok::<u64, RelayError>(writer.rows)
    };
    let mut until_told = shutdown.clone();
    let Some(rows) = while_answering(&mut stream, work, &mut until_told).await? else {
        return Err(anyhow::anyhow!("told to stop; run recover again").into());
    };
    let rows = rows?;
    snapshot.close().await?;
    checkpoint.state = State::Running;
    checkpoint.lineage = Lineage {
        timeline: situation.timeline,
        publication_entry: situation.publication_entry,
        publication_version: Some(situation.source.publication_version.clone()),
        outbox: situation.source.outbox.clone(),
        ..lineage
    };
    checkpoint.published = Published {
        lsn: consistent_point,
        partial: None,
    };
    topic_identity::pin_all_ids(config, &mut checkpoint.lineage).await?;
    commit(&mut publisher, config, &checkpoint).await?;
    stream.close().await;
    tracing::info!(slot = config.slot, rows, checkpoint.lsn = %consistent_point, "recovered");
    Ok(format!(
        "slot {} is made anew; {rows} rows that were missing are published; the checkpoint is {consistent_point}\n",
        config.slot
    ))
}

/// The rows that are to be published.
struct Wanted {
    missing: EventIds,
    undecided: Option<EventIds>,
}

impl Wanted {
    fn has(&self, id: &str) -> bool {
        self.missing.contains(id) || self.undecided.as_ref().is_some_and(|ids| ids.contains(id))
    }
}

/// Publishes the wanted rows, in order, in transactions of bounded size; what is left open is committed with the final checkpoint.
async fn publish(
    config: &Config,
    snapshot: &mut OutboxSnapshot,
    wanted: &Wanted,
    writer: &mut ExistingRowsWriter<'_>,
    checkpoint: &mut Checkpoint,
) -> Result<(), RelayError> {
    snapshot.read("*", true).await?;
    let (mut open_rows, mut open_bytes) = (0, 0);
    loop {
        let Answer { columns, rows } = snapshot.fetch().await?;
        if rows.is_empty() {
            return Ok(());
        }
        let id = columns
            .iter()
            .position(|(name, _)| *name == config.router.id_column)
            .context("the outbox table has no id")?;
        let mut wanted_rows = Vec::new();
        for row in rows {
            if wanted.has(source::text(&row, id)?) {
                open_bytes += row.iter().flatten().map(String::len).sum::<usize>();
                wanted_rows.push(row);
            }
        }
        open_rows += wanted_rows.len();
        let answer = Answer {
            columns,
            rows: wanted_rows,
        };
        writer.write(&answer).await?;
        if open_rows >= TRANSACTION_ROWS || open_bytes >= TRANSACTION_BYTES {
            (open_rows, open_bytes) = (0, 0);
            checkpoint.lineage.partitions.clone_from(&writer.lineage().partitions);
            commit(writer.publisher(), config, checkpoint).await?;
            if writer.publisher().is_disturbed() {
                // librdkafka may have sent the EndTxn twice, and the late one could end the next transaction.
                return Err(anyhow::anyhow!("the connection to kafka was disturbed; run recover again").into());
            }
            tracing::info!(rows = writer.rows, "publishing rows that were missing");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::reach;

    #[test]
    fn an_outbox_that_does_not_reach_back_to_the_checkpoint_is_said_to_have_lost_what_was_deleted() {
        assert!(reach(Some(1_000), Some(2_000)).contains("beyond the last checkpoint"));
        assert!(reach(Some(2_000), Some(1_000)).contains("lost for good"));
        assert!(reach(None, Some(1_000)).contains("does not tell"));
    }
}
