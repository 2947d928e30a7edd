//! Step 1 of a start: own the slot.

use service::{Readiness, Shutdown};
use tokio::time::sleep;

use crate::continuity::lineage::verify;
use crate::outbox::publication::{Publication, require_usable_publication};
use crate::outbox::slot::{OBJECT_IN_USE, UNDEFINED_OBJECT};
use crate::outbox::source::{self, System};
use crate::outbox::standby;
use crate::process::faults;
use crate::process::stop::{RelayError, Stop};
use crate::relay::keepalive::UntilShutdown;
use crate::relay::survey::{Survey, ensure_no_other_slot_publishes, take_survey};
use crate::relay::unpublished;
use crate::settings::Config;
use pg_replication::Lsn;
use pg_replication::{Connection, Mode, PgError, ReplicationStream};

/// SQLSTATE `object_not_in_prerequisite_state`: the slot was invalidated.
const SLOT_INVALIDATED: &str = "55000";

/// The slot, of which this relay is now the only reader. It has confirmed nothing yet.
pub(super) struct Owned {
    pub(super) stream: ReplicationStream,
    /// The backend that serves the stream.
    pub(super) walsender_pid: i32,
    /// The settings for further sessions. They lead to the server that streams.
    pub(super) config_of_server: Config,
    /// What the server said of itself when the session began.
    pub(super) system_at_connect: System,
    _only_this_module_makes_one: (),
}

impl Owned {
    /// Connects, and waits until no other relay has the slot.
    ///
    /// # Errors
    /// Why there is no slot to read, or nothing to read from it; anything else is worth another try.
    pub(super) async fn wait_for_slot(
        config: &Config,
        readiness: &Readiness,
        shutdown: &mut Shutdown,
    ) -> Result<UntilShutdown<Self>, RelayError> {
        readiness.not_ready("postgres", "connecting");
        let mut connection = Connection::open(&config.source.target, Mode::Replication).await?;
        let config_of_server = config.pinned_to(&mut connection).await?;
        let system_at_connect = source::identify_server(&mut connection).await?;
        // The publication is looked at before the slot is waited for: a missing one has a stop of its own. Without this look the stream would break at
        // the first row, with an error that does not say why.
        let publication = require_usable_publication(&mut connection, config).await?;
        readiness.ready("postgres");
        faults::point("start.connected")?;
        let waited = start_stream_once_slot_is_free(&mut connection, config, &publication, readiness, shutdown).await?;
        if let UntilShutdown::ShuttingDown = waited {
            return Ok(UntilShutdown::ShuttingDown);
        }
        Ok(UntilShutdown::Done(Self {
            walsender_pid: connection.process_id(),
            stream: connection.into_stream(),
            config_of_server,
            system_at_connect,
            _only_this_module_makes_one: (),
        }))
    }
}

/// Starts the stream on `connection` as soon as no other session has the slot. Until then this relay is a warm standby.
async fn start_stream_once_slot_is_free(
    connection: &mut Connection,
    config: &Config,
    publication: &Publication,
    readiness: &Readiness,
    shutdown: &mut Shutdown,
) -> Result<UntilShutdown<()>, RelayError> {
    let mut is_standby = false;
    loop {
        if !standby::is_taken(connection, &config.source.slot).await? {
            // Without a position: the slot then sends everything that it does not count as confirmed.
            let started = connection
                .start_stream(
                    &config.source.slot,
                    Lsn::INVALID,
                    &config.source.publication,
                    config.outbox.message_prefix.is_some(),
                )
                .await;
            let Err(refusal) = started else {
                readiness.ready("slot");
                return Ok(UntilShutdown::Done(()));
            };
            match PgError::code_of(&refusal) {
                // Another standby was faster.
                Some(OBJECT_IN_USE) => {}
                Some(UNDEFINED_OBJECT | SLOT_INVALIDATED) => {
                    return Err(explain_unreadable_slot(connection, config, publication, refusal).await);
                }
                _ => return Err(refusal.into()),
            }
        }
        if !is_standby {
            is_standby = true;
            unpublished::forget();
            tracing::info!(
                slot = config.source.slot.as_str(),
                "another relay has the slot: waiting as a warm standby"
            );
            readiness.not_ready("slot", "another relay has it; this one is a warm standby");
        }
        tokio::select! {
            () = sleep(standby::LOOK_INTERVAL) => {}
            () = shutdown.triggered() => return Ok(UntilShutdown::ShuttingDown),
        }
    }
}

/// Why the slot cannot be read: it was never made, dropped, or invalidated. The checkpoint tells which. `refusal` is the server's own answer.
async fn explain_unreadable_slot(
    connection: &mut Connection,
    config: &Config,
    publication: &Publication,
    refusal: anyhow::Error,
) -> RelayError {
    match find_break(connection, config, publication).await {
        Ok(Some(stop)) => stop.into(),
        // The slot is there by now, and fits the checkpoint: the next start tries again.
        Ok(None) => RelayError::Transient(refusal),
        Err(err) => err,
    }
}

/// What is broken between slot, checkpoint and server. `None`: they fit together.
async fn find_break(
    connection: &mut Connection,
    config: &Config,
    publication: &Publication,
) -> Result<Option<Stop>, RelayError> {
    let Survey { slot, stored, system } = take_survey(connection, config).await?;
    let source = source::describe_source(config, &system, slot, publication);
    let checkpoint = stored.as_ref().map(|stored| &stored.checkpoint);
    let stop = verify(&source, checkpoint, config.names_for_messages()).err();
    if let Some(Stop::NotInitialised { .. }) = stop {
        // A slot whose name was mistyped looks like one that was never made.
        ensure_no_other_slot_publishes(config, &system, publication).await?;
    }
    Ok(stop)
}
