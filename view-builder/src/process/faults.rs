//! Failpoints, which are places where a test can make trouble, and bugs that a test can plant. A build without the feature `faults` has neither.
//!
//! The crash tests make the builder die, fail, freeze or wait at each of these places, and then compare every view. A test that never fails proves
//! nothing. So the same tests also run against builders with a [`Bug`], and they have to find each bug.

#[cfg(not(feature = "faults"))]
use std::future::Future;

#[cfg(not(feature = "faults"))]
use tokio_postgres::Error;

/// A mistake that a builder could have in it, by the name that `VIEW_BUILDER_BUG` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Moves the positions in a transaction of its own, before the views'.
    PositionFirst,
    /// Moves the positions after the views' transaction has committed.
    PositionLast,
    /// Moves the positions wherever they are and whoever has claimed them.
    NoFence,
    /// Begins at the group's offset wherever Kafka has one.
    TrustTheGroup,
    /// Believes that a COMMIT whose answer was lost has failed. The right statement would refuse the second attempt, since the position is no
    /// longer where the batch begins. So this builder also moves positions as with `NoFence`.
    UnknownIsFailed,
    /// Believes that a COMMIT whose answer was lost has happened. The right statement would refuse the next batch, since the position is not yet
    /// where that batch begins. So this builder also moves positions as with `NoFence`.
    UnknownIsDone,
    /// Fills a generation up to the positions, also where they were set back.
    FillToPosition,
    /// Believes that a partition is read to its end at any offset that a broker names as the end.
    BelieveAnyEnd,
    /// In a fill, treats every error as a lost connection, unless Postgres refuses the data.
    RefusedByDataAlone,
    /// When a rebuild goes on, forgets that an operator had accepted that events are gone.
    ForgetAcceptance,
    /// Believes that no topic is compacted.
    IgnoreCompaction,
    /// Believes that everything before the group's offset is applied.
    TrustGroupOffset,
    /// Leaves every event with a dead letter out of a generation, even if the views had applied it before.
    LetterIsNeverApplied,
    /// Checks only once whether a compacted topic lacks events of keys with dead letters, and ignores the letters that come later.
    NoLetterComesLater,
    /// Reads all dead letters anew at each look of a rebuild.
    ReadAllLettersEachTime,
    /// Parks an event behind a dead letter that it remembers, without a look whether the letter is still there.
    ParkBlindly,
    /// Believes that a topic of the same name is the same topic.
    KnowTopicsByName,
    /// Lets the dead letters of a topic that was replaced hold up the events of the new one.
    KeepFormerLetters,
    /// Ends the whole builder if one partition has lost its continuity, instead of pausing that partition.
    EndAllForOne,
    /// Believes the first answer about a topic's end, although the broker may lag behind.
    BelieveOneLaggingEnd,
    /// Goes on at the position when a topic's end that was below the position has grown beyond it again.
    ForgetPausedEnd,
    /// Does not look whether a log has other records at the offsets that were read.
    TrustOffsetsAlone,
    /// Believes that a partition still exists, though the topic does not have it any more.
    KeepGonePartitions,
    /// Begins no partition of an assignment before Kafka tells of all of them.
    WaitForAllLeaders,
    /// Waits for ever if Postgres refuses with an SQLSTATE that is in no list.
    UnknownStatesBlock,
    /// Ends a pause without setting positions back.
    ResumeWithoutReplay,
    /// Pauses a view at the highest positions instead of the present ones.
    PauseAtTheHighest,
    /// Runs the SQL of every view at each start.
    InstallEverything,
    /// Gives every key the same hash. This alone harms nothing: it is as where two keys have the same one by chance.
    HashesAlike,
    /// Drops a view without waiting for builders that start.
    DropBesideStarts,
}

#[cfg(feature = "faults")]
pub use armed::{around, hold, is_planted, keeping, moving, point, request};

/// A step that Postgres may fail. Does nothing, and compiles to nothing.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub fn point(_name: &'static str) -> impl Future<Output = Result<(), Error>> {
    std::future::ready(Ok(()))
}

/// A step of Postgres between two failpoints. In this build it is only the step.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub fn around<T>(
    _before: &'static str,
    step: impl Future<Output = Result<T, Error>>,
    _after: &'static str,
) -> impl Future<Output = Result<T, Error>> {
    step
}

/// A step that cannot fail. Does nothing, and compiles to nothing.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub fn hold(_name: &'static str) -> impl Future<Output = ()> {
    std::future::ready(())
}

/// A step on a thread of its own. Returns whether it goes on: always. Compiles to nothing.
#[cfg(not(feature = "faults"))]
#[inline(always)]
#[must_use]
pub const fn request(_name: &'static str) -> bool {
    true
}

/// There are no planted bugs in this build.
#[cfg(not(feature = "faults"))]
#[inline(always)]
#[must_use]
pub const fn is_planted(_bug: Bug) -> bool {
    false
}

/// The statement that moves positions: the right one.
#[cfg(not(feature = "faults"))]
#[inline(always)]
#[must_use]
pub const fn moving(right: &str) -> &str {
    right
}

/// The statement that stores letters: the right one.
#[cfg(not(feature = "faults"))]
#[inline(always)]
#[must_use]
pub const fn keeping(right: &str) -> &str {
    right
}

#[cfg(feature = "faults")]
mod armed {
    use std::future::Future;

    use service::faults::Faults;
    use tokio_postgres::{Config, Error};

    use super::Bug;

    static FAULTS: Faults = Faults::of("VIEW_BUILDER");

    /// Moves positions without any check. It has the parameters of the right statement.
    const UNGUARDED: &str = "
        update view_positions as held set next_offset = wanted.new_offset
        from unnest($1, $2, $3, $4, $5, $6, $7, $8)
            as wanted(topic, partition, epoch, old_offset, new_offset, read_offset, leader_epoch, newest_event_us)
        where held.topic = wanted.topic and held.partition = wanted.partition";

    /// Makes the trouble that `VIEW_BUILDER_FAILPOINT` asks for at this place, see [`Faults`].
    ///
    /// # Errors
    /// The action is `error`. Then the error is that of a lost connection.
    pub async fn point(name: &'static str) -> Result<(), Error> {
        FAULTS.point_async(name).await.map_err(|_| lost())
    }

    /// The step, with a [`point`] before it and one after it.
    ///
    /// # Errors
    /// The step's own, and those of the points.
    pub async fn around<T>(
        before: &'static str,
        step: impl Future<Output = Result<T, Error>>,
        after: &'static str,
    ) -> Result<T, Error> {
        point(before).await?;
        let done = step.await?;
        point(after).await?;
        Ok(done)
    }

    /// Does the same as [`point`] for a step that cannot fail: the action `error` changes nothing.
    pub async fn hold(name: &'static str) {
        let _ = FAULTS.point_async(name).await;
    }

    /// Does the same as [`point`] for a step on a thread of its own. Returns false if the action is `error`.
    #[must_use]
    pub fn request(name: &'static str) -> bool {
        FAULTS.point(name).is_ok()
    }

    /// Whether `VIEW_BUILDER_BUG` names this bug.
    #[must_use]
    pub fn is_planted(bug: Bug) -> bool {
        FAULTS.is_planted(&format!("{bug:?}"))
    }

    /// The statement that moves positions.
    #[must_use]
    pub fn moving(right: &str) -> &str {
        let unguarded = [Bug::NoFence, Bug::UnknownIsFailed, Bug::UnknownIsDone];
        if unguarded.into_iter().any(is_planted) {
            UNGUARDED
        } else {
            right
        }
    }

    /// Stores letters without a look at those that are there.
    const BLIND: &str = "
        insert into view_dead_letters (topic, partition, record_offset, key, value, headers, reason)
        select topic, partition, record_offset, key, value, headers::jsonb, reason
        from unnest($1, $2, $3, $4, $5, $6, $7, $8)
            as letter(topic, partition, record_offset, key, value, headers, record_time_us, reason)
        on conflict (topic, partition, record_offset) do nothing";

    /// The statement that stores letters.
    #[must_use]
    pub fn keeping(right: &str) -> &str {
        let blind = [Bug::ParkBlindly, Bug::KeepFormerLetters];
        if blind.into_iter().any(is_planted) {
            BLIND
        } else {
            right
        }
    }

    /// An error without SQLSTATE, like the client's error of a lost connection. tokio-postgres has no constructor for one.
    fn lost() -> Error {
        let text = "no connection string";
        text.parse::<Config>().expect_err("an error of the client")
    }
}
