//! The warm standby: a second relay of the same slot waits until the first is gone.
//!
//! Asking for the slot by `START_REPLICATION` would leave an error line in the server's log each time; waiting for an advisory lock would
//! hold a snapshot open and so keep vacuum from its work. So the session that is there already looks whether anybody has the slot: one
//! call of a function that reads shared memory, outside of any transaction that lasts.

use std::time::Duration;

use anyhow::Context;
use tokio::time::timeout;

use crate::outbox::rows::first_row;
use pg_replication::{Connection, quote_literal};

/// How often a standby looks: the longest that a take-over waits once the slot is free.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// A server that is silent for so long is given up: nothing else would tell a standby that its connection is dead.
const LOOK_DEADLINE: Duration = Duration::from_secs(20);

/// Whether a session has `slot`. False also where there is no such slot: the start then says why.
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
