//! Keeps the walsender alive while the relay waits for something else.
//!
//! Postgres ends a replication session that says nothing for `wal_sender_timeout`, and the slot would be free then. Kafka may be away for longer than
//! that.

use std::time::Duration;

use service::Shutdown;
use tokio::time::{Instant, interval};

use crate::process::stop::RelayError;
use pg_replication::Lsn;
use pg_replication::{ReplicationStream, StandbyStatus};

/// How often the server is told that we live. This is several times within the shortest `wal_sender_timeout` that makes sense.
pub(crate) const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// A wait that is longer than this is logged.
const LONG_WAIT: Duration = Duration::from_secs(3);
/// Says that the relay lives, and confirms nothing.
const NOTHING_NEW: StandbyStatus = StandbyStatus {
    received: Lsn::INVALID,
    confirmed: Lsn::INVALID,
    reply_requested: false,
};

/// How work ended that a shutdown may interrupt.
#[derive(Debug)]
pub enum UntilShutdown<T> {
    Done(T),
    /// The program is to stop. The work was given up.
    ShuttingDown,
}

/// Waits for `work`, and sends the server a status every [`STATUS_INTERVAL`] meanwhile.
///
/// # Errors
/// The stream broke.
pub(crate) async fn keep_stream_alive_during<T>(
    stream: &mut ReplicationStream,
    work: impl Future<Output = T>,
    shutdown: &mut Shutdown,
) -> Result<UntilShutdown<T>, RelayError> {
    let mut work = std::pin::pin!(work);
    let mut status_due = interval(STATUS_INTERVAL);
    let began_at = Instant::now();
    let mut is_logged = false;
    loop {
        tokio::select! {
            outcome = &mut work => return Ok(UntilShutdown::Done(outcome)),
            () = shutdown.triggered() => return Ok(UntilShutdown::ShuttingDown),
            _ = status_due.tick() => {
                stream.send_status(NOTHING_NEW).await?;
                if !is_logged && began_at.elapsed() > LONG_WAIT {
                    is_logged = true;
                    tracing::info!("waiting for kafka");
                }
            }
        }
    }
}
