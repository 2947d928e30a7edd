//! The warm standby: a second relay of the same slot waits until the first is gone.
//!
//! If a standby asked for the slot by `START_REPLICATION`, each try would leave an error line in the server's log. If it waited for an advisory lock, it
//! would hold a snapshot open, and vacuum could not do its work. So the standby asks in its session whether anybody has the slot. This is one call of a
//! function that reads shared memory, and no transaction stays open.

use std::time::Duration;

use anyhow::Context;
use tokio::time::timeout;

use crate::outbox::rows::first_row;
use pg_replication::{Connection, quote_literal};

/// How often a standby looks. So a take-over comes at most this late after the slot is free.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// We give up a server that is silent for so long. Without this, a standby would never notice that its connection is dead.
const LOOK_DEADLINE: Duration = Duration::from_secs(20);

/// Whether a session has `slot`. Also false if there is no such slot: then the next step of the start reports that.
///
/// # Errors
/// The connection broke, or the server does not answer.
pub async fn is_taken(connection: &mut Connection, slot: &str) -> anyhow::Result<bool> {
    let sql = format!(
        "select active from pg_get_replication_slots() where slot_name = {}",
        quote_literal(slot)
    );
    let answer = timeout(LOOK_DEADLINE, connection.query(&sql))
        .await
        .map_err(|_| anyhow::anyhow!("the server has been silent for {} s", LOOK_DEADLINE.as_secs()))?
        .context("cannot look whether the slot is in use")?;
    first_row(&answer).map_or(Ok(false), |row| row.is_true("active"))
}
