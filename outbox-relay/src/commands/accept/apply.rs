//! Step 4 of `init --accept-…`: writes the new checkpoint, and moves the slot or makes it anew if the new position needs that.

use std::collections::BTreeMap;

use service::Shutdown;

use super::acceptance::{Acceptance, join_flags};
use super::choose::NewPosition;
use super::diagnose::Diagnosis;
use super::own_and_fence::OwnedAndFenced;
use crate::commands::init::{self, Initialised};
use crate::continuity::checkpoint::{Checkpoint, FORMAT, Lineage, State};
use crate::continuity::positions::{highest_position, raise_above};
use crate::continuity::progress::Published;
use crate::outbox::publication::Publication;
use crate::outbox::slot::{advance_slot, drop_slot, take_over_slot};
use crate::outbox::source;
use crate::parking::log::count_parked_rows;
use crate::process::stop::RelayError;
use crate::settings::{Config, InitOptions};
use crate::topics::checkpoint_topic::commit_checkpoint;
use crate::topics::identity::{self, Topics};
use pg_replication::Lsn;

/// Sets the checkpoint to `position`, in the next generation, so that it counts although it may lie before the last one.
///
/// # Errors
/// A new slot cannot be made, or a row that it would publish cannot be a record; anything else is worth another try.
pub(super) async fn apply(
    config: &Config,
    options: &InitOptions,
    accepted: &[Acceptance],
    held: OwnedAndFenced,
    diagnosis: Diagnosis,
    position: NewPosition,
    shutdown: &Shutdown,
) -> Result<Initialised, RelayError> {
    let OwnedAndFenced {
        mut connection,
        mut slot_owner,
        mut publisher,
        publication,
        reading,
        former,
    } = held;
    let old_lsn = diagnosis.base_lsn();
    let base = diagnosis.base.as_ref();
    let generation = reading.next_generation();
    let highest_position = base.map(highest_position);
    let parking = count_parked_rows(config, base).await?;
    let mut lineage = lineage_of_now(config, &diagnosis, &publication);
    lineage.positions_raised_by = reading.positions_raised_by();

    let published = match position {
        NewPosition::Checkpoint(published) => published,
        NewPosition::SlotConfirmed(lsn) => whole_transactions_below(lsn),
        NewPosition::WalEnd(lsn) => {
            // Postgres does not move a slot that a session reads, so we let go of it for that moment.
            if let Some(owner) = slot_owner.take() {
                owner.into_stream().close().await;
            }
            advance_slot(&mut connection, config, lsn).await?;
            slot_owner = Some(take_over_slot(config).await?);
            whole_transactions_below(lsn)
        }
        NewPosition::NewSlot => {
            if diagnosis.source.slot.is_some() {
                drop_slot(&mut connection, config).await?;
            }
            log_acceptance(config, accepted, old_lsn, None);
            let fenced = init::FencedInit {
                connection,
                publisher,
                system: diagnosis.system,
                lineage,
                generation,
                highest_position,
                parking,
            };
            let initialised =
                init::make_slot_and_publish_existing_rows(config, options, fenced, None, shutdown).await?;
            former.end_their_relays(config, generation, shutdown).await?;
            return Ok(initialised);
        }
    };
    if !matches!(position, NewPosition::Checkpoint(_)) {
        lineage.positions_raised_by = raise_above(highest_position, lineage.positions_raised_by, published.lsn);
    }
    let checkpoint = Checkpoint {
        format: FORMAT,
        state: State::Running,
        lineage,
        published,
        newest_commit_us: None,
        incarnation: uuid::Uuid::new_v4().to_string(),
        generation,
        existing_rows: None,
        begun: None,
        parking,
    };
    commit_checkpoint(&mut publisher, config, &checkpoint).await?;
    // This needs the new checkpoint: it is what makes them stop.
    former.end_their_relays(config, generation, shutdown).await?;
    log_acceptance(config, accepted, old_lsn, Some(published.lsn));
    // Last: a relay that waits for the slot begins as soon as it is free, and has to find the new checkpoint.
    if let Some(owner) = slot_owner {
        owner.into_stream().close().await;
    }
    Ok(Initialised::Accepted {
        checkpoint: published.lsn,
        what: join_flags(accepted),
    })
}

fn whole_transactions_below(lsn: Lsn) -> Published {
    Published { lsn, partial: None }
}

/// The lineage of server, publication and topics as they are now. A topic that is gone is pinned no more.
fn lineage_of_now(config: &Config, diagnosis: &Diagnosis, publication: &Publication) -> Lineage {
    let mut lineage = source::new_lineage(config, &diagnosis.system, publication, BTreeMap::new());
    if let Some(base) = &diagnosis.base {
        pin_partitions(&mut lineage, &base.lineage, &diagnosis.topics);
    }
    identity::pin_ids(&mut lineage, &diagnosis.topics);
    lineage
}

/// Pins the topics that the checkpoint pins, with the partitions that they have now.
fn pin_partitions(lineage: &mut Lineage, pinned_before: &Lineage, topics: &Topics) {
    let mut pinned = pinned_before.clone();
    let recreated = identity::find_recreated(pinned_before, topics);
    identity::release_recreated(&mut pinned, &recreated);
    for topic in pinned_before.partitions.keys() {
        pinned.repin(topic, topics.get(topic).map_or(0, |facts| facts.partitions));
    }
    lineage.partitions = pinned.partitions;
    lineage.former_partitions = pinned.former_partitions;
}

/// Logs what was accepted, and both positions.
pub(super) fn log_acceptance(config: &Config, accepted: &[Acceptance], old: Option<Lsn>, new: Option<Lsn>) {
    let text = |lsn: Option<Lsn>, none: &str| lsn.map_or_else(|| none.to_owned(), |lsn| lsn.to_string());
    tracing::warn!(
        slot = config.source.slot.as_str(),
        accepted = join_flags(accepted),
        checkpoint.old_lsn = text(old, "none"),
        checkpoint.new_lsn = text(new, "of a new slot"),
        "an operator accepts what cannot be proven, and the relay goes on from a new position"
    );
}
