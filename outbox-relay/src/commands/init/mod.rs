//! `init`: publication, topics, slot, the rows that are there already, and the first checkpoint.
//!
//! The rows come from the slot's own snapshot, so that each row is either in it or in the stream, never in both or neither. A few of them
//! travel in one Kafka transaction together with the first checkpoint; many go in pieces, see [`crate::commands::init::pieces`]. A checkpoint that says
//! `initialising` is written before the slot is made, so that the next `init` knows the half-made slot for its own, and which rows are published.

pub mod pieces;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use service::Shutdown;
use tokio::time::{Instant, sleep};

use crate::commands::failed_command;
use crate::commands::init::pieces::ExistingRowsJob;
use crate::continuity::checkpoint::{BegunInit, Checkpoint, ExistingRowsProgress, FORMAT, Lineage, State};
use crate::continuity::lineage::{Slot, usable_slot, verify};
use crate::continuity::parking_note::ParkingNote;
use crate::continuity::positions::{highest_position, raise_above};
use crate::continuity::progress::Published;
use crate::findings::failover;
use crate::findings::outbox_check;
use crate::findings::server_check;
use crate::intake::existing_rows::lsn_before;
use crate::kafka::{Delivery, NewTopic, Publisher, find_or_create, partition_counts, retention_danger};
use crate::outbox::slot::take_over_slot;
use crate::outbox::source::{self, Publication, System};
use crate::outbox::standby;
use crate::parking;
use crate::process::faults;
use crate::process::stop::{RelayError, Stop};
use crate::relay::startup::{Survey, ensure_no_other_slot_publishes, names, survey};
use crate::settings::poison::PoisonPolicy;
use crate::settings::{Config, ExistingRows, InitOptions};
use crate::topics::compaction;
use crate::topics::destination;
use crate::topics::hanging_transaction::wait_until_nothing_is_open;
use crate::topics::identity;
use pg_replication::Lsn;
use pg_replication::{Connection, Mode, PgError, quote_identifier, quote_literal};

/// A piece of the existing rows is read and written well within this time; after it, the broker ends what a killed command left open.
const TRANSACTION_TIMEOUT_MS: u64 = 60_000;

/// How long the server may take to set a slot free whose session has ended.
const RELEASE_PATIENCE: Duration = Duration::from_secs(10);

/// What `init` found or did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Initialised {
    /// Everything was there, and fits together.
    Already { checkpoint: Lsn },
    /// The slot is new, and this many rows that were there are published.
    Created { checkpoint: Lsn, rows: u64 },
    /// An existing slot is continued.
    Adopted { checkpoint: Lsn },
    /// An operator's flags, `what`, have set the checkpoint.
    Accepted { checkpoint: Lsn, what: String },
}

/// What it takes to make a slot.
pub(crate) struct Begun {
    pub(crate) connection: Connection,
    /// Has fenced all earlier ones.
    pub(crate) publisher: Publisher,
    pub(crate) system: System,
    pub(crate) lineage: Lineage,
    pub(crate) generation: u64,
    /// The highest position that readers may have seen: see [`crate::continuity::positions`].
    pub(crate) highest_position: Option<u64>,
    pub(crate) parking: ParkingNote,
}

/// What is to become of an init that did not finish and whose topics have other numbers of partitions by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OtherPartitions {
    Refused,
    /// An operator accepts that later events of a key go to another partition than those that are published.
    Accepted,
}

/// Does what is missing. Safe to repeat, also after it was interrupted.
///
/// # Errors
/// A [`Stop`] where what is there does not fit together; anything else is worth another try.
pub async fn init(config: &Config, options: &InitOptions, shutdown: &Shutdown) -> Result<Initialised, RelayError> {
    init_with(config, options, OtherPartitions::Refused, shutdown).await
}

/// As [`init`].
pub(crate) async fn init_with(
    config: &Config,
    options: &InitOptions,
    other_partitions: OtherPartitions,
    shutdown: &Shutdown,
) -> Result<Initialised, RelayError> {
    let topics = options.topics(&config.topic_template)?;
    for topic in &topics {
        if let Some(whose) = destination::is_not_for_rows(config, &topic.name) {
            return Err(Stop::Config {
                what: format!("--topic `{}` is {whose}: no row may go there", topic.name),
            }
            .into());
        }
    }
    let mut connection = Connection::open(&config.target, Mode::Replication).await?;
    server_check::ensure_version(connection.server_version_num())?;
    // Where there is a slot of that name already, its relay goes on: nothing of it is renamed easily.
    if let Some(what) = config.ids_may_meet()
        && source::slot(&mut connection, &config.slot).await?.is_none()
    {
        return Err(Stop::Config { what }.into());
    }
    let config = &config.pinned_to(&mut connection).await?;
    if options.failover {
        failover::is_possible(connection.server_version_num())?;
    }
    create_publication(&mut connection, config).await?;
    let publication = source::usable_publication(&mut connection, config).await?;
    let mut wanted = vec![NewTopic::compacted(&config.checkpoint_topic)];
    wanted.extend(topics);
    for name in destination::create(config, &wanted).await? {
        tracing::info!(topic = name, "created a topic");
    }
    // An init that was killed may have left a Kafka transaction open, which hides the checkpoint until its timeout; fencing ends it. Nobody
    // streams from a slot that is free, so that this disturbs nobody.
    let mut publisher = None;
    if !standby::is_taken(&mut connection, &config.slot).await? {
        let system = source::identify(&mut connection).await?;
        publisher = Some(fence(config, &system, shutdown).await?);
    }
    if config.poison.poison == PoisonPolicy::Park {
        parking::topic::create(config).await?;
    }
    let Survey { slot, found, system } = survey(&mut connection, config).await?;
    let checkpoint = found.as_ref().map(|found| &found.checkpoint);
    if checkpoint.is_none() && !options.another_slot {
        ensure_no_other_slot_publishes(config, &system, &publication).await?;
    }
    match (slot, checkpoint) {
        (Some(slot), None) if options.adopt_slot => {
            let lineage = lineage_now(config, &system, &publication, &wanted, BTreeMap::new()).await?;
            return adopt(config, &system, slot, lineage, shutdown).await;
        }
        (_, Some(checkpoint)) if is_unfinished(checkpoint, &system) => {}
        (None, None) => {}
        (slot, checkpoint) => {
            let source = source::source(&system, &config.target.database, slot, &publication);
            let checkpoint = verify(&source, checkpoint, names(config))?;
            if options.failover {
                failover::make_failover(&mut connection, &config.slot).await?;
            }
            return Ok(Initialised::Already {
                checkpoint: checkpoint.published.lsn,
            });
        }
    }
    ensure_checkpoint_topic_keeps_its_last_record(config).await?;
    outbox_check::refuse(&mut connection, config).await?;
    let publisher = match publisher {
        Some(publisher) => publisher,
        None => fence(config, &system, shutdown).await?,
    };
    // Before the fence another init could still have committed rows, or its end; only what is found now counts.
    let Survey { slot, found, system } = survey(&mut connection, config).await?;
    let unfinished = match found {
        Some(found) if is_unfinished(&found.checkpoint, &system) => Some(found.checkpoint),
        None if slot.is_none() => None,
        _ => return Err(anyhow::anyhow!("another init was at work at the same time").into()),
    };
    if let Some(unfinished) = &unfinished {
        same_choice(unfinished, options)?;
    }
    // What had been published to such topics is gone: all rows up to the progress are looked up.
    let recreated = identity::recreated_now(config, unfinished.as_ref()).await?;
    let mut pinned = unfinished
        .as_ref()
        .map_or_else(BTreeMap::new, |checkpoint| checkpoint.lineage.partitions.clone());
    pinned
        .retain(|topic, _| other_partitions == OtherPartitions::Refused && !identity::is_recreated(&recreated, topic));
    if slot.is_some() {
        tracing::info!(
            slot = config.slot,
            "an earlier init did not finish: making its slot anew"
        );
        drop_slot(&mut connection, config).await?;
    }
    let mut lineage = lineage_now(config, &system, &publication, &wanted, pinned).await?;
    if let Some(unfinished) = &unfinished {
        let mut known = unfinished.lineage.clone();
        identity::forget(&mut known, &recreated);
        lineage.former_partitions = match other_partitions {
            OtherPartitions::Refused => known.former_partitions,
            OtherPartitions::Accepted => known.all_partition_counts(),
        };
    }
    lineage.positions_raised_by = unfinished
        .as_ref()
        .map_or(0, |checkpoint| checkpoint.lineage.positions_raised_by);
    let begun = Begun {
        generation: unfinished.as_ref().map_or(0, |checkpoint| checkpoint.generation),
        highest_position: unfinished.as_ref().map(highest_position),
        parking: unfinished
            .as_ref()
            .map_or_else(ParkingNote::default, |checkpoint| checkpoint.parking.clone()),
        lineage,
        publisher,
        connection,
        system,
    };
    let published = unfinished
        .as_ref()
        .and_then(|checkpoint| progress_of(checkpoint, &begun.system, !recreated.is_empty()));
    create(config, options, begun, published, shutdown).await
}

/// Whether the checkpoint is that of an init of this cluster that did not come to its end.
fn is_unfinished(checkpoint: &Checkpoint, system: &System) -> bool {
    checkpoint.state == State::Initialising && checkpoint.lineage.system_identifier == system.identifier
}

/// An init that went on by publishing what the first one was to leave would publish it a second time.
fn same_choice(unfinished: &Checkpoint, options: &InitOptions) -> Result<(), Stop> {
    let skips = unfinished.begun.is_some_and(|begun| begun.skips_existing_rows);
    if skips && options.existing_rows != ExistingRows::Skip {
        return Err(Stop::Config {
            what: "--existing-rows: an earlier init began with `skip` and did not finish; go on with it by `outbox-relay init --existing-rows skip`; `outbox-relay replay` publishes chosen rows afterwards".to_owned(),
        });
    }
    Ok(())
}

/// Which rows an unfinished init has published.
fn progress_of(unfinished: &Checkpoint, system: &System, is_topic_recreated: bool) -> Option<ExistingRowsProgress> {
    let mut progress = unfinished.existing_rows.clone()?;
    if unfinished.lineage.timeline != system.timeline || is_topic_recreated {
        // Another history may have given the same transaction ids to others, and another topic has none of the records: no id tells anything, and
        // all these rows are looked up.
        progress.snapshot_xmin = 0;
    }
    Some(progress)
}

/// The lineage to pin, with the partition counts of the topics in `pinned`, which must be as they were, and of those in `wanted`.
async fn lineage_now(
    config: &Config,
    system: &System,
    publication: &Publication,
    wanted: &[NewTopic],
    pinned: BTreeMap<String, i32>,
) -> Result<Lineage, RelayError> {
    let (settings, names) = (config.kafka.clone(), pinned.keys().cloned().collect::<Vec<_>>());
    let counts = tokio::task::spawn_blocking(move || partition_counts(&settings, &names))
        .await
        .context("metadata task")??;
    let mut lineage = source::lineage(config, system, publication, pinned);
    for topic in lineage.partitions.keys().cloned().collect::<Vec<_>>() {
        lineage.pin(&topic, counts.get(&topic).copied().unwrap_or(0))?;
    }
    for topic in wanted.iter().skip(1) {
        if let Some(partitions) = find_or_create(&config.kafka, &topic.name, None).await? {
            lineage.pin(&topic.name, partitions)?;
        }
    }
    Ok(lineage)
}

/// Makes the slot, publishes the rows that are there and not published by an unfinished init, and writes the checkpoint that is `running`.
///
/// # Errors
/// A row that cannot be published is named; whatever it is, no transaction is left open.
pub(crate) async fn create(
    config: &Config,
    options: &InitOptions,
    begun: Begun,
    published: Option<ExistingRowsProgress>,
    shutdown: &Shutdown,
) -> Result<Initialised, RelayError> {
    let system_identifier = begun.system.identifier.clone();
    wait_until_nothing_is_open(config, begun.lineage.partitions.keys(), shutdown).await?;
    match make(config, options, begun, published, shutdown).await {
        Ok(done) => Ok(done),
        Err(err) => Err(failed_command::ended(config, &system_identifier, err).await),
    }
}

async fn make(
    config: &Config,
    options: &InitOptions,
    begun: Begun,
    published: Option<ExistingRowsProgress>,
    shutdown: &Shutdown,
) -> Result<Initialised, RelayError> {
    let Begun {
        mut connection,
        mut publisher,
        system,
        mut lineage,
        generation,
        highest_position,
        parking,
    } = begun;
    identity::pin_all_ids(config, &mut lineage).await?;
    let mut checkpoint = Checkpoint {
        format: FORMAT,
        state: State::Initialising,
        lineage,
        published: Published {
            lsn: system.wal_end,
            partial: None,
        },
        incarnation: uuid::Uuid::new_v4().to_string(),
        generation,
        // Said again at once: it would be lost by a kill before the first piece.
        existing_rows: published,
        begun: Some(BegunInit {
            skips_existing_rows: options.existing_rows == ExistingRows::Skip,
            highest_position,
        }),
        parking,
    };
    commit(&mut publisher, config, &checkpoint).await?;
    faults::point("init.begun")?;
    // Asked for before the slot is made: its snapshot lives only as long as this session runs nothing else.
    let has_table = source::has_table(&mut connection, config).await?;
    let (consistent_point, exported) = create_slot(&mut connection, config, options.failover).await?;
    let raised_by = checkpoint.lineage.positions_raised_by;
    checkpoint.lineage.positions_raised_by = raise_above(highest_position, raised_by, lsn_before(consistent_point));
    // The rows that were there are published with positions just below it.
    checkpoint.published.lsn = consistent_point;
    faults::point("init.slot-made")?;
    let rows = match options.existing_rows {
        ExistingRows::Skip => 0,
        // A message that was emitted before the slot is in no table.
        ExistingRows::Publish if !has_table => 0,
        ExistingRows::Publish => {
            let job = ExistingRowsJob {
                config,
                exported: &exported,
                consistent_point,
                undecided: options.undecided,
                shutdown,
            };
            job.publish(&mut checkpoint, &mut publisher).await?
        }
    };
    checkpoint.state = State::Running;
    checkpoint.existing_rows = None;
    checkpoint.begun = None;
    faults::point("init.before-end")?;
    commit(&mut publisher, config, &checkpoint).await?;
    faults::point("init.ended")?;
    Ok(Initialised::Created {
        checkpoint: consistent_point,
        rows,
    })
}

/// A topic that deletes records by their age or its size has no first checkpoint written to it.
async fn ensure_checkpoint_topic_keeps_its_last_record(config: &Config) -> Result<(), Stop> {
    let topic = &config.checkpoint_topic;
    match retention_danger(
        &config.kafka,
        topic,
        "whether the checkpoint topic keeps its last record",
    )
    .await
    {
        Some(what) => Err(compaction::checkpoint_topic_unsafe(config, what)),
        None => Ok(()),
    }
}

pub(crate) async fn create_publication(connection: &mut Connection, config: &Config) -> Result<(), RelayError> {
    if source::publication(connection, config).await?.is_some() {
        return Ok(());
    }
    let table = format!(
        "{}.{}",
        quote_identifier(&config.schema),
        quote_identifier(&config.table)
    );
    // Where messages are the outbox there may be no table; a stream needs a publication all the same.
    let tables = if config.message_prefix.is_none() || source::has_table(connection, config).await? {
        format!("for table {table}")
    } else {
        String::new()
    };
    // Inserts alone are events; and with its root, a partitioned outbox is one table in the stream, whatever its partitions.
    let sql = format!(
        "create publication {} {tables} with (publish = 'insert', publish_via_partition_root = true)",
        quote_identifier(&config.publication)
    );
    connection
        .rows(&sql)
        .await
        .context("cannot create the publication (it takes the table's owner, and create on the database)")?;
    tracing::info!(publication = config.publication, "created the publication");
    Ok(())
}

pub(crate) async fn fence(config: &Config, system: &System, shutdown: &Shutdown) -> Result<Publisher, RelayError> {
    fence_cluster(config, &system.identifier, shutdown).await
}

/// Fences the relays of this slot's name in the cluster with this identifier.
pub(crate) async fn fence_cluster(
    config: &Config,
    system_identifier: &str,
    shutdown: &Shutdown,
) -> Result<Publisher, RelayError> {
    let settings = config.kafka.with_transaction_timeout(TRANSACTION_TIMEOUT_MS);
    let (id, topic) = (
        config.transactional_id(system_identifier),
        config.checkpoint_topic.clone(),
    );
    let shutdown = shutdown.clone();
    tokio::task::spawn_blocking(move || {
        Publisher::start(&settings, Delivery::ExactlyOnce, &id, &topic, &|| {
            shutdown.is_triggered()
        })
    })
    .await
    .context("kafka task")?
}

pub(crate) async fn commit(
    publisher: &mut Publisher,
    config: &Config,
    checkpoint: &Checkpoint,
) -> Result<(), RelayError> {
    publisher.commit(
        &config.checkpoint_topic,
        &config.checkpoint_key(),
        &checkpoint.to_json(),
    )?;
    publisher.committed().await.map(|_| ())
}

async fn adopt(
    config: &Config,
    system: &System,
    slot: Slot,
    lineage: Lineage,
    shutdown: &Shutdown,
) -> Result<Initialised, RelayError> {
    usable_slot(&slot, &config.slot, &config.target.database)?;
    ensure_checkpoint_topic_keeps_its_last_record(config).await?;
    // Owned while the checkpoint is made: nobody may move it meanwhile. Fails where it is active.
    let owner = take_over_slot(config).await?;
    let mut connection = Connection::open(&config.target, Mode::Replication).await?;
    let slot = source::slot(&mut connection, &config.slot)
        .await?
        .context("the slot vanished")?;
    let mut publisher = fence(config, system, shutdown).await?;
    let mut lineage = lineage;
    identity::pin_all_ids(config, &mut lineage).await?;
    // Of an earlier life of the slot, whose checkpoint is lost.
    let parking = parking::log::counted(config, None).await?;
    let checkpoint = Checkpoint {
        format: FORMAT,
        state: State::Running,
        lineage,
        published: Published {
            lsn: slot.confirmed,
            partial: None,
        },
        incarnation: uuid::Uuid::new_v4().to_string(),
        generation: 0,
        existing_rows: None,
        begun: None,
        parking,
    };
    commit(&mut publisher, config, &checkpoint).await?;
    tracing::warn!(
        slot = config.slot,
        checkpoint.new_lsn = %slot.confirmed,
        "an operator hands over an existing slot: the relay goes on from its confirmed position"
    );
    owner.into_stream().close().await;
    Ok(Initialised::Adopted {
        checkpoint: slot.confirmed,
    })
}

pub(crate) async fn drop_slot(connection: &mut Connection, config: &Config) -> anyhow::Result<()> {
    let sql = format!("select pg_drop_replication_slot({})", quote_literal(&config.slot));
    let started = Instant::now();
    loop {
        match connection.rows(&sql).await {
            Ok(_) => return Ok(()),
            // object_in_use: perhaps only until the server has noticed that the slot's maker is gone. A slot that was not made yet goes with it.
            Err(err) if PgError::code_of(&err) == Some("55006") && started.elapsed() < RELEASE_PATIENCE => {
                sleep(Duration::from_millis(100)).await;
            }
            // undefined_object
            Err(err) if PgError::code_of(&err) == Some("42704") => return Ok(()),
            Err(err) => return Err(err.context("cannot drop the slot")),
        }
    }
}

/// Makes the slot; returns where its stream begins and the name of the snapshot of all that came before, which lives as long as
/// `connection` runs nothing else.
pub(crate) async fn create_slot(
    connection: &mut Connection,
    config: &Config,
    failover: bool,
) -> Result<(Lsn, String), RelayError> {
    let sql = format!(
        "CREATE_REPLICATION_SLOT {} LOGICAL pgoutput (SNAPSHOT 'export'{})",
        quote_identifier(&config.slot),
        if failover { ", FAILOVER true" } else { "" }
    );
    let rows = connection.rows(&sql).await.context(
        "cannot create the slot (it takes the role attribute replication, wal_level = logical and a free slot)",
    )?;
    let row = rows.first().context("CREATE_REPLICATION_SLOT has no answer")?;
    let consistent_point = source::text(row, 1)?.parse().context("consistent point")?;
    tracing::info!(slot = config.slot, lsn = %consistent_point, "created the slot");
    Ok((consistent_point, source::text(row, 2)?.to_owned()))
}
