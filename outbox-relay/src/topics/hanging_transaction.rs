//! What a start does when it finds a transaction whose end Kafka has lost (exit code 36).
//!
//! An operator has to abort the transaction in each partition where it hangs. In its other partitions it has committed, and readers have seen its records
//! there. So neither checkpoint is right: from the checkpoint before the transaction, a relay would publish the committed records a second time. From the
//! checkpoint behind it, a relay would never publish the aborted records. Only the comparison of `recover` finds out which records are which. A supervisor
//! may start the relay at any moment in between. Therefore the start that finds the transaction writes a checkpoint from which only `recover` goes on.
//!
//! In the checkpoint topic, that checkpoint may itself end the transaction: a producer's next marker in a partition ends whatever its id has open there.
//! `recover` does not depend on this, since it compares everything.

use std::collections::BTreeMap;

use anyhow::Context as _;
use service::Shutdown;
use tokio::runtime::Handle;

use crate::continuity::checkpoint::{Checkpoint, State};
use crate::kafka::{Publisher, Readers, TopicAsker, partition_has_key};
use crate::process::stop::{RelayError, Stop};
use crate::settings::Config;
use crate::topics::checkpoint_topic::commit_checkpoint;

/// If `stop` says that a transaction of this relay hangs, makes every later start wait for `recover`. Returns why this start ends. `known` is the
/// checkpoint, if it could be read. Blocks.
pub(crate) fn require_recover_if_hanging(
    config: &Config,
    publisher: &mut Publisher,
    readers: &Readers,
    known: Option<Checkpoint>,
    stop: Stop,
    gives_up: &dyn Fn() -> bool,
) -> RelayError {
    match require_recovery(config, publisher, readers, known, &stop, gives_up) {
        Ok(()) => stop.into(),
        Err(err) => err,
    }
}

fn require_recovery(
    config: &Config,
    publisher: &mut Publisher,
    readers: &Readers,
    known: Option<Checkpoint>,
    stop: &Stop,
    gives_up: &dyn Fn() -> bool,
) -> Result<(), RelayError> {
    let Stop::TransactionHangs {
        topic,
        partition,
        offset,
        ..
    } = stop
    else {
        return Ok(());
    };
    let key = config.checkpoint_key();
    // Several relays may share the checkpoint topic and the parking topic. The keys there say whose a record is. In other topics nothing says that.
    if config.own_topics().any(|own| own == topic) {
        let parked_row_prefix = format!("{key}/");
        let is_of_this_relay = |found: &str| found == key || found.starts_with(&parked_row_prefix);
        if !partition_has_key(
            &config.sink.kafka,
            (topic, *partition, *offset),
            is_of_this_relay,
            gives_up,
        )? {
            return Ok(());
        }
    }
    let log = config.checkpoint_log();
    let known = match known {
        Some(known) => Some(known),
        None => log
            .last_before(readers, &key, *offset, gives_up)?
            .map(|found| found.checkpoint),
    };
    // An unfinished init or recover needs no such checkpoint: the next init looks up what was published, and after a recover only another recover goes on.
    let Some(known) = known.filter(|known| matches!(known.state, State::Running | State::Behind)) else {
        return Ok(());
    };
    let requires_recover = Checkpoint {
        state: State::Recovering,
        generation: known.generation + 1,
        ..known
    };
    Handle::current().block_on(commit_checkpoint(publisher, config, &requires_recover))?;
    tracing::warn!(
        topic,
        partition,
        offset,
        "a transaction of this relay has lost its end: from now on only `outbox-relay recover` goes on"
    );
    Ok(())
}

/// Waits until no transaction is open in those of `topics` that exist, and in the parking topic. A command calls it after it has fenced and before it
/// publishes, see [`crate::kafka::TopicAsker::wait_until_nothing_is_open`].
///
/// # Errors
/// [`Stop::TransactionHangs`]; anything else is worth another try.
pub(crate) async fn wait_until_nothing_is_open(
    config: &Config,
    topics: impl IntoIterator<Item = &String>,
    shutdown: &Shutdown,
) -> Result<(), RelayError> {
    let names: Vec<String> = topics.into_iter().cloned().collect();
    let (config, shutdown) = (config.clone(), shutdown.clone());
    let waiting = tokio::task::spawn_blocking(move || {
        let asker = TopicAsker::open(&config.sink.kafka)?;
        let mut facts = asker.ask(&names)?;
        // A role that never parks may not be allowed to ask for the parking topic.
        facts.extend(asker.ask([&config.sink.parking_topic]).unwrap_or_default());
        let partitions: BTreeMap<String, i32> = facts
            .into_iter()
            .map(|(name, facts)| (name, facts.partitions))
            .collect();
        asker.wait_until_nothing_is_open(&config.sink.kafka, &partitions, &|| shutdown.is_triggered())
    });
    waiting.await.context("task that waits for open transactions")?
}
