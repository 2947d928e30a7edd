//! How a cycle begins. The order of its steps is what makes the relay exactly-once: [`start`] has them, with the reason for each.
//!
//! Each step takes what the step before has made, by value: a slot that is [`Owned`], producers that are [`Fenced`], a continuity that is
//! [`Proven`]. Only the module of a step can make its type, so the steps can be taken in no other order.
//!
//! The session that streams can answer no questions, so the proof and the stream need further sessions. Each of them proves that it is with the
//! server that streams ([`pg_replication::ServerInstance`]), on the same timeline, and that the slot's reader is our own walsender. Without that
//! proof, an address that moves to a promoted or restored server would have one server verified and another one streamed from.

mod fence;
mod own;
mod planted;
mod prove;

use service::{Readiness, Shutdown};

use self::fence::Fenced;
use self::own::Owned;
pub use self::prove::Proven;
use crate::process::faults;
use crate::process::stop::RelayError;
use crate::relay::keepalive::UntilShutdown;
use crate::settings::Config;

/// Takes every step up to the stream.
///
/// 1. **Own the slot**, and confirm nothing. Only one session can have a slot, so its owner is the leader, and a second relay waits here. If we
///    fenced first, we would fence a relay that leads; if we read the checkpoint first, its owner would publish more behind our back.
/// 2. **Fence earlier producers** by `init_transactions` under the slot's transactional ids. The broker raises their epochs: a former relay, even
///    one that is frozen in the middle of a commit, can write nothing from here on, and what it left open is aborted or completed.
/// 3. **Read the checkpoint**, read_committed and to the end. Before step 2 a former relay could still have committed a later one, and we would
///    publish its rows a second time. Nor may a transaction be open in the topics that we write to: see
///    [`crate::topics::hanging_transaction`].
/// 4. **Prove continuity**: the same cluster, timeline, publication, topics and partition counts; the slot not ahead of the checkpoint, the server
///    not behind it. What cannot be proven stops the relay. If we streamed without the proof, we could confirm what was
///    never published, and Postgres would remove it.
/// 5. **Stream**, which is up to the caller, and skip every row at or below the checkpoint. The slot's own position only says what Postgres may
///    remove; it never says what is published.
///
/// # Errors
/// A [`crate::process::stop::Stop`], or something that is worth another try.
pub async fn start(
    config: &Config,
    readiness: &Readiness,
    shutdown: &mut Shutdown,
) -> Result<UntilShutdown<Proven>, RelayError> {
    let UntilShutdown::Done(owned) = Owned::wait_for_slot(config, readiness, shutdown).await? else {
        return Ok(UntilShutdown::ShuttingDown);
    };
    faults::point("start.owns-slot")?;
    let fencing = Fenced::fence_earlier_producers(owned, config, readiness, shutdown);
    let UntilShutdown::Done(fenced) = fencing.await? else {
        return Ok(UntilShutdown::ShuttingDown);
    };
    let proving = Proven::prove_continuity(fenced, config, readiness, shutdown);
    let UntilShutdown::Done(proven) = proving.await? else {
        return Ok(UntilShutdown::ShuttingDown);
    };
    faults::point("start.verified")?;
    Ok(UntilShutdown::Done(proven))
}
