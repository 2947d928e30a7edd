//! Step 2: everything that is broken, and what is still known.

use super::own_and_fence::OwnedAndFenced;
use crate::continuity::checkpoint::{Checkpoint, State};
use crate::continuity::lineage::find_breaks;
use crate::continuity::other_relays::ensure_written_for_this_server;
use crate::continuity::source::Source;
use crate::kafka::{Reading, topic_facts};
use crate::outbox::source::{self, System};
use crate::process::stop::{RelayError, Stop};
use crate::settings::Config;
use crate::topics::identity::{self, Topics};
use pg_replication::Lsn;

/// What the relay would find at its next start.
pub(super) struct Diagnosis {
    /// The checkpoint from which the relay can go on. `None`: there is none.
    pub(super) base: Option<Checkpoint>,
    /// Everything that is broken. The stop that says most comes first.
    pub(super) broken: Vec<Stop>,
    pub(super) source: Source,
    pub(super) system: System,
    /// The topics that `base` pins, and that of the checkpoints, as they are now.
    pub(super) topics: Topics,
}

impl Diagnosis {
    /// Compares the checkpoint with server, slot and topics.
    ///
    /// Slot and server are read here a second time. Only now can nobody move the slot or publish any more, so only this second reading counts.
    ///
    /// # Errors
    /// Worth another try.
    pub(super) async fn find_all_breaks(config: &Config, held: &mut OwnedAndFenced) -> Result<Self, RelayError> {
        let system = source::identify_server(&mut held.connection).await?;
        let slot = source::find_slot(&mut held.connection, &config.source.slot).await?;
        let source = source::describe_source(config, &system, slot, &held.publication);
        let (base, mut broken) = match &held.reading.unusable {
            Some(why) => go_back_to_furthest(why, &source, &held.reading, config),
            None => compare_with_last(&source, &held.reading, config),
        };
        let topics = read_topics(config, base.as_ref()).await?;
        if let Some(base) = &base {
            broken.extend(identity::find_breaks(&base.lineage, &topics));
            let written_ms = held.reading.last.as_ref().and_then(|last| last.written_ms);
            broken.extend(ensure_written_for_this_server(&source, base, written_ms).err());
        }
        Ok(Self {
            base,
            broken,
            source,
            system,
            topics,
        })
    }

    /// The stop of an init that did not finish, if the checkpoint is of such an init.
    pub(super) fn unfinished_init(&self) -> Option<&Stop> {
        self.broken
            .iter()
            .find(|stop| matches!(stop, Stop::InitUnfinished { .. }))
    }

    /// The position of the checkpoint from which the relay can go on.
    pub(super) fn base_lsn(&self) -> Option<Lsn> {
        self.base.as_ref().map(|base| base.published.lsn)
    }
}

/// The last checkpoint can be read, so the relay goes on from it.
fn compare_with_last(source: &Source, reading: &Reading, config: &Config) -> (Option<Checkpoint>, Vec<Stop>) {
    let mut base = reading.last.as_ref().map(|stored| stored.checkpoint.clone());
    let mut broken = Vec::new();
    if let Some(recovering) = base.as_mut().filter(|base| base.state == State::Recovering) {
        // It has the position that was known before `recover`. If something else is broken, the operator has to accept that as well.
        recovering.state = State::Running;
        broken.push(Stop::RecoveryUnfinished {
            slot: config.source.slot.to_string(),
        });
    }
    broken.extend(find_breaks(source, base.as_ref(), config.names_for_messages()));
    (base, broken)
}

/// The relay cannot go on from the last checkpoint, for the reason `why`. The furthest checkpoint that can be read takes its place, if it can be the last one.
fn go_back_to_furthest(
    why: &Stop,
    source: &Source,
    reading: &Reading,
    config: &Config,
) -> (Option<Checkpoint>, Vec<Stop>) {
    // What was confirmed was published. So a checkpoint below the slot's position is not the last one: later ones existed, and are lost.
    let confirmed = source.slot.as_ref().map_or(Lsn::INVALID, |slot| slot.confirmed);
    let furthest = reading.furthest.as_ref().map(|stored| &stored.checkpoint);
    let base = furthest
        .filter(|checkpoint| checkpoint.published.lsn >= confirmed)
        .cloned();
    let mut broken = vec![why.clone()];
    for stop in find_breaks(source, base.as_ref(), config.names_for_messages()) {
        match stop {
            // `why` says the same, and more.
            Stop::CheckpointMissing { .. } => {}
            // There was a checkpoint, so the slot is not one that was never made.
            Stop::NotInitialised { slot, topic, .. } => broken.push(Stop::SlotGone {
                slot,
                topic,
                key: config.checkpoint_key(),
                checkpoint: Lsn::INVALID,
            }),
            other => broken.push(other),
        }
    }
    (base, broken)
}

/// Asks Kafka for the topics that `base` pins, and for that of the checkpoints.
async fn read_topics(config: &Config, base: Option<&Checkpoint>) -> Result<Topics, RelayError> {
    let names = match base {
        Some(base) => identity::names_of_topics(&base.lineage, &config.sink.checkpoint_topic),
        None => vec![config.sink.checkpoint_topic.to_string()],
    };
    Ok(topic_facts(&config.sink.kafka, names).await?)
}
