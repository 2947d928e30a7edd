//! `init`: publication, topics, slot, the rows that are there already, and the first checkpoint.
//!
//! The rows come from the slot's own snapshot, so that each row is either in it or in the stream, never in both or neither. They
//! travel in one Kafka transaction together with the first checkpoint: an `init` that dies has published nothing. A checkpoint that
//! says `initialising` is written before the slot is made, so that the next `init` knows the half-made slot for its own.

use anyhow::Context;
use service::Shutdown;

use crate::accept::own;
use crate::checkpoint::{Checkpoint, FORMAT, Lineage, State};
use crate::config::{Config, ExistingRows, InitOptions};
use crate::existing_rows::{ExistingRowsWriter, OutboxSnapshot};
use crate::failover;
use crate::kafka::{Delivery, NewTopic, Publisher, create_missing, find_or_create, topic_settings};
use crate::lineage::{Slot, verify};
use crate::lsn::Lsn;
use crate::outbox_check;
use crate::positions::raise_above;
use crate::postgres::{Connection, Mode, quote_identifier, quote_literal};
use crate::progress::Published;
use crate::source::{self, System};
use crate::startup::{Survey, ensure_no_other_slot_publishes, names, survey};
use crate::stop::{RelayError, Stop};
use crate::topic_identity;

/// All existing rows travel in one transaction; this is the longest that brokers allow by default.
const TRANSACTION_TIMEOUT_MS: &str = "900000";

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
    /// The highest position that readers may have seen: see [`crate::positions`].
    pub(crate) highest_position: Option<u64>,
}

/// Does what is missing. Safe to repeat, also after it was interrupted.
///
/// # Errors
/// A [`Stop`] where what is there does not fit together; anything else is worth another try.
pub async fn init(config: &Config, options: &InitOptions, shutdown: &Shutdown) -> Result<Initialised, RelayError> {
    let topics = options.topics(&config.topic_template)?;
    let mut connection = Connection::open(&config.target, Mode::Replication).await?;
    let config = &config.pinned_to(&mut connection).await?;
    if options.failover {
        failover::is_possible(connection.server_version_num())?;
    }
    create_publication(&mut connection, config).await?;
    let publication = source::usable_publication(&mut connection, config).await?;
    let mut wanted = vec![checkpoint_topic(&config.checkpoint_topic)];
    wanted.extend(topics);
    for name in create_missing(&config.kafka, &wanted).await? {
        tracing::info!(topic = name, "created a topic");
    }
    let Survey { slot, found, system } = survey(&mut connection, config).await?;
    let checkpoint = found.as_ref().map(|found| &found.checkpoint);
    let mut lineage = source::lineage(config, &system, &publication, std::collections::BTreeMap::new());
    for topic in wanted.iter().skip(1) {
        if let Some(partitions) = find_or_create(&config.kafka, &topic.name, None).await? {
            lineage.pin(&topic.name, partitions)?;
        }
    }
    if checkpoint.is_none() && !options.another_slot {
        ensure_no_other_slot_publishes(config, &system, &publication).await?;
    }
    lineage.positions_raised_by = checkpoint.map_or(0, |checkpoint| checkpoint.lineage.positions_raised_by);
    let unfinished = checkpoint.is_some_and(|checkpoint| {
        checkpoint.state == State::Initialising && checkpoint.lineage.system_identifier == system.identifier
    });
    match (slot, checkpoint) {
        (Some(slot), None) if options.adopt_slot => return adopt(config, &system, slot, lineage, shutdown).await,
        (Some(_), Some(_)) if unfinished => {
            tracing::info!(
                slot = config.slot,
                "an earlier init did not finish: making its slot anew"
            );
            drop_slot(&mut connection, config).await?;
        }
        (None, None) => {}
        (None, Some(_)) if unfinished => {}
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
    let begun = Begun {
        generation: checkpoint.map_or(0, |checkpoint| checkpoint.generation),
        highest_position: None,
        publisher: fence(config, &system, shutdown).await?,
        connection,
        system,
        lineage,
    };
    create(config, options, begun).await
}

/// Makes the slot, publishes the rows that are there, and writes the first checkpoint.
pub(crate) async fn create(config: &Config, options: &InitOptions, begun: Begun) -> Result<Initialised, RelayError> {
    let Begun {
        mut connection,
        mut publisher,
        system,
        mut lineage,
        generation,
        highest_position,
    } = begun;
    topic_identity::pin_all_ids(config, &mut lineage).await?;
    let mut checkpoint = Checkpoint {
        format: FORMAT,
        state: State::Initialising,
        lineage: lineage.clone(),
        published: Published {
            lsn: system.wal_end,
            partial: None,
        },
        incarnation: uuid::Uuid::new_v4().to_string(),
        generation,
    };
    commit(&mut publisher, config, &checkpoint).await?;
    // Asked for before the slot is made: its snapshot lives only as long as this session runs nothing else.
    let has_table = source::has_table(&mut connection, config).await?;
    let (consistent_point, snapshot) = create_slot(&mut connection, config, options.failover).await?;
    lineage.positions_raised_by = raise_above(highest_position, lineage.positions_raised_by, consistent_point);
    let rows = match options.existing_rows {
        ExistingRows::Skip => 0,
        // A message that was emitted before the slot is in no table.
        ExistingRows::Publish if !has_table => 0,
        ExistingRows::Publish => {
            publish_existing(config, &snapshot, consistent_point, &mut lineage, &mut publisher).await?
        }
    };
    checkpoint.state = State::Running;
    checkpoint.lineage = lineage;
    checkpoint.published = Published {
        lsn: consistent_point,
        partial: None,
    };
    commit(&mut publisher, config, &checkpoint).await?;
    Ok(Initialised::Created {
        checkpoint: consistent_point,
        rows,
    })
}

/// A topic that deletes records by their age or its size has no first checkpoint written to it.
async fn ensure_checkpoint_topic_keeps_its_last_record(config: &Config) -> Result<(), Stop> {
    match topic_settings(&config.kafka, &config.checkpoint_topic).await {
        Ok(settings) => match settings.retention_danger() {
            Some(what) => Err(Stop::checkpoint_topic_unsafe(config, what)),
            None => Ok(()),
        },
        Err(err) => {
            tracing::warn!(
                error = format!("{err:#}"),
                "whether the checkpoint topic keeps its last record is not known"
            );
            Ok(())
        }
    }
}

/// Small segments, so that compaction keeps up and a start reads little.
pub(crate) fn checkpoint_topic(name: &str) -> NewTopic {
    let settings = [
        ("cleanup.policy", "compact"),
        ("segment.bytes", "16777216"),
        ("min.cleanable.dirty.ratio", "0.1"),
    ];
    NewTopic {
        name: name.to_owned(),
        partitions: 1,
        settings: settings
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec(),
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
    let mut settings = config.kafka.clone();
    settings
        .properties
        .push(("transaction.timeout.ms".to_owned(), TRANSACTION_TIMEOUT_MS.to_owned()));
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
    if slot.plugin != "pgoutput" || slot.database != config.target.database {
        return Err(Stop::SlotUnusable {
            slot: config.slot.clone(),
            database: config.target.database.clone(),
            found: format!("plugin {}, database {}", slot.plugin, slot.database),
        }
        .into());
    }
    ensure_checkpoint_topic_keeps_its_last_record(config).await?;
    // Owned while the checkpoint is made: nobody may move it meanwhile. Fails where it is active.
    let owner = own(config).await?;
    let mut connection = Connection::open(&config.target, Mode::Replication).await?;
    let slot = source::slot(&mut connection, &config.slot)
        .await?
        .context("the slot vanished")?;
    let mut publisher = fence(config, system, shutdown).await?;
    let mut lineage = lineage;
    topic_identity::pin_all_ids(config, &mut lineage).await?;
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
    let slot = quote_literal(&config.slot);
    connection
        .rows(&format!("select pg_drop_replication_slot({slot})"))
        .await?;
    Ok(())
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

async fn publish_existing(
    config: &Config,
    snapshot: &str,
    consistent_point: Lsn,
    lineage: &mut Lineage,
    publisher: &mut Publisher,
) -> Result<u64, RelayError> {
    let mut snapshot = OutboxSnapshot::open(config, Some(snapshot), Vec::new()).await?;
    snapshot.read("*", true).await?;
    let mut existing = ExistingRowsWriter::new(config, lineage, publisher, consistent_point);
    loop {
        let answer = snapshot.fetch().await?;
        if answer.rows.is_empty() {
            break;
        }
        existing.write(&answer).await?;
        tracing::info!(rows = existing.rows, "publishing rows that were there already");
    }
    let rows = existing.rows;
    snapshot.close().await?;
    Ok(rows)
}
