//! Places where a test can make trouble, and bugs that it can plant; in a build without the feature `faults` there are neither.
//!
//! The crash tests have the builder die, fail, freeze or dawdle at each of these places and compare every view afterwards. A test that never
//! fails proves nothing, so the same tests are run against builders with a [`Bug`], each of which they have to find.

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
    /// Takes an unknown COMMIT for failed. The right statement would refuse the second attempt, since the position is no longer where the
    /// batch begins: this builder moves it as with `NoFence`.
    UnknownIsFailed,
    /// Takes an unknown COMMIT for done. The right statement would refuse the next batch, since the position is not yet where that one
    /// begins: this builder moves it as with `NoFence`.
    UnknownIsDone,
    /// Fills a generation up to the positions, also where they were set back.
    FillToPosition,
    /// Takes a partition for read wherever a broker says that it ends.
    BelieveAnyEnd,
    /// Takes only what is refused by reason of its data for a refusal in a fill, and anything else for a lost connection.
    RefusedByDataAlone,
    /// Forgets that events which are gone were accepted when a rebuild goes on.
    ForgetAcceptance,
    /// Takes every topic for one that nothing was compacted in.
    IgnoreCompaction,
    /// Takes the group's offset for what is applied.
    TrustGroupOffset,
    /// Leaves every event with a dead letter out of a generation, also where the views had applied it before.
    LetterIsNeverApplied,
    /// Looks once whether a compacted topic lacks what keys with dead letters need, and not at the letters that come later.
    NoLetterComesLater,
    /// Reads all dead letters anew at each look of a rebuild.
    ReadAllLettersEachTime,
    /// Parks an event behind what it takes to be a dead letter of its key, without a look whether there is one.
    ParkBlindly,
    /// Takes a topic for the one of before by its name alone.
    KnowTopicsByName,
    /// Lets the dead letters of a topic that was replaced hold up the events of the new one.
    KeepFormerLetters,
    /// Ends for one partition without continuity, instead of pausing that one alone.
    EndAllForOne,
    /// Takes one answer for where a topic ends, although the broker that gives it may lag behind.
    BelieveOneLaggingEnd,
    /// Goes on at the position where an end that was below it has grown again.
    ForgetPausedEnd,
    /// Does not look whether a log has other records at the offsets that were read.
    TrustOffsetsAlone,
    /// Takes a partition for there that the topic does not have any more.
    KeepGonePartitions,
    /// Begins no partition of an assignment before Kafka tells of all of them.
    WaitForAllLeaders,
    /// Waits for ever where Postgres refuses with a state that is in no list.
    UnknownStatesBlock,
    /// Ends a pause without setting positions back.
    ResumeWithoutReplay,
    /// Takes the highest positions for those that a paused view has.
    PauseAtTheHighest,
    /// Runs the SQL of every view at each start.
    InstallEverything,
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

/// A step of Postgres between two places where a test can make trouble: here it is the step alone.
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

/// A step on a thread of its own; whether it goes on. Does nothing, and compiles to nothing.
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

/// The statement that puts letters down: the right one.
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

    /// A move that looks at nothing, with the parameters of the right one.
    const UNGUARDED: &str = "
        update view_positions as held set next_offset = wanted.new_offset
        from unnest($1, $2, $3, $4, $5, $6, $7)
            as wanted(topic, partition, epoch, old_offset, new_offset, read_offset, leader_epoch)
        where held.topic = wanted.topic and held.partition = wanted.partition";

    /// Makes the trouble that `VIEW_BUILDER_FAILPOINT` asks for here; see [`Faults`].
    ///
    /// # Errors
    /// The action is `error`: as a lost connection fails.
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

    /// As [`point`], where nothing can fail: `error` changes nothing.
    pub async fn hold(name: &'static str) {
        let _ = FAULTS.point_async(name).await;
    }

    /// As [`point`], on a thread of its own; false where the action is `error`.
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

    /// Puts letters down without a look at those that are there.
    const BLIND: &str = "
        insert into view_dead_letters (topic, partition, record_offset, key, value, headers, reason)
        select topic, partition, record_offset, key, value, headers::jsonb, reason
        from unnest($1, $2, $3, $4, $5, $6, $7, $8)
            as letter(topic, partition, record_offset, key, value, headers, record_time_us, reason)
        on conflict (topic, partition, record_offset) do nothing";

    /// The statement that puts letters down.
    #[must_use]
    pub fn keeping(right: &str) -> &str {
        let blind = [Bug::ParkBlindly, Bug::KeepFormerLetters];
        if blind.into_iter().any(is_planted) {
            BLIND
        } else {
            right
        }
    }

    /// An error without SQLSTATE, as the client makes one of a lost connection; it has no constructor.
    fn lost() -> Error {
        let text = "no connection string";
        text.parse::<Config>().expect_err("an error of the client")
    }
}
