//! Places where a test can make trouble, and bugs that it can plant; in a build without the feature `faults` there are neither.
//!
//! The crash tests have the relay die, fail or dawdle at each [`point`] of its protocol, and count every row afterwards. A test that
//! never fails proves nothing, so the same tests are run against relays with a [`Bug`], each of which they have to find.

use crate::stop::RelayError;

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
    use std::path::PathBuf;
    use std::sync::{Mutex, OnceLock, PoisonError};
    use std::time::Duration;

    use rustix::process::{Signal, getpid, kill_process};

    use super::{Bug, RelayError};

    /// Exit code of a relay that a failpoint ended.
    const EXIT_CODE: i32 = 77;

    #[derive(Clone, Copy)]
    enum Action {
        Exit,
        /// SIGKILL, after a while in which the other threads go on.
        Kill(Duration),
        /// Holds up the thread that came by.
        Delay(Duration),
        Error,
    }

    /// What `OUTBOX_RELAY_FAILPOINT` says: `NAME=ACTION@HIT`, with the actions `exit`, `kill`, `kill:MS`, `delay:MS` and `error`. Hits are counted
    /// over all starts in the file that `OUTBOX_RELAY_FAILPOINT_HITS` names, and the action happens once.
    struct Failpoint {
        name: String,
        action: Action,
        hit: u64,
        hits_file: PathBuf,
        hits: Mutex<u64>,
    }

    impl Failpoint {
        fn from_environment() -> Option<Self> {
            let text = std::env::var("OUTBOX_RELAY_FAILPOINT").ok()?;
            let hits_file =
                PathBuf::from(std::env::var_os("OUTBOX_RELAY_FAILPOINT_HITS").expect("a file for the hits"));
            let (name, rest) = text.split_once('=').expect("NAME=ACTION@HIT");
            let (action, hit) = rest.split_once('@').expect("NAME=ACTION@HIT");
            let (action, ms) = action.split_once(':').unwrap_or((action, "0"));
            let wait = Duration::from_millis(ms.parse().expect("milliseconds"));
            let action = match action {
                "exit" => Action::Exit,
                "kill" => Action::Kill(wait),
                "delay" => Action::Delay(wait),
                "error" => Action::Error,
                other => panic!("no action is called {other}"),
            };
            let before = std::fs::read_to_string(&hits_file).unwrap_or_default();
            Some(Self {
                name: name.to_owned(),
                action,
                hit: hit.parse().expect("a number"),
                hits: Mutex::new(before.lines().count() as u64),
                hits_file,
            })
        }

        fn is_hit(&self) -> bool {
            let mut hits = self.hits.lock().unwrap_or_else(PoisonError::into_inner);
            if *hits >= self.hit {
                return false;
            }
            *hits += 1;
            std::fs::write(
                &self.hits_file,
                "hit\n".repeat(usize::try_from(*hits).unwrap_or_default()),
            )
            .expect("a writable file for the hits");
            *hits == self.hit
        }
    }

    /// Makes the trouble that is asked for here.
    ///
    /// # Errors
    /// The action is `error`.
    pub fn point(name: &'static str) -> Result<(), RelayError> {
        static FAILPOINT: OnceLock<Option<Failpoint>> = OnceLock::new();
        let Some(failpoint) = FAILPOINT.get_or_init(Failpoint::from_environment) else {
            return Ok(());
        };
        if failpoint.name != name || !failpoint.is_hit() {
            return Ok(());
        }
        tracing::warn!(failpoint = name, "the failpoint acts");
        match failpoint.action {
            Action::Exit => std::process::exit(EXIT_CODE),
            Action::Kill(wait) => {
                std::thread::sleep(wait);
                kill_process(getpid(), Signal::KILL).expect("a signal to ourselves");
                Ok(())
            }
            Action::Delay(wait) => {
                std::thread::sleep(wait);
                Ok(())
            }
            Action::Error => Err(anyhow::anyhow!("failpoint {name}").into()),
        }
    }

    /// Whether `OUTBOX_RELAY_BUG` names this bug.
    #[must_use]
    pub fn is_planted(bug: Bug) -> bool {
        static PLANTED: OnceLock<Option<String>> = OnceLock::new();
        let planted = PLANTED.get_or_init(|| std::env::var("OUTBOX_RELAY_BUG").ok());
        planted.as_deref() == Some(format!("{bug:?}").as_str())
    }
}
