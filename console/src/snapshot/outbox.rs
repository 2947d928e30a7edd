//! An outbox in its database: the table, the slot, and the WAL that the slot keeps.

use tokio_postgres::Row;

use crate::postgres::Database;
use crate::settings::Outbox;

/// What the database says.
#[derive(Clone, Debug, PartialEq)]
pub struct OutboxFacts {
    /// Rows that were inserted since the server's statistics began.
    pub inserted: i64,
    /// Rows inserted each second since the last look.
    pub insert_rate: Option<f64>,
    /// Rows in the table, as the server estimates.
    pub rows: i64,
    /// Where the WAL ends.
    pub wal_end: String,
    /// `max_slot_wal_keep_size` in bytes. `None`: there is no limit.
    pub limit_bytes: Option<i64>,
    /// The slot of the settings. `None`: there is none of this name.
    pub slot: Option<SlotFacts>,
    /// All other slots of this server.
    pub other_slots: Vec<SlotFacts>,
}

/// What `pg_replication_slots` says of a slot.
#[derive(Clone, Debug, PartialEq)]
pub struct SlotFacts {
    pub name: String,
    pub plugin: String,
    pub database: String,
    /// The backend that reads it.
    pub reader: Option<i32>,
    pub restart_lsn: String,
    pub confirmed_lsn: String,
    /// From `restart_lsn` to the end of the WAL.
    pub retained_bytes: i64,
    /// From `confirmed_flush_lsn` to the end of the WAL.
    pub unconfirmed_bytes: i64,
    /// WAL that may still be written before the slot may be lost. `None`: there is no limit.
    pub safe_bytes: Option<i64>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: String,
    /// Empty if the slot is valid, and before PostgreSQL 17.
    pub invalidation_reason: String,
    /// Standbys keep a copy of it. `None`: the server is older than PostgreSQL 17.
    pub is_failover: Option<bool>,
    /// It is itself the copy of a primary's slot.
    pub is_synced: bool,
}

const TABLE: &str = "
    select coalesce(sum(n_tup_ins), 0)::bigint as inserted, coalesce(sum(n_live_tup), 0)::bigint as rows,
        (case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end)::text as wal_end,
        nullif(pg_size_bytes(current_setting('max_slot_wal_keep_size')), -1) as limit_bytes
    from pg_stat_all_tables where relid in (select relid from pg_partition_tree(to_regclass($1)))";

const SLOTS: &str = "
    select slot_name::text as name, coalesce(plugin::text, '') as plugin, coalesce(database::text, '') as database, active_pid,
        coalesce(restart_lsn::text, '') as restart_lsn, coalesce(confirmed_flush_lsn::text, '') as confirmed_lsn,
        coalesce(pg_wal_lsn_diff(wal_end, restart_lsn), 0)::bigint as retained_bytes,
        greatest(coalesce(pg_wal_lsn_diff(wal_end, confirmed_flush_lsn), 0), 0)::bigint as unconfirmed_bytes,
        safe_wal_size as safe_bytes, coalesce(wal_status, '') as wal_status,
        coalesce(to_jsonb(slot) ->> 'invalidation_reason', '') as invalidation_reason,
        (to_jsonb(slot) ->> 'failover')::boolean as is_failover,
        coalesce((to_jsonb(slot) ->> 'synced')::boolean, false) as is_synced
    from pg_replication_slots as slot,
        (select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end as wal_end) as server
    order by slot_name";

/// Asks the database.
///
/// # Errors
/// It does not answer or refuses, in words for people.
pub async fn ask(database: &Database, outbox: &Outbox) -> Result<OutboxFacts, String> {
    let table = database
        .query(TABLE, &[&outbox.table])
        .await
        .map_err(|err| err.to_string())?;
    let slots = database.query(SLOTS, &[]).await.map_err(|err| err.to_string())?;
    let table = table.first().ok_or("the database has no answer")?;
    let (ours, other_slots) = slots
        .iter()
        .map(SlotFacts::of)
        .partition::<Vec<_>, _>(|slot| slot.name == outbox.slot);
    Ok(OutboxFacts {
        inserted: table.get("inserted"),
        insert_rate: None,
        rows: table.get("rows"),
        wal_end: table.get("wal_end"),
        limit_bytes: table.get("limit_bytes"),
        slot: ours.into_iter().next(),
        other_slots,
    })
}

impl SlotFacts {
    fn of(row: &Row) -> Self {
        Self {
            name: row.get("name"),
            plugin: row.get("plugin"),
            database: row.get("database"),
            reader: row.get("active_pid"),
            restart_lsn: row.get("restart_lsn"),
            confirmed_lsn: row.get("confirmed_lsn"),
            retained_bytes: row.get("retained_bytes"),
            unconfirmed_bytes: row.get("unconfirmed_bytes"),
            safe_bytes: row.get("safe_bytes"),
            wal_status: row.get("wal_status"),
            invalidation_reason: row.get("invalidation_reason"),
            is_failover: row.get("is_failover"),
            is_synced: row.get("is_synced"),
        }
    }
}
