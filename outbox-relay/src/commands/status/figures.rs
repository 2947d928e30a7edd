//! The figures of `outbox-relay status`, as its JSON has them. docs/status.md and docs/outbox-relay-status.schema.json document each.
//!
//! A figure that is not known is null. What is not known because a server is away is explained by that server's `away_because`.

use serde::Serialize;
use service::health::SaysOfItself;

/// Everything that `status` tells besides the verdict and the problems.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Figures {
    pub(super) postgres: Postgres,
    pub(super) kafka: Kafka,
    /// `None`: there is no slot, or Postgres is away.
    pub(super) slot: Option<Slot>,
    /// What the relay's process says of itself. `None`: nobody said where to ask it.
    pub(super) relay: Option<SaysOfItself>,
    pub(super) outbox: Outbox,
    /// `None`: there is no checkpoint that can be read, or Kafka is away.
    pub(super) checkpoint: Option<Checkpoint>,
    /// `None`: no operator has paused the relay, or Kafka is away.
    pub(super) pause: Option<Pause>,
    /// `None`: there is no checkpoint that can be read.
    pub(super) parking: Option<Parking>,
    /// The topics of rows, and that of the checkpoints.
    pub(super) topics: Vec<Topic>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Postgres {
    pub(super) address: String,
    pub(super) database: String,
    /// Why it is not known how Postgres is. `None`: it answers.
    pub(super) away_because: Option<String>,
    pub(super) server_version: Option<String>,
    /// System identifier of the database cluster.
    pub(super) cluster: Option<String>,
    pub(super) timeline: Option<u32>,
    pub(super) wal_end_lsn: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Kafka {
    pub(super) address: String,
    /// Why it is not known how Kafka is. `None`: it answers.
    pub(super) away_because: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Slot {
    pub(super) name: String,
    /// Whether a session reads it.
    pub(super) is_active: bool,
    /// `None`: nobody reads it.
    pub(super) reader: Option<Reader>,
    pub(super) confirmed_lsn: String,
    pub(super) restart_lsn: String,
    /// From the confirmed position to the end of the WAL.
    pub(super) unconfirmed_bytes: i64,
    /// WAL that the server keeps for the slot.
    pub(super) retained_bytes: i64,
    /// `max_slot_wal_keep_size`. `None`: there is no limit.
    pub(super) limit_bytes: Option<i64>,
    /// WAL that may still be written before the slot may be lost. `None`: there is no limit.
    pub(super) safe_bytes: Option<i64>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub(super) wal_status: String,
    pub(super) invalidation_reason: Option<String>,
    pub(super) is_failover: bool,
}

/// The session that reads the slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Reader {
    pub(super) pid: i32,
    /// `None`: this role may not see it.
    pub(super) application_name: Option<String>,
    /// `None`: a Unix socket, or this role may not see it.
    pub(super) client_address: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Outbox {
    /// `None`: messages alone are the outbox.
    pub(super) table: Option<String>,
    pub(super) publication: String,
    /// Age of the oldest row that was certainly committed after everything that is published; 0 if there is none. `None`: not known.
    pub(super) oldest_unpublished_age_seconds: Option<f64>,
    /// Why that age is not known.
    pub(super) unknown_because: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Checkpoint {
    pub(super) topic: String,
    pub(super) offset: i64,
    pub(super) published_lsn: String,
    /// The transaction of which only the first rows are published.
    pub(super) partial: Option<Partial>,
    pub(super) written_at: Option<String>,
    pub(super) age_seconds: Option<f64>,
    /// When the newest published row was committed.
    pub(super) newest_row_at: Option<String>,
    /// From the published position to the end of the WAL.
    pub(super) unpublished_bytes: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Partial {
    pub(super) commit_lsn: String,
    pub(super) rows: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Pause {
    pub(super) since: String,
    pub(super) paused_seconds: f64,
    pub(super) reason: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Parking {
    pub(super) topic: String,
    pub(super) rows: u64,
    /// The row at which the relay stopped last, until it is passed.
    pub(super) stopped_at: Option<StoppedAt>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct StoppedAt {
    pub(super) position: String,
    pub(super) reason: String,
    /// An operator has ordered that the next `run` parks it.
    pub(super) is_ordered_to_park: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Topic {
    pub(super) topic: String,
    pub(super) is_there: bool,
    /// How many it has.
    pub(super) partitions: i32,
    /// How many the checkpoint knows. `None`: the topic is none of rows.
    pub(super) partitions_expected: Option<i32>,
    /// Kafka's id of the topic. `None`: it is not there, or the cluster tells no ids.
    pub(super) id: Option<String>,
}
