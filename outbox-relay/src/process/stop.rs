//! The reasons for which the relay stops for good, each with its own exit code and with what to do.
//!
//! Everything else is transient: the relay says so, waits and starts its cycle again from the checkpoint.

use crate::process::row_name::{RowName, RowPlace, RowPosition};
use pg_replication::Lsn;

/// Of [`Stop::PartitionsChanged`]: what goes on from the checkpoint.
pub const PARTITIONS_CURE: &str = ": later events of a key would go to another partition and overtake earlier ones; restore the number of partitions, use a new topic, or, once its readers have read everything, go on by `outbox-relay init --accept-partitions`";
/// As [`PARTITIONS_CURE`], where it is `recover` that stops: something else is broken, too, which that flag alone would not get over.
pub const RECOVER_PARTITIONS_CURE: &str = ", and nothing was published for that: later events of a key would go to another partition and overtake earlier ones; once the topic's readers have read everything, `outbox-relay recover --accept-partitions` goes on with the partitions of now";
/// Of the checkpoints' topic, which no relay reads with more partitions than one.
pub const CHECKPOINT_PARTITIONS_CURE: &str = ", and the topic of the checkpoints takes exactly one; `outbox-relay recover --checkpoint-topic OTHER_TOPIC` publishes what no topic has and goes on with another, whose name every command has to be given from then on";

/// A definite stop: going on could lose or repeat events, so a person has to decide. Nothing was confirmed after its cause.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    #[error("{what}")]
    Config { what: String },
    #[error(
        "`outbox-relay init` has not been done, or did not finish: no slot `{slot}` in database `{database}` and no checkpoint in topic `{topic}`; run `outbox-relay init` once, or `outbox-relay run --init`; where it was done before and both are lost, `outbox-relay recover` publishes what no topic has"
    )]
    NotInitialised {
        slot: String,
        database: String,
        topic: String,
    },
    #[error(
        "`outbox-relay init` of slot `{slot}` began and did not finish; run it again, it goes on with what is not published yet"
    )]
    InitUnfinished { slot: String },
    #[error(
        "slot `{slot}` is gone, but the checkpoint in topic `{topic}` stands at {checkpoint}: what was written to the outbox since then cannot be read from the WAL any more; `outbox-relay recover` publishes what is missing from the outbox table and goes on, or, where you know that nothing is missing, `outbox-relay init --accept-new-slot` makes a new slot (checkpoint key `{key}`)"
    )]
    SlotGone {
        slot: String,
        topic: String,
        key: String,
        checkpoint: Lsn,
    },
    #[error(
        "slot `{slot}` was invalidated by Postgres ({reason}): the WAL behind the checkpoint {checkpoint} is gone; `outbox-relay recover` publishes what is missing from the outbox table and goes on, or, where you know that nothing is missing, `outbox-relay init --accept-new-slot` makes a new slot; a larger max_slot_wal_keep_size keeps it from happening again"
    )]
    SlotInvalidated {
        slot: String,
        reason: String,
        checkpoint: Lsn,
    },
    #[error(
        "slot `{slot}` cannot be read: it takes a pgoutput slot of database `{database}` without two_phase, and this one is of {found}; where that slot is of no use to anybody, `select pg_drop_replication_slot('{slot}')` and `outbox-relay recover`; else give the relay another name, `outbox-relay recover --slot OTHER_NAME`, which publishes what no topic has"
    )]
    SlotUnusable {
        slot: String,
        database: String,
        found: String,
    },
    #[error(
        "slot `{slot}` stands at {slot_lsn}, ahead of the checkpoint {checkpoint}: it was recreated, advanced or read by somebody else, and the events between the two are lost to this relay; `outbox-relay recover` publishes what is missing from the outbox table, with a new slot, or, where you know that nothing is missing, `outbox-relay init --accept-slot-gap` goes on from the slot's position"
    )]
    SlotAhead {
        slot: String,
        slot_lsn: Lsn,
        checkpoint: Lsn,
    },
    #[error(
        "slot `{slot}` exists, but topic `{topic}` has no checkpoint of `{key}`: the topic was deleted or emptied, or another checkpoint topic was used before (give the right --checkpoint-topic); `outbox-relay recover` publishes what no topic has and goes on with a new slot; or go on from the slot's confirmed position: `outbox-relay init --adopt-slot` where nothing was published from it yet, `outbox-relay init --accept-checkpoint-loss` where what it sends again may come twice"
    )]
    CheckpointMissing { slot: String, topic: String, key: String },
    #[error(
        "the checkpoint of `{key}` in topic `{topic}` at offset {offset} cannot be read ({what}); find out who writes to that topic, then `outbox-relay recover` publishes what no topic has and goes on with a new slot, or, where you know that the last one that can be read is the last that was written, `outbox-relay init --accept-garbled-checkpoint` goes on from it"
    )]
    CheckpointGarbled {
        key: String,
        topic: String,
        offset: i64,
        what: String,
    },
    #[error(
        "the checkpoint of `{key}` in topic `{topic}` went back: at offset {offset} it says {found}, and before it said {expected}; events between the two would be published again; find out who writes to that topic, then `outbox-relay recover` publishes what no topic has and goes on with a new slot, or, where you know that the later one is right, `outbox-relay init --accept-garbled-checkpoint` goes on from it"
    )]
    CheckpointWentBack {
        key: String,
        topic: String,
        offset: i64,
        expected: Lsn,
        found: Lsn,
    },
    #[error(
        "the checkpoint in topic `{topic}` is from database cluster {expected}, but this is cluster {found}: one of the two addresses is wrong, or the database was moved or restored; for another database give another --checkpoint-topic or --slot; for the same one, stop the relay of the former cluster, then `outbox-relay recover` publishes what no topic has and goes on with a new slot here, or, where you know that everything was published, `outbox-relay init --accept-cluster` goes on from this cluster's slot"
    )]
    OtherCluster {
        topic: String,
        expected: String,
        found: String,
    },
    #[error(
        "the checkpoint is from timeline {expected}, the server is on timeline {found} (a standby was promoted or a backup restored), and it is not proven that the slot sees every event once: {missing}; let `outbox-relay recover` compare the outbox with the topics and publish what is missing, or, where you know that nothing is, go on by `outbox-relay init --accept-timeline`"
    )]
    OtherTimeline { expected: u32, found: u32, missing: String },
    #[error(
        "the server's WAL, now at {server}, was found to end behind the checkpoint {checkpoint}: the database was restored from an older backup; events after that backup are published already, and new ones would be taken for them; `outbox-relay recover` publishes what no topic has and goes on with a new slot, or, where events may come twice, `outbox-relay init --accept-older-database` goes on from the slot's confirmed position"
    )]
    ServerBehind { server: Lsn, checkpoint: Lsn },
    #[error("topic `{topic}` has {found} partitions and had {expected}{cure}")]
    PartitionsChanged {
        topic: String,
        expected: i32,
        found: i32,
        cure: &'static str,
    },
    #[error(
        "topic `{topic}` was deleted and made anew (its id was {expected} and is {found}), and what had been published to it is gone; {cure}"
    )]
    TopicRecreated {
        topic: String,
        expected: String,
        found: String,
        cure: &'static str,
    },
    #[error("topic `{topic}` was deleted (its id was {expected}), and what had been published to it is gone; {cure}")]
    TopicGone {
        topic: String,
        expected: String,
        cure: &'static str,
    },
    #[error(
        "the checkpoint topic `{topic}` may lose the last checkpoint, without which no relay goes on: {what}; mend it by `{command}`"
    )]
    CheckpointTopicUnsafe {
        topic: String,
        what: String,
        command: String,
    },
    #[error(
        "the parking topic `{topic}` may lose parked rows, which are published nowhere: {what}; nothing was parked; mend it by `{command}` and start again"
    )]
    ParkingTopicUnsafe {
        topic: String,
        what: String,
        command: String,
    },
    #[error(
        "publication `{publication}`: {what}; once that is done, `outbox-relay recover` publishes what was hidden meanwhile (before the first start, `outbox-relay init`); `outbox-relay check` tells whether all is well"
    )]
    Publication { publication: String, what: String },
    #[error(
        "publication `{publication}`: {what}, and what was written to the outbox meanwhile may be in no stream; `outbox-relay recover` publishes what no topic has and goes on with the publication as it is now, or, where you know that nothing was hidden, `outbox-relay init --accept-publication` does so without looking"
    )]
    PublicationChanged { publication: String, what: String },
    #[error(
        "the transaction at {commit_lsn} is published up to its row {rows}, counted with {then}; with {now} it would go on at another row, so that rows would be lost or come twice; start once more with the former settings until that transaction is published, or `outbox-relay recover` compares the outbox with the topics and goes on with those of now"
    )]
    RowsCountedOtherwise {
        commit_lsn: Lsn,
        rows: u64,
        /// The settings that count, as the checkpoint has them.
        then: String,
        /// The settings that count now.
        now: String,
    },
    #[error(
        "the outbox {table} was named {name} when the transaction at {commit_lsn} wrote to it: under that name its rows are not published, and what had the outbox' name meanwhile may be in no stream; once the table has its name again, `outbox-relay recover --compare-anyway` publishes what no topic has"
    )]
    OutboxRenamed {
        table: String,
        name: String,
        commit_lsn: Lsn,
    },
    #[error(
        "outbox {outbox} is published by another slot already: topic `{topic}` has the checkpoint of `{other}`, and slot `{slot}` would publish every row a second time; give the right --slot, or, where both are wanted, `outbox-relay init --another-slot` (`outbox-relay recover --another-slot`, where this one's checkpoint is lost)"
    )]
    PublishedByAnotherSlot {
        outbox: String,
        topic: String,
        other: String,
        slot: String,
    },
    #[error(
        "a relay of another server publishes as `{key}`: {what}; a copy of the database with the same settings would take turns with the original and skip rows of both; stop the wrong relay, and give it another --checkpoint-topic or --slot; where this server is the right one, `outbox-relay init --accept-server` goes on with it"
    )]
    PublishedFromAnotherServer { key: String, what: String },
    #[error("outbox row {row} cannot be published: {what}: {}", row.what_to_do())]
    Row { row: RowName, what: String },
    #[error(
        "an outbox row was updated in the transaction at {commit_lsn}, and table.op.invalid.behavior is fatal: only inserts are events; set it to warn or error, and start again"
    )]
    RowUpdated { commit_lsn: Lsn },
    #[error(
        "outbox row {row} is too large for topic `{topic}`: {size} bytes of key and value, more than {limit}; raise the topic's max.message.bytes and --kafka-property message.max.bytes above it and start again, or: {}", row.what_to_do()
    )]
    RecordTooLarge {
        row: RowName,
        topic: String,
        /// Bytes of key and value.
        size: usize,
        limit: String,
    },
    #[error(
        "topic `{topic}` does not exist and --create-topics is false; create it and `outbox-relay run` goes on; `outbox-relay run --create-topics true` creates what is missing; where column {column} of outbox row {row} names the wrong one: {}", row.what_to_do()
    )]
    TopicMissing {
        topic: String,
        column: String,
        row: RowName,
    },
    #[error(
        "topic `{topic}` cannot be created: {what}{}", row.as_ref().map_or_else(String::new, |row| format!("; outbox row {row} goes there, and where it should not: {}", row.what_to_do()))
    )]
    TopicRefused {
        topic: String,
        what: String,
        /// The first row that goes there; none for a topic that an option names.
        row: Option<RowName>,
    },
    #[error(
        "topic `{topic}` has {found} of {expected} parked rows: it was deleted or emptied, or they were parked in another topic (give that --parking-topic); where they are lost there, `outbox-relay recover` publishes those that the outbox table still has, or, where nothing is to be published again, `outbox-relay init --accept-parked-loss` goes on without them"
    )]
    ParkedRowsMissing { topic: String, expected: u64, found: u64 },
    #[error(
        "in partition {partition} of topic `{topic}` a transaction that began at offset {offset} is open for longer than brokers allow: kafka has lost its end (as 4.2 to 4.4 do, KAFKA-20734), and hides what lies behind it from every reader of what is committed; stop every relay that writes there, start each of them until it has ended with this code, and keep them stopped; then list such transactions by `kafka-transactions.sh --bootstrap-server {bootstrap_servers} find-hanging --topic {topic} --max-transaction-timeout {allowed_minutes}`, there and in the topics of the rows, end each by `kafka-transactions.sh --bootstrap-server {bootstrap_servers} abort --topic {topic} --partition {partition} --start-offset {offset}`, and then run `outbox-relay recover --compare-anyway`: it publishes what was in them and is in no topic"
    )]
    TransactionHangs {
        topic: String,
        partition: i32,
        offset: i64,
        bootstrap_servers: String,
        /// Whole minutes that brokers allow.
        allowed_minutes: u64,
    },
    #[error("outbox row at {position} is not parked: {what}")]
    TooManyParked { position: RowPosition, what: String },
    #[error(
        "there is nothing to recover: slot `{slot}` continues the checkpoint {checkpoint}; `outbox-relay run` goes on from there, and `outbox-relay recover --compare-anyway` compares the outbox with the topics all the same"
    )]
    NothingToRecover { slot: String, checkpoint: Lsn },
    #[error("nothing was changed: {what}")]
    NotConfirmed { what: String },
    #[error(
        "`outbox-relay recover` of slot `{slot}` is needed, or began and did not finish; run it, it compares the outbox with the topics; where the outbox has no table, `outbox-relay init --accept-unfinished-recovery` goes on from the checkpoint without comparing"
    )]
    RecoveryUnfinished { slot: String },
}

impl Stop {
    /// The process's exit code. Codes are part of the interface: a code never changes its meaning.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config { .. } | Self::RowsCountedOtherwise { .. } => 2,
            Self::NotInitialised { .. } | Self::InitUnfinished { .. } => 3,
            Self::SlotGone { .. } => 10,
            Self::SlotInvalidated { .. } => 11,
            Self::SlotUnusable { .. } => 12,
            Self::SlotAhead { .. } => 13,
            Self::CheckpointMissing { .. } => 14,
            Self::CheckpointGarbled { .. } => 15,
            Self::OtherCluster { .. } => 16,
            Self::OtherTimeline { .. } => 17,
            Self::ServerBehind { .. } => 18,
            Self::PartitionsChanged { .. } => 19,
            Self::Publication { .. } | Self::PublicationChanged { .. } | Self::OutboxRenamed { .. } => 20,
            Self::CheckpointWentBack { .. } => 21,
            Self::TopicRecreated { .. } | Self::TopicGone { .. } => 23,
            Self::PublishedByAnotherSlot { .. } | Self::PublishedFromAnotherServer { .. } => 24,
            Self::CheckpointTopicUnsafe { .. } | Self::ParkingTopicUnsafe { .. } => 25,
            Self::Row { .. } | Self::RowUpdated { .. } => 30,
            Self::RecordTooLarge { .. } => 31,
            Self::TopicMissing { .. } => 32,
            Self::TooManyParked { .. } => 33,
            Self::TopicRefused { .. } => 34,
            Self::ParkedRowsMissing { .. } => 35,
            Self::TransactionHangs { .. } => 36,
            Self::NothingToRecover { .. } => 40,
            Self::NotConfirmed { .. } => 41,
            Self::RecoveryUnfinished { .. } => 42,
        }
    }

    /// The row in the write-ahead log that neither the router nor Kafka will ever take, where that is the cause.
    #[must_use]
    pub fn poison(&self) -> Option<(RowPosition, &RowName)> {
        match self {
            Self::Row { row, .. } | Self::RecordTooLarge { row, .. } => match row.place {
                RowPlace::Stream(position) => Some((position, row)),
                RowPlace::Table => None,
            },
            _ => None,
        }
    }

    /// The row in the write-ahead log at which the relay stopped, whether the row is the cause or its topic.
    #[must_use]
    pub fn row_position(&self) -> Option<RowPosition> {
        let row = match self {
            Self::Row { row, .. } | Self::RecordTooLarge { row, .. } | Self::TopicMissing { row, .. } => Some(row),
            Self::TopicRefused { row, .. } => row.as_ref(),
            Self::TooManyParked { position, .. } => return Some(*position),
            _ => None,
        };
        match row?.place {
            RowPlace::Stream(position) => Some(position),
            RowPlace::Table => None,
        }
    }

    /// Why the row cannot be published, without what to do about it.
    #[must_use]
    pub fn row_reason(&self) -> String {
        match self {
            Self::Row { what, .. } | Self::TooManyParked { what, .. } => what.clone(),
            Self::RecordTooLarge { topic, size, limit, .. } => {
                format!("it is too large for topic `{topic}`: {size} bytes of key and value, more than {limit}")
            }
            Self::TopicMissing { topic, .. } => format!("topic `{topic}` does not exist and --create-topics is false"),
            Self::TopicRefused { topic, what, .. } => format!("topic `{topic}` cannot be created: {what}"),
            other => other.to_string(),
        }
    }

    /// The exit codes, for `--help`.
    pub const EXIT_CODES: &str = "\
Exit codes:
   0  ended as asked
   1  an error that is described in the last line
   2  a setting is wrong
   3  init has not been done, or not been finished
  10  the slot is gone               11  the slot was invalidated     12  the slot is of another kind
  13  the slot is ahead of the checkpoint (recreated, advanced, or read by somebody else)
  14  the checkpoint is missing      15  the checkpoint is unreadable
  16  another database cluster       17  another timeline             18  the server is behind the checkpoint
  19  a topic's partition count changed                               20  the publication is missing or altered
  21  the checkpoint went back       23  a topic was deleted and made anew
  24  another slot, or a copy of the database, publishes this outbox
  25  the checkpoint topic may lose the checkpoint (init), or the parking topic parked rows
  30  a row cannot be published      31  a record is too large        32  a topic is missing
  33  too many rows were parked      34  a topic cannot be created    35  parked rows are missing
  36  a transaction on Kafka has lost its end, and hides records
  40  recover: nothing to recover    41  recover: not confirmed       42  recover was begun and not finished
  50  status: paused or behind       51  status: no relay runs        52  status: Postgres or Kafka is away
  70  a bug: something panicked; a restart goes on from the checkpoint
After 10 to 36 and 70 nothing was confirmed to Postgres beyond what is published; the last line says what to do.
`status` ends with 0 if all is well, and with 3, 10 to 36 or 42 if that is why a relay has stopped, or would stop.
docs/exit-codes.md has, for each, what it proves and what to type.";
}

/// Why a cycle of the relay ended.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// A person has to act.
    #[error(transparent)]
    Stop(#[from] Stop),
    /// Worth another try from the checkpoint.
    #[error(transparent)]
    Transient(#[from] anyhow::Error),
}

impl From<std::io::Error> for RelayError {
    fn from(err: std::io::Error) -> Self {
        Self::Transient(err.into())
    }
}
