//! The figures of `view-builder status`, as its JSON has them. docs/status.md and docs/view-builder-status.schema.json document each.
//!
//! A figure that is not known is null. What is not known because a server is away is explained by that server's `away_because`.

use serde::Serialize;
use service::health::SaysOfItself;

/// Everything that `status` tells besides the verdict and the problems.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Figures {
    pub(super) postgres: Postgres,
    pub(super) kafka: Kafka,
    pub(super) group: Group,
    /// What a builder's process says of itself. `None`: nobody said where to ask it.
    pub(super) builder: Option<SaysOfItself>,
    /// Empty while Postgres is away, and before a builder has run.
    pub(super) partitions: Vec<Partition>,
    pub(super) total: Total,
    /// Empty while Postgres is away.
    pub(super) views: Vec<View>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Postgres {
    pub(super) address: String,
    pub(super) database: String,
    /// Why it is not known how Postgres is. `None`: it answers.
    pub(super) away_because: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Kafka {
    pub(super) address: String,
    /// Why it is not known how Kafka is. `None`: it answers.
    pub(super) away_because: Option<String>,
}

/// The consumer group of the builders.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Group {
    pub(super) name: String,
    /// As Kafka names it: `Stable`, `PreparingRebalance`, `CompletingRebalance`, `Empty` or `Dead`. `None`: Kafka does not tell.
    pub(super) state: Option<String>,
    /// How many builders belong to it. `None`: Kafka does not tell.
    pub(super) members: Option<u64>,
}

/// What becomes of a partition's events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum PartitionState {
    /// A builder reads them, as soon as one runs.
    Read,
    /// No builder reads them until an operator decides.
    Paused,
    /// They wait in Kafka, which does not give them now.
    Waiting,
    /// The topic was made anew with fewer partitions, and this one is not there any more.
    Gone,
    /// Kafka is away.
    #[default]
    Unknown,
}

impl PartitionState {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Paused => "paused",
            Self::Waiting => "waiting",
            Self::Gone => "gone",
            Self::Unknown => "unknown",
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Partition {
    pub(super) topic: String,
    pub(super) partition: i32,
    /// The next offset to apply. `None`: the first one that the topic has.
    pub(super) position_offset: Option<i64>,
    /// One past the last offset that a read_committed reader sees. `None`: not known, or the partition is gone.
    pub(super) end_offset: Option<i64>,
    /// Offsets between the position and the end while events are to come, transaction markers included; else 0. `None`: not known.
    pub(super) lag_events: Option<i64>,
    /// Age of the oldest event that is not in the views, from its commit at the source; 0 if there is none. `None`: not known.
    pub(super) lag_seconds: Option<f64>,
    pub(super) state: PartitionState,
    /// Why it is not read.
    pub(super) state_because: Option<String>,
    /// The process that claimed it last.
    pub(super) owner: String,
    /// Counts the claims.
    pub(super) epoch: i64,
    /// Events that wait since they cannot be applied, parked ones included.
    pub(super) dead_letters: i64,
}

/// Over all partitions.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Total {
    pub(super) partitions: u64,
    /// The sum. `None`: that of a partition is not known.
    pub(super) lag_events: Option<i64>,
    /// The largest that is known. `None`: that of a partition is not known, and no other is above 0.
    pub(super) lag_seconds: Option<f64>,
    /// The sum. `None`: Postgres is away.
    pub(super) dead_letters: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct View {
    pub(super) view: String,
    pub(super) topics: Vec<String>,
    /// MD5 of `table.sql` and `apply.sql`, as all builders apply them. `None`: the view is new, and its first generation is being filled.
    pub(super) sql_md5: Option<String>,
    /// `None`: it is not paused.
    pub(super) pause: Option<Pause>,
    /// `None`: no new generation is being filled.
    pub(super) rebuild: Option<Rebuild>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Pause {
    pub(super) since: String,
    pub(super) by: String,
    pub(super) reason: String,
}

/// A new generation of a view.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Rebuild {
    /// The schema that is filled.
    pub(super) generation: String,
    pub(super) started_at: String,
    /// Whether a process fills it now.
    pub(super) is_running: bool,
    /// How far it is filled: the sum of its positions.
    pub(super) filled_offsets: i64,
    /// How far the live views are in the same partitions.
    pub(super) live_offsets: i64,
}
