//! How a cycle begins. The order of its steps is what makes the relay exactly-once:
//!
//! 1. **Own the slot**, and confirm nothing. Only one session can have a slot, so owning it is leadership; a second relay waits
//!    here. Were the checkpoint read before, an earlier owner could still publish behind our back.
//! 2. **`init_transactions`** under the slot's transactional id. The broker raises the id's epoch: a zombie, even one that is
//!    paused in the middle of a commit, can write nothing from here on, and what it left open is aborted or completed.
//! 3. **Only now read the checkpoint**, read_committed, to the end. Before step 2 the zombie could still have committed a later one.
//!    Nor may a transaction be open in the topics that are written to, see [`crate::topics::hanging_transaction`].
//! 4. **Verify the lineage**: the same cluster, timeline, publication, topics and partition counts; the slot not ahead of the checkpoint, the
//!    server not behind it. What cannot be proven stops the relay.
//! 5. **Stream**, skipping what lies at or below the checkpoint: the slot's own position is garbage collection, never truth.
//!
//! The session that streams can answer no questions, so steps 4 and 5 need further sessions. Each of them proves that it is with the server
//! that streams ([`pg_replication::ServerInstance`]), on the same timeline, and that the slot's reader is our own walsender. Without that
//! proof, an address that moves to a promoted or restored server would have one server verified and another one streamed from.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use service::{Readiness, Shutdown};
use tokio::time::{Instant, interval, sleep, timeout};

use crate::continuity::checkpoint::{Checkpoint, State};
use crate::continuity::lineage::{Names, Slot, Source, no_other_slot_publishes, verify, written_for_this_server};
use crate::guard::{Guard, Pinned};
use crate::intake::server_error;
use crate::kafka::{Abandon, CheckpointLog, Delivery, Found, Publisher, Readers};
use crate::outbox::source::{self, Publication, System};
use crate::outbox::standby;
use crate::parking::{self, log::Parked};
use crate::process::faults::{self, Bug};
use crate::process::stop::{RelayError, Stop};
use crate::relay::topic_watch::TopicWatch;
use crate::settings::Config;
use crate::topics::hanging_transaction::before_it_is_ended;
use crate::topics::identity::{self, Topics};
use pg_replication::Lsn;
use pg_replication::{Connection, Frame, Frames, Mode, PgError, ReplicationStream, StandbyStatus};

/// How often the server is told that we live; several times within the shortest `wal_sender_timeout` that makes sense.
pub(crate) const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// What an ended stream still has is read within this time.
const WHY_ENDED_PATIENCE: Duration = Duration::from_secs(1);

/// Everything that a running stream needs.
pub struct Started {
    pub stream: ReplicationStream,
    pub publisher: Publisher,
    pub checkpoint: Checkpoint,
    pub guard: Guard,
    /// The settings for further sessions with the server that streams.
    pub here: Config,
    pub topics: TopicWatch,
    pub parked: Parked,
    /// See [`Slot::catalog_xmin`]: as it was before anything was confirmed.
    pub catalog_xmin: Option<u32>,
}

/// Goes through the steps; `None` when the program is to stop.
///
/// # Errors
/// A [`Stop`], or something that is worth another try.
pub async fn start(
    config: &Config,
    readiness: &Readiness,
    shutdown: &mut Shutdown,
) -> Result<Option<Started>, RelayError> {
    readiness.not_ready("postgres", "connecting");
    let mut connection = Connection::open(&config.target, Mode::Replication).await?;
    let here = config.pinned_to(&mut connection).await?;
    let system = source::identify(&mut connection).await?;
    let publication = source::usable_publication(&mut connection, config).await?;
    readiness.ready("postgres");
    faults::point("start.connected")?;
    if !own_slot(&mut connection, config, &publication, readiness, shutdown).await? {
        return Ok(None);
    }
    faults::point("start.owns-slot")?;
    let walsender_pid = connection.process_id();
    let mut stream = connection.into_stream();
    readiness.not_ready(
        "kafka",
        "fencing earlier producers and reading the checkpoint, for which open transactions are waited for",
    );
    tracing::info!(
        slot = config.slot,
        "owns the slot; fencing earlier producers and reading the checkpoint"
    );
    let on_kafka = start_on_kafka(config.clone(), system.identifier.clone(), shutdown.clone());
    let Some(outcome) = while_answering(&mut stream, on_kafka, shutdown).await? else {
        return Ok(None);
    };
    let (mut publisher, found, topics, parked) = outcome?;
    // What the slot says only counts now that nobody else can move it. The session that owns it streams, so another session asks.
    let mut connection = Connection::open(&here.target, Mode::Replication).await?;
    let system = source::identify_again(&mut connection, &system).await?;
    let slot = source::slot(&mut connection, &config.slot).await?;
    let read_by_us = if faults::is_planted(Bug::TrustAnyReader) {
        Ok(())
    } else {
        source::ensure_read_by(slot.as_ref(), walsender_pid)
    };
    let catalog_xmin = slot.as_ref().and_then(|slot| slot.catalog_xmin);
    let publication = source::usable_publication(&mut connection, config).await?;
    let source = source::source(&system, &config.target.database, slot, &publication);
    let written_ms = found.as_ref().and_then(|found| found.written_ms);
    let found = found.map(|found| found.checkpoint);
    let verified = verify(&source, found.as_ref(), names(config));
    if let Err(err) = read_by_us {
        return Err(match verified {
            // It ends the stream, and says more than the server's error. Anything else may be another relay's doing.
            Err(stop @ Stop::PublicationChanged { .. }) => stop.into(),
            _ => why_ended(&mut stream, config).await.unwrap_or_else(|| err.into()),
        });
    }
    if let (Err(Stop::ServerBehind { .. }), Some(checkpoint)) = (&verified, &found) {
        // That a copy is behind is nothing to remember: the relay of its original reads the same checkpoint.
        written_for_this_server(&source, checkpoint, written_ms)?;
        if checkpoint.state != State::Behind {
            remember_server_behind(config, &mut publisher, checkpoint.clone(), &system).await?;
        }
    }
    let mut checkpoint = verified?.clone();
    written_for_this_server(&source, &checkpoint, written_ms)?;
    checkpoint.lineage.server_started_us = system.started_us;
    let pin = checkpoint
        .lineage
        .publication_version
        .get_or_insert(publication.version);
    if checkpoint.lineage.outbox.is_none() {
        checkpoint.lineage.outbox = publication.outbox;
    }
    let pinned = Pinned {
        publication: pin.clone(),
        outbox: checkpoint.lineage.outbox.clone(),
        timeline: system.timeline,
        walsender_pid,
    };
    let guard = Guard::start(&here, pinned, readiness);
    if let Some(stop) = identity::breaks(&checkpoint.lineage, &topics).into_iter().next() {
        return Err(stop.into());
    }
    parking::log::all_there(config, &checkpoint.parking, parked.rows)?;
    identity::pin_ids(&mut checkpoint.lineage, &topics);
    let checkpoint = if checkpoint.lineage.timeline == system.timeline {
        checkpoint
    } else {
        let followed = follow_promotion(config, &mut publisher, checkpoint, &system);
        match while_answering(&mut stream, followed, shutdown).await? {
            Some(checkpoint) => checkpoint?,
            None => return Ok(None),
        }
    };
    readiness.ready("kafka");
    faults::point("start.verified")?;
    #[cfg(feature = "faults")]
    let checkpoint = with_planted_position(checkpoint, &source);
    Ok(Some(Started {
        stream,
        publisher,
        topics: TopicWatch::start(config, &checkpoint.lineage),
        checkpoint,
        guard,
        here,
        parked,
        catalog_xmin,
    }))
}

/// The error with which the server has ended the stream; `None` where it gave none.
async fn why_ended(stream: &mut ReplicationStream, config: &Config) -> Option<RelayError> {
    let reading = async {
        loop {
            let length = match Frames::new(stream.buffer()).peek().ok()? {
                Some((Frame::Error { code, message }, _)) => {
                    return Some(server_error(&config.publication, code, message));
                }
                Some((_, length)) => length,
                None => {
                    stream.reserve_for_next_frame().ok()?;
                    stream.read().await.ok()?;
                    continue;
                }
            };
            stream.consume(length);
        }
    };
    timeout(WHY_ENDED_PATIENCE, reading).await.ok().flatten()
}

/// Goes over to a promoted server, whose history was proven to continue the checkpoint's. Its timeline is committed before anything else: from
/// then on the former primary, should it come back, is refused.
async fn follow_promotion(
    config: &Config,
    publisher: &mut Publisher,
    mut checkpoint: Checkpoint,
    system: &System,
) -> Result<Checkpoint, RelayError> {
    tracing::warn!(
        slot = config.slot,
        timeline.from = checkpoint.lineage.timeline,
        timeline.to = system.timeline,
        checkpoint.lsn = %checkpoint.published.lsn,
        "a standby was promoted: it has all that is published and a copy of the slot, so the stream goes on there"
    );
    checkpoint.lineage.timeline = system.timeline;
    publisher.commit(
        &config.checkpoint_topic,
        &config.checkpoint_key(),
        &checkpoint.to_json(),
    )?;
    publisher.committed().await?;
    Ok(checkpoint)
}

/// Writes down that the server was found behind the checkpoint: see [`State::Behind`].
async fn remember_server_behind(
    config: &Config,
    publisher: &mut Publisher,
    checkpoint: Checkpoint,
    system: &System,
) -> Result<(), RelayError> {
    let mut behind = Checkpoint {
        state: State::Behind,
        ..checkpoint
    };
    behind.lineage.server_started_us = system.started_us;
    publisher.commit(&config.checkpoint_topic, &config.checkpoint_key(), &behind.to_json())?;
    publisher.committed().await.map(|_| ())
}

/// Waits until the slot is ours; false when the program is to stop.
async fn own_slot(
    connection: &mut Connection,
    config: &Config,
    publication: &Publication,
    readiness: &Readiness,
    shutdown: &mut Shutdown,
) -> Result<bool, RelayError> {
    let mut waits = false;
    loop {
        let is_taken = standby::is_taken(connection, &config.slot).await?;
        if !is_taken {
            let Err(err) = connection
                .start_stream(
                    &config.slot,
                    Lsn::INVALID,
                    &config.publication,
                    config.message_prefix.is_some(),
                )
                .await
            else {
                readiness.ready("slot");
                return Ok(true);
            };
            match PgError::code_of(&err) {
                // object_in_use: another standby was faster.
                Some("55006") => {}
                // undefined_object, or a slot that can give nothing any more: the checkpoint tells what that means.
                Some("42704" | "55000") => return Err(no_slot(connection, config, publication, err).await),
                _ => return Err(err.into()),
            }
        }
        if !waits {
            waits = true;
            tracing::info!(
                slot = config.slot,
                "another relay has the slot: waiting as a warm standby"
            );
            readiness.not_ready("slot", "another relay has it; this one is a warm standby");
        }
        tokio::select! {
            () = sleep(standby::LOOK_INTERVAL) => {}
            () = shutdown.triggered() => return Ok(false),
        }
    }
}

/// Why there is no slot to read: never made, dropped, or invalidated.
async fn no_slot(
    connection: &mut Connection,
    config: &Config,
    publication: &Publication,
    err: anyhow::Error,
) -> RelayError {
    let looked = async {
        let Survey { slot, found, system } = survey(connection, config).await?;
        let source = source::source(&system, &config.target.database, slot, publication);
        let verified = verify(&source, found.as_ref().map(|found| &found.checkpoint), names(config));
        if let Err(Stop::NotInitialised { .. }) = verified {
            // A slot with a letter wrong looks like one that was never made.
            ensure_no_other_slot_publishes(config, &system, publication).await?;
        }
        verified?;
        Err(RelayError::Transient(err))
    };
    match looked.await {
        Ok(()) => RelayError::Transient(anyhow::anyhow!("the slot cannot be read")),
        Err(reason) => reason,
    }
}

/// What there is where nothing is owned, so that a relay may be publishing meanwhile.
pub(crate) struct Survey {
    pub(crate) slot: Option<Slot>,
    pub(crate) found: Option<Found>,
    pub(crate) system: System,
}

/// Looks at the slot, then at the checkpoint, then at the server. In another order a relay that goes on would look like a broken lineage: the
/// slot is confirmed behind the checkpoint, and the checkpoint lies behind the end of the WAL.
pub(crate) async fn survey(connection: &mut Connection, config: &Config) -> Result<Survey, RelayError> {
    let slot = source::slot(connection, &config.slot).await?;
    let found = read_checkpoint(config.clone()).await?;
    let system = source::identify(connection).await?;
    Ok(Survey { slot, found, system })
}

/// The checkpoint, without owning anything: for looking only.
pub(crate) async fn read_checkpoint(config: Config) -> Result<Option<Found>, RelayError> {
    tokio::task::spawn_blocking(move || {
        let log = CheckpointLog {
            settings: &config.kafka,
            topic: &config.checkpoint_topic,
        };
        log.last(&config.checkpoint_key(), config.delivery, &|| false)
    })
    .await
    .context("checkpoint task")?
}

/// Reads the checkpoints of all relays that share the topic, and makes sure that none of another slot is of this outbox.
///
/// # Errors
/// [`Stop::PublishedByAnotherSlot`]; anything else is worth another try.
pub(crate) async fn ensure_no_other_slot_publishes(
    config: &Config,
    system: &System,
    publication: &Publication,
) -> Result<(), RelayError> {
    let others = checkpoints_of_all(config).await?;
    Ok(none_publishes(config, system, publication.outbox.as_deref(), &others)?)
}

/// As [`ensure_no_other_slot_publishes`], but a slot that this database does not have any more publishes nothing: where its name was taken by
/// another database meanwhile, its relay goes on under another one.
///
/// # Errors
/// [`Stop::PublishedByAnotherSlot`]; anything else is worth another try.
pub(crate) async fn ensure_no_other_slot_can_publish(
    connection: &mut Connection,
    config: &Config,
    system: &System,
    source: &Source,
) -> Result<(), RelayError> {
    let mut others = BTreeMap::new();
    for (key, checkpoint) in checkpoints_of_all(config).await? {
        let slot = source::slot(connection, &checkpoint.lineage.slot).await?;
        if slot.is_some_and(|slot| slot.database == config.target.database) {
            others.insert(key, checkpoint);
        }
    }
    Ok(none_publishes(config, system, source.outbox.as_deref(), &others)?)
}

fn none_publishes(
    config: &Config,
    system: &System,
    outbox: Option<&str>,
    others: &BTreeMap<String, Checkpoint>,
) -> Result<(), Stop> {
    no_other_slot_publishes(
        outbox,
        &system.identifier,
        &config.target.database,
        others,
        names(config),
    )
}

async fn checkpoints_of_all(config: &Config) -> Result<BTreeMap<String, Checkpoint>, RelayError> {
    let reading = config.clone();
    let read = tokio::task::spawn_blocking(move || {
        let log = CheckpointLog {
            settings: &reading.kafka,
            topic: &reading.checkpoint_topic,
        };
        log.last_of_each_key(&|| false)
    });
    read.await.context("checkpoint task")?
}

/// Steps 2 and 3, what the checkpoint's topics are now, and what is parked.
async fn start_on_kafka(
    config: Config,
    system_identifier: String,
    shutdown: Shutdown,
) -> Result<(Publisher, Option<Found>, Topics, Parked), RelayError> {
    // A start that was given up must not go on by itself: fencing late, it would fence its own successor.
    let abandon = Abandon::default();
    let abandoned = abandon.watch();
    let started = tokio::task::spawn_blocking(move || {
        let gives_up = || shutdown.is_triggered() || abandoned.is_told();
        let log = CheckpointLog {
            settings: &config.kafka,
            topic: &config.checkpoint_topic,
        };
        let key = config.checkpoint_key();
        let early = if faults::is_planted(Bug::CheckpointBeforeFence) {
            let found = log.last(&key, config.delivery, &gives_up)?;
            // Long enough for an earlier producer's commit to come in between.
            std::thread::sleep(Duration::from_secs(4));
            found
        } else {
            None
        };
        let id = config.transactional_id(&system_identifier);
        // The readers only connect while earlier producers are being fenced.
        let (publisher, readers) = std::thread::scope(|scope| {
            let opening = scope.spawn(|| log.open());
            let publisher = Publisher::start(&config.kafka, config.delivery, &id, log.topic, &gives_up);
            (publisher, opening.join())
        });
        let mut publisher = publisher?;
        tracing::debug!("fenced earlier producers");
        faults::point("start.fenced")?;
        // Kafka may have been away for longer than they wait.
        let readers = match readers {
            Ok(Ok(readers)) => readers,
            _ => log.open()?,
        };
        let found = match early {
            Some(found) => Ok(Some(found)),
            None => log.last_by(&readers, &key, config.delivery, &gives_up),
        };
        let found = match found {
            Err(RelayError::Stop(stop)) => {
                return Err(before_it_is_ended(
                    &config,
                    &mut publisher,
                    &readers,
                    None,
                    stop,
                    &gives_up,
                ));
            }
            found => found?,
        };
        tracing::debug!("read the checkpoint");
        faults::point("start.checkpoint-read")?;
        let (topics, parked) = match look_at_topics(&config, &readers, found.as_ref(), &gives_up) {
            Err(RelayError::Stop(stop)) => {
                let known = found.map(|found| found.checkpoint);
                return Err(before_it_is_ended(
                    &config,
                    &mut publisher,
                    &readers,
                    known,
                    stop,
                    &gives_up,
                ));
            }
            looked => looked?,
        };
        Ok((publisher, found, topics, parked))
    });
    started.await.context("kafka start task")?
}

/// What the checkpoint's topics are now, and what is parked, once no transaction is open in those that the relay writes to. Blocks.
fn look_at_topics(
    config: &Config,
    readers: &Readers,
    found: Option<&Found>,
    gives_up: &dyn Fn() -> bool,
) -> Result<(Topics, Parked), RelayError> {
    let Some(Found { checkpoint, .. }) = found else {
        return Ok((Topics::default(), Parked::default()));
    };
    let names = identity::names(&checkpoint.lineage, &config.checkpoint_topic);
    let topics = readers.topic_facts(&names)?;
    let mut counts: BTreeMap<String, i32> = topics
        .iter()
        .map(|(name, facts)| (name.clone(), facts.partitions))
        .collect();
    // A role that never parks may not be allowed to ask for this one.
    let parking_topic = readers.topic_facts([&config.parking_topic]).unwrap_or_default();
    counts.extend(parking_topic.into_iter().map(|(name, facts)| (name, facts.partitions)));
    if config.delivery == Delivery::ExactlyOnce && !faults::is_planted(Bug::GoOnBehindOpenTransactions) {
        readers.wait_until_nothing_is_open(&config.kafka, &counts, gives_up)?;
    }
    let parked = parking::log::known(config, &checkpoint.parking, gives_up)?;
    Ok((topics, parked))
}

/// Waits for `work` and keeps the walsender alive meanwhile, however long Kafka is away. `None` when the program is to stop.
pub(crate) async fn while_answering<T>(
    stream: &mut ReplicationStream,
    work: impl Future<Output = T>,
    shutdown: &mut Shutdown,
) -> Result<Option<T>, RelayError> {
    let mut work = std::pin::pin!(work);
    let mut status_due = interval(STATUS_INTERVAL);
    let started = Instant::now();
    let mut said = false;
    loop {
        tokio::select! {
            outcome = &mut work => return Ok(Some(outcome)),
            () = shutdown.triggered() => return Ok(None),
            _ = status_due.tick() => {
                let nothing = StandbyStatus { received: Lsn::INVALID, confirmed: Lsn::INVALID, reply_requested: false };
                stream.send_status(nothing).await?;
                if !said && started.elapsed() > Duration::from_secs(3) {
                    said = true;
                    tracing::info!("waiting for kafka");
                }
            }
        }
    }
}

/// The planted bugs of a relay that believes in another position than the checkpoint's.
#[cfg(feature = "faults")]
fn with_planted_position(mut checkpoint: Checkpoint, source: &crate::continuity::lineage::Source) -> Checkpoint {
    let lsn = match &source.slot {
        Some(slot) if faults::is_planted(Bug::TrustTheSlot) => slot.confirmed,
        _ if faults::is_planted(Bug::StartFromNow) => source.wal_end,
        _ => return checkpoint,
    };
    checkpoint.published = crate::continuity::progress::Published { lsn, partial: None };
    checkpoint
}

pub(crate) fn names(config: &Config) -> Names<'_> {
    Names {
        slot: &config.slot,
        publication: &config.publication,
        checkpoint_topic: &config.checkpoint_topic,
    }
}
