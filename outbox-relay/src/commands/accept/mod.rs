//! `init --accept-…`: an operator takes responsibility for what the relay cannot prove.
//!
//! Each flag accepts one thing. The operator has to accept everything that is broken. A flag for something that is not broken is refused, so that
//! nobody gives all flags at once.

pub mod acceptance;
mod apply;
mod choose;
mod diagnose;
mod own_and_fence;

use service::Shutdown;

use self::acceptance::{Acceptance, ensure_operator_accepted_everything_found};
use self::apply::{apply, log_acceptance};
use self::choose::choose_position;
use self::diagnose::Diagnosis;
use self::own_and_fence::OwnedAndFenced;
use crate::commands::init::{self, Initialised, OtherPartitions};
use crate::parking::log::find_missing_parked_rows;
use crate::process::faults;
use crate::process::stop::{RelayError, Stop};
use crate::settings::{Config, InitOptions};
use pg_replication::{Connection, Mode};

/// Writes a new checkpoint from which the relay can go on, if the operator accepts exactly what is broken.
///
/// 1. **Own and fence.** Own the slot, fence earlier producers, and only then read the checkpoints. In another order a relay could publish or confirm
///    behind our back, and the new checkpoint would be wrong when it is written.
/// 2. **Diagnose.** Find everything that is broken, and compare it with what is accepted. Nothing is changed before that, but for a publication and
///    a checkpoint topic that were missing.
/// 3. **Choose** where to go on, from what is accepted and what was found.
/// 4. **Apply.** Write the new checkpoint, in a Kafka transaction and of the next generation ([`crate::continuity::checkpoint::Checkpoint::generation`]),
///    while the slot is still owned: a relay that waits for it begins by this checkpoint.
///
/// # Errors
/// The [`Stop`] that is not accepted, [`Stop::Config`] for a flag with nothing to accept; anything else is worth another try.
pub async fn accept(
    config: &Config,
    options: &InitOptions,
    accepted: &[Acceptance],
    shutdown: &Shutdown,
) -> Result<Initialised, RelayError> {
    let mut connection = Connection::open(&config.source.target, Mode::Replication).await?;
    let config = &config.pinned_to(&mut connection).await?;
    let mut held = OwnedAndFenced::take(config, connection, accepted, shutdown).await?;
    faults::point("accept.fenced")?;

    let mut diagnosis = Diagnosis::find_all_breaks(config, &mut held).await?;
    if let Some(unfinished) = diagnosis.unfinished_init() {
        let partitions = changed_partitions(&diagnosis.broken);
        if partitions.is_empty() {
            return Err(unfinished.clone().into());
        }
        // If an `init` did not finish, only other numbers of partitions can be accepted. The rest is repaired when that `init` goes on.
        ensure_operator_accepted_everything_found(accepted, &partitions)?;
        log_acceptance(config, accepted, diagnosis.base_lsn(), None);
        // The `init` below owns the slot and fences by itself.
        drop(held);
        return init::init_with_partitions(config, options, OtherPartitions::Accepted, shutdown).await;
    }
    if let Some(base) = &diagnosis.base {
        diagnosis.broken.extend(find_missing_parked_rows(config, base).await?);
    }
    ensure_operator_accepted_everything_found(accepted, &diagnosis.broken)?;

    let position = choose_position(&diagnosis.source, diagnosis.base.as_ref(), accepted);
    apply(config, options, accepted, held, diagnosis, position, shutdown).await
}

fn changed_partitions(broken: &[Stop]) -> Vec<Stop> {
    let changed = broken
        .iter()
        .filter(|stop| matches!(stop, Stop::PartitionsChanged { .. }));
    changed.cloned().collect()
}
