//! What the server says, for the proof of continuity to look at: see [`crate::continuity::lineage`].

use super::planted;
use crate::continuity::timeline::History;
use crate::process::stop::Stop;
use pg_replication::Lsn;

/// What the server says of itself and of the slot, once this relay owns the slot.
#[derive(Clone, Debug)]
pub struct Source {
    pub system_identifier: String,
    pub timeline: u32,
    /// Where that timeline comes from; absent for the first, and where the server has it not.
    pub history: Option<History>,
    /// When it started, in microseconds since 1970 by its clock.
    pub started_us: Option<i64>,
    pub database: String,
    /// End of the server's flushed WAL.
    pub wal_end: Lsn,
    /// Absent where there is no slot of the name.
    pub slot: Option<Slot>,
    /// Oid of the publication's entry for the outbox table.
    pub publication_entry: u32,
    /// See [`crate::outbox::publication::Publication::version`].
    pub publication_version: String,
    /// See [`crate::outbox::publication::Publication::outbox`].
    pub outbox: Option<String>,
    /// See [`crate::continuity::checkpoint::Lineage::counted_rows`], as the settings of now make it.
    pub counted_rows: String,
}

/// A row of `pg_replication_slots`.
#[derive(Clone, Debug)]
pub struct Slot {
    pub plugin: String,
    pub database: String,
    /// Up to where the server may have forgotten. Compared instead of `restart_lsn`, which lags behind it.
    pub confirmed: Lsn,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: String,
    /// Whether it is a failover slot, of which standbys keep a copy (PostgreSQL 17 and later).
    pub is_failover: bool,
    /// Why Postgres gave the slot up; empty where it did not, and before PostgreSQL 17.
    pub invalidation_reason: String,
    /// Process id of the backend that reads it.
    pub active_pid: Option<i32>,
    /// Transactions are sent when they are prepared, before it is known whether they commit.
    pub is_two_phase: bool,
    /// The oldest transaction whose changes of the catalog it may still have to decode; any later one had not ended where it is confirmed.
    pub catalog_xmin: Option<u32>,
}

/// Whether a slot's stream is one that the relay can read.
///
/// A two-phase slot sends a transaction when it is prepared, and later only that it committed, also where protocol version 1 is asked for, which
/// does not know such messages. An event would be published before it is certain, or be missing.
///
/// # Errors
/// [`Stop::SlotUnusable`].
pub(crate) fn ensure_slot_is_usable(slot: &Slot, name: &str, database: &str) -> Result<(), Stop> {
    let is_sent_once_committed = !slot.is_two_phase || planted::takes_two_phase_slots();
    if slot.plugin == "pgoutput" && slot.database == database && is_sent_once_committed {
        return Ok(());
    }
    let two_phase = if slot.is_two_phase { ", two_phase" } else { "" };
    Err(Stop::SlotUnusable {
        slot: name.to_owned(),
        database: database.to_owned(),
        found: format!("plugin {}, database {}{two_phase}", slot.plugin, slot.database),
    })
}
