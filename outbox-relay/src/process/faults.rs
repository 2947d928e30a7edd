//! Places where a test can make trouble, and bugs that it can plant; in a build without the feature `faults` there are neither.
//!
//! The crash tests have the relay die, fail or dawdle at each [`point`] of its protocol, and count every row afterwards. A test that
//! never fails proves nothing, so the same tests are run against relays with a [`Bug`], each of which they have to find.
//!
//! Code that has a planted bug asks for it by a function of a module `planted` beside it, which is named for the mistake.

use crate::process::stop::RelayError;

/// A mistake that a relay could have in it, by the name that `OUTBOX_RELAY_BUG` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Confirms what was decoded, without waiting for Kafka's commit.
    ConfirmBeforeCommit,
    /// Confirms a source transaction of which only a part is published.
    ConfirmMidTransaction,
    /// Reads the checkpoint before earlier producers are fenced.
    CheckpointBeforeFence,
    /// Commits the checkpoint ahead of the records that it speaks of.
    CheckpointBeforeData,
    /// Takes an LSN for a row's identity: rows that share it count as published with the first.
    RowLsnDedupe,
    /// Goes on from the slot's position instead of the checkpoint's.
    TrustTheSlot,
    /// Goes on with a producer whose connection was disturbed during a commit.
    ReuseProducer,
    /// Takes a record that Kafka's client refused for sent.
    IgnoreDeliveryError,
    /// Forgets a row that librdkafka's queue had no room for.
    DropWhenQueueFull,
    /// Starts at the end of the WAL.
    StartFromNow,
    /// Lets the second of two transactions commit without waiting for the first.
    SecondCommitsFirst,
    /// Takes the end of a topic where the broker's answer says that it is, whatever the end was when it asked for it.
    BelievesAnyEnd,
    /// Does not wait for open transactions in the topics of the rows.
    GoOnBehindOpenTransactions,
    /// Goes on without the parked rows that the parking topic lacks.
    MissParkedRows,
    /// Removes rows from the outbox table that a parked row needs.
    RemoveParkedRows,
    /// Only takes note of the partitions that are there when it starts.
    OverlookPartitionsAtStart,
    /// Takes partitions of before for new ones where one that it cannot look at comes first.
    ForgetPartitionsBehindANewOne,
    /// Takes a partition that was attached again for the one that it knows.
    KnowPartitionsByOid,
    /// Goes on where another session reads the slot: without that look, the order of the fences and the lanes alone is in the way of a second relay.
    TrustAnyReader,
    /// Sends its first transaction through another lane than the first.
    BeginsAtAnyLane,
    /// Fences the other lanes without waiting for the first.
    FencesInAnyOrder,
    /// Goes on where a thread or a task has panicked.
    SurvivePanics,
    /// `recover` publishes on with positions below those that readers have seen.
    PositionsGoBack,
    /// `recover` publishes what was missing before it fenced earlier producers and made the slot.
    CompareBeforeFence,
    /// Gives the rows that were there before the slot the slot's consistent point as their LSN.
    ExistingRowsAtConsistentPoint,
    /// Goes on with an unfinished init behind the last row that it published, without looking for rows that were committed since.
    ContinueBehindLastRow,
    /// Publishes although an operator has paused the relay.
    IgnorePause,
    /// Does not ask what its topics take. This alone harms nothing: it is as where the cluster does not tell.
    AskNoSettings,
    /// Forgets which record the broker refused; asks for no settings either, so that it refuses one.
    ForgetRefused,
    /// Publishes rows wherever they route to, its own topics included.
    PublishAnywhere,
    /// Parks a row at once, outside of the transaction whose checkpoint passes it.
    ParkOutsideTransaction,
    /// Does not know after a start which keys have parked rows.
    ForgetParkedKeys,
    /// Takes each server that the address leads to for the one that streams.
    TrustAnyServer,
    /// The guard does not ask whether the slot that it looks at streams to this relay.
    GuardTrustsAnySlot,
    /// Goes on with the stream of a standby that was promoted.
    StreamOnAfterPromotion,
    /// Does not ask whether the checkpoint was written for this server or for the one that it is a copy of.
    TrustAnyCopy,
    /// Leaves the settings of its sessions to whoever has set them for the role or the database.
    PinNoSettings,
    /// Does not look for tables that inherit the outbox.
    OverlookHeirs,
    /// Takes rows that were written while the outbox had another name for another table's.
    KnowOutboxByName,
    /// Watches the publication alone, and not the outbox table.
    TrustAnyTable,
    /// Keeps the first password that it reads from a file.
    KeepFirstPassword,
    /// Publishes an outbox that another slot publishes.
    AnySlotPublishes,
    /// Knows topics by their names.
    KnowTopicsByName,
    /// `replay --to` takes the rows of that very moment, too.
    ReplayToInclusive,
    /// `replay` does not wait until the relay has published the rows.
    ReplayUnpublished,
    /// Looks at its topics when it starts, and not while it runs.
    LookAtTopicsOnlyAtStart,
    /// Accepts another cluster, or recovers on it, without fencing the relay that still runs on the former one.
    LeaveFormerClusterUnfenced,
    /// Makes each of Kafka's clients with the secrets that the files held when it started.
    KeepFirstKafkaSecrets,
    /// Parks as many poison rows as come.
    ParkWithoutLimit,
    /// Has room for two parked rows. This alone harms nothing: it is as with a quarter of a million of them.
    RoomForTwoParkedRows,
    /// Reads from a slot that sends transactions when they are prepared.
    TakeTwoPhaseSlots,
    /// Knows only the number of partitions that a topic has now, and not those by which its earlier records were sent.
    ForgetFormerPartitions,
    /// Leaves the transaction of a command that failed to the broker's timeout.
    LeaveFailedTransactionOpen,
}

#[cfg(feature = "faults")]
pub use armed::{is_planted, point};

/// Does nothing, and compiles to nothing.
///
/// # Errors
/// None.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub fn point(_name: &'static str) -> Result<(), RelayError> {
    Ok(())
}

/// There are no planted bugs in this build.
#[cfg(not(feature = "faults"))]
#[inline(always)]
#[must_use]
pub const fn is_planted(_bug: Bug) -> bool {
    false
}

#[cfg(feature = "faults")]
mod armed {
    use service::faults::Faults;

    use super::{Bug, RelayError};

    static FAULTS: Faults = Faults::of("OUTBOX_RELAY");

    /// Makes the trouble that `OUTBOX_RELAY_FAILPOINT` asks for here; see [`Faults`].
    ///
    /// # Errors
    /// The action is `error`.
    pub fn point(name: &'static str) -> Result<(), RelayError> {
        FAULTS.point(name).map_err(|failed| anyhow::Error::from(failed).into())
    }

    /// Whether `OUTBOX_RELAY_BUG` names this bug.
    #[must_use]
    pub fn is_planted(bug: Bug) -> bool {
        FAULTS.is_planted(&format!("{bug:?}"))
    }
}
