//! Steps 2 and 3 of a start: fence earlier producers, then read the checkpoint.

use std::collections::BTreeMap;

use anyhow::Context;
use kafka_client::Refused;
use service::{Readiness, Shutdown};

use super::own::Owned;
use super::planted;
use crate::continuity::checkpoint::Checkpoint;
use crate::kafka::{Abandon, CheckpointLog, Delivery, Publisher, Readers, StoredCheckpoint};
use crate::parking::{self, log::Parked};
use crate::process::faults;
use crate::process::stop::RelayError;
use crate::relay::keepalive::{UntilShutdown, keep_stream_alive_during};
use crate::settings::Config;
use crate::topics::hanging_transaction::require_recover_if_hanging;
use crate::topics::identity::{self, Topics};

/// What the earlier producers of this relay have left in Kafka. They cannot write any more.
pub(super) struct Fenced {
    pub(super) owned: Owned,
    pub(super) publisher: Publisher,
    /// The last checkpoint, read after the fence. `None`: there is none.
    pub(super) stored: Option<StoredCheckpoint>,
    /// The checkpoint's topics as they are now.
    pub(super) topics: Topics,
    pub(super) parked: Parked,
    _only_this_module_makes_one: (),
}

/// What the thread that talks to Kafka brings back.
struct ReadFromKafka {
    publisher: Publisher,
    stored: Option<StoredCheckpoint>,
    topics: Topics,
    parked: Parked,
}

impl Fenced {
    /// Fences, and then reads everything that earlier producers have left in Kafka. Meanwhile the stream is kept alive, however long Kafka is away.
    ///
    /// # Errors
    /// A checkpoint that cannot be gone on from, or a transaction that has lost its end; anything else is worth another try.
    pub(super) async fn fence_earlier_producers(
        mut owned: Owned,
        config: &Config,
        readiness: &Readiness,
        shutdown: &mut Shutdown,
    ) -> Result<UntilShutdown<Self>, RelayError> {
        readiness.not_ready(
            "kafka",
            "fencing earlier producers and reading the checkpoint, for which open transactions are waited for",
        );
        tracing::info!(
            slot = config.source.slot.as_str(),
            "owns the slot; fencing earlier producers and reading the checkpoint"
        );
        let system_identifier = owned.system_at_connect.identifier.clone();
        let on_kafka = on_own_thread(config.clone(), system_identifier, shutdown.clone());
        let outcome = keep_stream_alive_during(&mut owned.stream, on_kafka, shutdown).await?;
        let UntilShutdown::Done(outcome) = outcome else {
            return Ok(UntilShutdown::ShuttingDown);
        };
        let ReadFromKafka {
            publisher,
            stored,
            topics,
            parked,
        } = outcome?;
        Ok(UntilShutdown::Done(Self {
            owned,
            publisher,
            stored,
            topics,
            parked,
            _only_this_module_makes_one: (),
        }))
    }
}

/// Runs [`fence_and_read`] on a thread of its own, since it blocks.
async fn on_own_thread(
    config: Config,
    system_identifier: String,
    shutdown: Shutdown,
) -> Result<ReadFromKafka, RelayError> {
    // Dropping this future tells the thread to give up. If we fenced after losing the slot, we would fence the relay that took over from us.
    let abandon = Abandon::default();
    let abandoned = abandon.watch();
    let reading = tokio::task::spawn_blocking(move || {
        let gives_up = || shutdown.is_triggered() || abandoned.is_told();
        fence_and_read(&config, &system_identifier, &gives_up)
    });
    reading.await.context("kafka start task")?
}

/// Steps 2 and 3. Blocks.
fn fence_and_read(
    config: &Config,
    system_identifier: &str,
    gives_up: &(dyn Fn() -> bool + Sync),
) -> Result<ReadFromKafka, RelayError> {
    let log = config.checkpoint_log();
    let key = config.checkpoint_key();
    let read_too_early = planted::read_checkpoint_before_fence(&log, &key, config.sink.delivery, gives_up)?;

    let (mut publisher, readers) = fence_while_readers_connect(config, &log, system_identifier, gives_up)?;
    tracing::debug!("fenced earlier producers");
    faults::point("start.fenced")?;

    let read = match read_too_early {
        Some(stored) => Ok(Some(stored)),
        None => log.last_with(&readers, &key, config.sink.delivery, gives_up),
    };
    let stored = match read {
        Ok(stored) => stored,
        Err(err) => {
            return Err(mark_if_recover_is_needed(
                config,
                &mut publisher,
                &readers,
                None,
                err,
                gives_up,
            ));
        }
    };
    tracing::debug!("read the checkpoint");
    faults::point("start.checkpoint-read")?;

    let Some(stored) = stored else {
        return Ok(ReadFromKafka {
            publisher,
            stored: None,
            topics: Topics::default(),
            parked: Parked::default(),
        });
    };
    match read_topics_and_parked_rows(config, &readers, &stored.checkpoint, gives_up) {
        Ok((topics, parked)) => Ok(ReadFromKafka {
            publisher,
            stored: Some(stored),
            topics,
            parked,
        }),
        Err(err) => {
            let known = Some(stored.checkpoint);
            Err(mark_if_recover_is_needed(
                config,
                &mut publisher,
                &readers,
                known,
                err,
                gives_up,
            ))
        }
    }
}

/// Raises the epoch of the relay's producers. Meanwhile the readers of step 3 connect, and read nothing yet: connecting takes most of
/// a reader's time.
fn fence_while_readers_connect(
    config: &Config,
    log: &CheckpointLog<'_>,
    system_identifier: &str,
    gives_up: &(dyn Fn() -> bool + Sync),
) -> Result<(Publisher, Readers), RelayError> {
    let id = config.transactional_id(system_identifier);
    let (publisher, readers) = std::thread::scope(|scope| {
        let opening = scope.spawn(|| log.open());
        let publisher = Publisher::start(&config.sink.kafka, config.sink.delivery, &id, log.topic, gives_up);
        (publisher, opening.join())
    });
    let publisher = publisher?;
    // Kafka may have been away for longer than the readers wait. Then they are opened again.
    let readers = match readers {
        Ok(Ok(readers)) => readers,
        _ => log.open()?,
    };
    Ok((publisher, readers))
}

/// Reads the checkpoint's topics as they are now, and what is parked. First waits until no transaction is open in the topics that the relay writes
/// to: its records would become visible, or vanish, after we have decided what is published.
fn read_topics_and_parked_rows(
    config: &Config,
    readers: &Readers,
    checkpoint: &Checkpoint,
    gives_up: &dyn Fn() -> bool,
) -> Result<(Topics, Parked), RelayError> {
    let names = identity::names_of_topics(&checkpoint.lineage, &config.sink.checkpoint_topic);
    let topics = readers.topic_facts(&names)?;
    let mut partitions: BTreeMap<String, i32> = topics
        .iter()
        .map(|(name, facts)| (name.clone(), facts.partitions))
        .collect();
    let asked = faults::point("start.parking-topic");
    let parking_topic = match asked.and_then(|()| Ok(readers.topic_facts([&config.sink.parking_topic])?)) {
        // A role that never parks may not be allowed to ask for the parking topic. Where something is parked, reading it below fails instead.
        Err(RelayError::Transient(err)) if Refused::is_cause_of(&err) => BTreeMap::new(),
        // After any other error, nobody knows whether a transaction is open there. The next start asks again.
        facts => facts?,
    };
    partitions.extend(parking_topic.into_iter().map(|(name, facts)| (name, facts.partitions)));
    if config.sink.delivery == Delivery::ExactlyOnce && !planted::goes_on_behind_open_transactions() {
        readers.wait_until_nothing_is_open(&config.sink.kafka, &partitions, gives_up)?;
    }
    let parked = parking::log::read_parked(config, &checkpoint.parking, gives_up)?;
    Ok((topics, parked))
}

/// If the start ends because Kafka has lost the end of one of this relay's transactions, writes a checkpoint that makes every later start wait for
/// `recover`. Returns why the start ends.
fn mark_if_recover_is_needed(
    config: &Config,
    publisher: &mut Publisher,
    readers: &Readers,
    checkpoint: Option<Checkpoint>,
    err: RelayError,
    gives_up: &dyn Fn() -> bool,
) -> RelayError {
    match err {
        RelayError::Stop(stop) => require_recover_if_hanging(config, publisher, readers, checkpoint, stop, gives_up),
        transient => transient,
    }
}
