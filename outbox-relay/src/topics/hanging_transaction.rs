//! A start that meets a transaction whose end Kafka has lost (exit code 36).
//!
//! An operator ends it by aborting it, in each partition where it hangs. In its other partitions it has committed, and readers have seen what is
//! there. So a relay that went on from the checkpoint before it would publish those records a second time, and one that went on from the
//! checkpoint behind it would never publish the aborted ones. Only the comparison of `recover` tells which are which. A supervisor may start the
//! relay at any moment in between; therefore the start that finds the transaction writes a checkpoint that only `recover` goes on from.
//!
//! That checkpoint may end the transaction by itself, in the checkpoints' topic: a producer's next marker in a partition ends whatever its id has
//! open there. `recover` finds out what came of it, as of everything else.

use std::collections::BTreeMap;

use anyhow::Context as _;
use service::Shutdown;
use tokio::runtime::Handle;

use crate::continuity::checkpoint::{Checkpoint, State};
use crate::kafka::{Publisher, Readers, TopicAsker, partition_has_key};
use crate::process::stop::{RelayError, Stop};
use crate::settings::Config;
use crate::topics::checkpoint_topic::commit_checkpoint;

/// Makes every later start wait for `recover`, where `stop` is a transaction of this relay that hangs. Returns why this start ends. `known` is the
/// checkpoint, where it could be read. Blocks.
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
    // Several relays may share these two, and their keys begin with whose they are. A topic of rows does not tell.
    if config.own_topics().any(|own| own == topic) {
        let parked = format!("{key}/");
        let is_of_ours = |found: &str| found == key || found.starts_with(&parked);
        if !partition_has_key(&config.sink.kafka, (topic, *partition, *offset), is_of_ours, gives_up)? {
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
    // An init looks up what it may have published when it goes on, and from a recover only another one goes on.
    let Some(known) = known.filter(|known| matches!(known.state, State::Running | State::Behind)) else {
        return Ok(());
    };
    let needed = Checkpoint {
        state: State::Recovering,
        generation: known.generation + 1,
        ..known
    };
    Handle::current().block_on(commit_checkpoint(publisher, config, &needed))?;
    tracing::warn!(
        topic,
        partition,
        offset,
        "a transaction of this relay has lost its end: from now on only `outbox-relay recover` goes on"
    );
    Ok(())
}

/// Waits until no transaction is open in those of `topics` that exist, and where rows are parked. For a command that has fenced and is about to publish,
/// see [`crate::kafka::TopicAsker::wait_until_nothing_is_open`].
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
    let waited = tokio::task::spawn_blocking(move || {
        let asker = TopicAsker::open(&config.sink.kafka)?;
        let mut facts = asker.ask(&names)?;
        // A role that never parks may not be allowed to ask for this one.
        facts.extend(asker.ask([&config.sink.parking_topic]).unwrap_or_default());
        let partitions: BTreeMap<String, i32> = facts
            .into_iter()
            .map(|(name, facts)| (name, facts.partitions))
            .collect();
        asker.wait_until_nothing_is_open(&config.sink.kafka, &partitions, &|| shutdown.is_triggered())
    });
    waited.await.context("task that waits for open transactions")?
}
