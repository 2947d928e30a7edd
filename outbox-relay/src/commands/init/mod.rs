//! `init`: makes the publication, the topics and the slot, publishes the rows that are in the table already, and writes the first checkpoint.
//!
//! The rows come from the slot's own snapshot. So each row is either in the snapshot or in the stream, never in both and never in neither. Few rows are
//! published in one Kafka transaction, together with the first checkpoint. Many rows are published in pieces, see [`pieces`]. Before the slot is made,
//! `init` writes a checkpoint that says `initialising`. So the next `init` knows that a half-made slot is its own, and which rows are published.

mod adopt;
mod late_rows;
mod make;
mod piece_writer;
pub mod pieces;
mod unfinished;

use std::collections::BTreeMap;

use service::Shutdown;

use self::adopt::adopt;
pub(crate) use self::make::{FencedInit, make_slot_and_publish_existing_rows};
use self::unfinished::{CarriedOver, ensure_same_choice, is_unfinished};
use crate::commands::fence::fence_relays_of_cluster;
use crate::continuity::checkpoint::Lineage;
use crate::continuity::lineage::verify;
use crate::findings::failover;
use crate::findings::outbox_check;
use crate::findings::server_check;
use crate::kafka::{NewTopic, Publisher, find_or_create};
use crate::outbox::publication::{create_publication, require_usable_publication};
use crate::outbox::slot::drop_slot;
use crate::outbox::source;
use crate::outbox::standby;
use crate::parking;
use crate::process::stop::{RelayError, Stop};
use crate::relay::survey::{Survey, ensure_no_other_slot_publishes, take_survey};
use crate::settings::poison::PoisonPolicy;
use crate::settings::{Config, InitOptions};
use crate::topics::compaction;
use crate::topics::destination;
use pg_replication::Lsn;
use pg_replication::{Connection, Mode};

/// What `init` found or did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Initialised {
    /// Everything was there already, and fits together.
    Already { checkpoint: Lsn },
    /// The slot is new, and so many rows are published that were in the table already.
    Created { checkpoint: Lsn, rows: u64 },
    /// An existing slot is continued.
    Adopted { checkpoint: Lsn },
    /// An operator's flags, `what`, have set the checkpoint.
    Accepted { checkpoint: Lsn, what: String },
}

/// An earlier init did not finish, and since then a topic's number of partitions has changed. What is done then?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OtherPartitions {
    Refused,
    /// An operator accepts that later events of a key go to another partition than those that are published.
    Accepted,
}

/// Makes what is missing. It is safe to run it again, also after it was interrupted.
///
/// # Errors
/// A [`Stop`] if the parts that exist do not fit together. Any other error is worth another try.
pub async fn init(config: &Config, options: &InitOptions, shutdown: &Shutdown) -> Result<Initialised, RelayError> {
    init_with_partitions(config, options, OtherPartitions::Refused, shutdown).await
}

/// As [`init`], and says what is done if the topics' numbers of partitions have changed.
///
/// 1. **Refuse** what can never work, before anything is made.
/// 2. **Make publication and topics**, if they are missing. A checkpoint needs its topic, and a slot decodes nothing from before its publication.
/// 3. **Fence, if the slot is free.** An init that was killed may have left a Kafka transaction open, which hides the checkpoint until its timeout.
///    Fencing ends that transaction. If somebody reads the slot, a relay runs, and must not be disturbed.
/// 4. **Look at what is there.** If everything is there, we are done. If the operator hands over a slot, adopt it. If nothing is there, or only what an
///    earlier init has left, go on.
/// 5. **Fence, if step 3 did not, and look again.** Before the fence another init could still have committed rows, or its last checkpoint.
/// 6. **Drop a half-made slot.** Its snapshot is gone, since it lived only as long as the session that made it.
/// 7. **Make the slot, publish the rows, write the checkpoint**: see [`make_slot_and_publish_existing_rows`].
pub(crate) async fn init_with_partitions(
    config: &Config,
    options: &InitOptions,
    other_partitions: OtherPartitions,
    shutdown: &Shutdown,
) -> Result<Initialised, RelayError> {
    // Step 1.
    let topics_for_rows = options.topics(&config.sink.topic_template);
    ensure_rows_may_go_to(config, &topics_for_rows)?;
    let mut connection = Connection::open(&config.source.target, Mode::Replication).await?;
    ensure_server_supports_options(&mut connection, config, options).await?;
    let config = &config.pinned_to(&mut connection).await?;
    // Step 2.
    create_publication(&mut connection, config).await?;
    let publication = require_usable_publication(&mut connection, config).await?;
    create_topics(config, &topics_for_rows).await?;
    // Step 3.
    let early_publisher = fence_if_slot_is_free(&mut connection, config, shutdown).await?;
    if config.poison.poison == PoisonPolicy::Park {
        parking::topic::create(config).await?;
    }
    // Step 4.
    let Survey { slot, stored, system } = take_survey(&mut connection, config).await?;
    let checkpoint = stored.as_ref().map(|stored| &stored.checkpoint);
    if checkpoint.is_none() && !options.another_slot {
        ensure_no_other_slot_publishes(config, &system, &publication).await?;
    }
    match (slot, checkpoint) {
        (Some(slot), None) if options.adopt_slot => {
            let mut lineage = source::new_lineage(config, &system, &publication, BTreeMap::new());
            pin_topics(config, &mut lineage, &topics_for_rows).await?;
            return adopt(config, &system, slot, lineage, shutdown).await;
        }
        (_, Some(checkpoint)) if is_unfinished(checkpoint, &system) => {}
        (None, None) => {}
        (slot, checkpoint) => {
            let source = source::describe_source(config, &system, slot, &publication);
            let checkpoint = verify(&source, checkpoint, config.names_for_messages())?;
            if options.failover {
                failover::make_failover(&mut connection, &config.source.slot).await?;
            }
            return Ok(Initialised::Already {
                checkpoint: checkpoint.published.lsn,
            });
        }
    }
    compaction::ensure_checkpoint_topic_keeps_its_last_record(config).await?;
    outbox_check::ensure_all_rows_would_be_published(&mut connection, config).await?;
    // Step 5.
    let publisher = match early_publisher {
        Some(publisher) => publisher,
        None => fence_relays_of_cluster(config, &system.identifier, shutdown).await?,
    };
    let Survey { slot, stored, system } = take_survey(&mut connection, config).await?;
    let unfinished = match stored {
        Some(stored) if is_unfinished(&stored.checkpoint, &system) => Some(stored.checkpoint),
        None if slot.is_none() => None,
        _ => return Err(anyhow::anyhow!("another init was at work at the same time").into()),
    };
    if let Some(unfinished) = &unfinished {
        ensure_same_choice(unfinished, options)?;
    }
    // Step 6.
    if slot.is_some() {
        tracing::info!(
            slot = config.source.slot.as_str(),
            "an earlier init did not finish: making its slot anew"
        );
        drop_slot(&mut connection, config).await?;
    }
    // Step 7.
    let new_lineage = source::new_lineage(config, &system, &publication, BTreeMap::new());
    let CarriedOver {
        mut lineage,
        generation,
        highest_position,
        parking,
        progress,
    } = CarriedOver::from_earlier_init(config, new_lineage, unfinished.as_ref(), other_partitions).await?;
    pin_topics(config, &mut lineage, &topics_for_rows).await?;
    let fenced = FencedInit {
        connection,
        publisher,
        system,
        lineage,
        generation,
        highest_position,
        parking,
    };
    make_slot_and_publish_existing_rows(config, options, fenced, progress, shutdown).await
}

fn ensure_rows_may_go_to(config: &Config, topics: &[NewTopic]) -> Result<(), Stop> {
    for topic in topics {
        if let Some(whose) = destination::is_not_for_rows(config, &topic.name) {
            return Err(Stop::Config {
                what: format!("--topic `{}` is {whose}: no row may go there", topic.name),
            });
        }
    }
    Ok(())
}

async fn ensure_server_supports_options(
    connection: &mut Connection,
    config: &Config,
    options: &InitOptions,
) -> Result<(), RelayError> {
    server_check::ensure_version(connection.server_version_num())?;
    // If there is a slot of that name already, its relay goes on, since the names of a running relay cannot be changed easily.
    if let Some(what) = config.may_share_transactional_id()
        && source::find_slot(connection, &config.source.slot).await?.is_none()
    {
        return Err(Stop::Config { what }.into());
    }
    if options.failover {
        failover::ensure_server_has_failover_slots(connection.server_version_num())?;
    }
    Ok(())
}

async fn create_topics(config: &Config, topics_for_rows: &[NewTopic]) -> Result<(), RelayError> {
    let mut topics = vec![NewTopic::compacted(&config.sink.checkpoint_topic)];
    topics.extend_from_slice(topics_for_rows);
    for name in destination::create_topics(config, &topics).await? {
        tracing::info!(topic = name, "created a topic");
    }
    Ok(())
}

async fn fence_if_slot_is_free(
    connection: &mut Connection,
    config: &Config,
    shutdown: &Shutdown,
) -> Result<Option<Publisher>, RelayError> {
    if standby::is_taken(connection, &config.source.slot).await? {
        return Ok(None);
    }
    let system = source::identify_server(connection).await?;
    let publisher = fence_relays_of_cluster(config, &system.identifier, shutdown).await?;
    Ok(Some(publisher))
}

/// Pins the partition counts of the topics that the operator names. If the lineage has a count of a topic already, the topic must still have it.
async fn pin_topics(config: &Config, lineage: &mut Lineage, topics: &[NewTopic]) -> Result<(), RelayError> {
    for topic in topics {
        if let Some(partitions) = find_or_create(&config.sink.kafka, &topic.name, None).await? {
            lineage.pin(&topic.name, partitions)?;
        }
    }
    Ok(())
}
