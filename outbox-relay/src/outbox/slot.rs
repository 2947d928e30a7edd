//! The slot, taken over for the time of a command.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::process::stop::RelayError;
use crate::settings::Config;
use pg_replication::Lsn;
use pg_replication::{Connection, Mode, PgError};

/// Owns the slot, so that nobody moves it meanwhile.
pub(crate) async fn take_over_slot(config: &Config) -> Result<Connection, RelayError> {
    let started = Instant::now();
    loop {
        let mut owner = Connection::open(&config.target, Mode::Replication).await?;
        let owned = owner
            .start_replication(&config.slot, Lsn::INVALID, &config.publication)
            .await;
        match owned {
            Ok(()) => return Ok(owner),
            // object_in_use: perhaps only for as long as the server takes to notice that its reader is gone.
            Err(err) if PgError::code_of(&err) == Some("55006") && started.elapsed() < Duration::from_secs(3) => {
                sleep(Duration::from_millis(100)).await;
            }
            Err(err) => {
                return Err(err
                    .context(format!(
                        "slot `{}` cannot be taken over; stop what reads it first",
                        config.slot
                    ))
                    .into());
            }
        }
    }
}
