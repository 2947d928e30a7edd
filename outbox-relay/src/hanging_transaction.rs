//! A start that meets a transaction whose end Kafka has lost (exit code 36).
//!
//! An operator ends it by aborting it, in each partition where it hangs. In its other partitions it has committed, and readers have seen what is
//! there. So a relay that went on from the checkpoint before it would publish those records a second time, and one that went on from the
//! checkpoint behind it would never publish the aborted ones. Only the comparison of `recover` tells which are which. A supervisor may start the
//! relay at any moment in between; therefore the start that finds the transaction writes a checkpoint that only `recover` goes on from.
//!
//! That checkpoint may end the transaction by itself, in the checkpoints' topic: a producer's next marker in a partition ends whatever its id has
//! open there. `recover` finds out what came of it, as of everything else.

use tokio::runtime::Handle;

use crate::checkpoint::{Checkpoint, State};
use crate::config::Config;
use crate::kafka::{CheckpointLog, Publisher, Readers, first_key};
use crate::stop::{RelayError, Stop};

/// Has the next start wait for `recover` where `stop` is a transaction of this relay that hangs; returns why the start ends. `known` is the
/// checkpoint, where it could be read. Blocks.
pub(crate) fn before_it_is_ended(
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
        let first = first_key(&config.kafka, topic, *partition, *offset, gives_up)?;
        let is_ours = first.is_some_and(|first| first == key || first.starts_with(&format!("{key}/")));
        if !is_ours {
            return Ok(());
        }
    }
    let log = CheckpointLog {
        settings: &config.kafka,
        topic: &config.checkpoint_topic,
    };
    let known = match known {
        Some(known) => Some(known),
        None => log
            .last_before(readers, &key, *offset, gives_up)?
            .map(|found| found.checkpoint),
    };
    // Without an earlier one, it is that of an init, which looks every row up when it goes on.
    let Some(known) = known else { return Ok(()) };
    let needed = Checkpoint {
        state: State::Recovering,
        generation: known.generation + 1,
        ..known
    };
    publisher.commit(log.topic, &key, &needed.to_json())?;
    Handle::current().block_on(publisher.committed())?;
    tracing::warn!(
        topic,
        partition,
        offset,
        "a transaction of this relay has lost its end: from now on only `outbox-relay recover` goes on"
    );
    Ok(())
}
