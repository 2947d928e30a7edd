//! Places where a test can make trouble, and bugs that it can plant. Only builds with the feature `faults` have this module.
//!
//! A program keeps one [`Faults`] and calls [`Faults::point`] or [`Faults::point_async`] at each step of its protocol. Environment
//! variables say which step has which trouble, so a test chooses it without a new build.

use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};

/// Exit code of a program that a failpoint ended.
pub const EXIT_CODE: i32 = 77;
/// Time that SIGSTOP may take to reach all threads of the process.
const SIGSTOP_MAX: Duration = Duration::from_millis(50);
/// How often `until:PATH` looks whether the file is there.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// A step failed because a test asked for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed(pub &'static str);

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "failpoint {}", self.0)
    }
}

impl std::error::Error for Failed {}

/// The faults of one program. With the prefix `P`:
/// - `P_FAILPOINT` is `NAME=ACTION@HIT`, with the actions `exit`, `kill`, `kill:MS`, `delay:MS`, `until:PATH`, `freeze`, `panic` and `error`;
/// - `P_FAILPOINT_HITS` is a file in which the hits are counted, over all starts; the action happens once, at hit `HIT`, from 1;
/// - `P_BUG` names the planted bug.
#[derive(Debug)]
pub struct Faults {
    prefix: &'static str,
    failpoint: OnceLock<Option<Failpoint>>,
    bug: OnceLock<Option<String>>,
}

#[derive(Clone, Debug)]
enum Action {
    Exit,
    /// SIGKILL, after a while in which everything else goes on.
    Kill(Duration),
    /// Makes the thread or the task at the failpoint wait.
    Delay(Duration),
    /// Like `Delay`, but waits until this file exists.
    Until(PathBuf),
    /// SIGSTOP: the whole process stands still until somebody sends SIGCONT.
    Freeze,
    Panic,
    Error,
}

#[derive(Debug)]
struct Failpoint {
    name: String,
    action: Action,
    hit: u64,
    hits_file: PathBuf,
    hits: Mutex<u64>,
}

impl Faults {
    #[must_use]
    pub const fn of(prefix: &'static str) -> Self {
        Self {
            prefix,
            failpoint: OnceLock::new(),
            bug: OnceLock::new(),
        }
    }

    /// Makes the trouble that is asked for at this failpoint. A wait blocks the thread.
    ///
    /// # Errors
    /// The action is `error`.
    pub fn point(&self, name: &'static str) -> Result<(), Failed> {
        let Some(action) = self.action_at_hit_of(name) else {
            return Ok(());
        };
        match &action {
            Action::Kill(wait) | Action::Delay(wait) => std::thread::sleep(*wait),
            Action::Until(file) => {
                while !file.exists() {
                    std::thread::sleep(LOOK_INTERVAL);
                }
            }
            _ => {}
        }
        act(action, name)
    }

    /// As [`Faults::point`], for a task: while the task waits, its thread runs other tasks.
    ///
    /// # Errors
    /// The action is `error`.
    pub async fn point_async(&self, name: &'static str) -> Result<(), Failed> {
        let Some(action) = self.action_at_hit_of(name) else {
            return Ok(());
        };
        match &action {
            Action::Kill(wait) | Action::Delay(wait) if !wait.is_zero() => tokio::time::sleep(*wait).await,
            Action::Until(file) => {
                while !file.exists() {
                    tokio::time::sleep(LOOK_INTERVAL).await;
                }
            }
            _ => {}
        }
        act(action, name)
    }

    /// Whether this bug is planted. The variable may name several bugs, with commas between.
    #[must_use]
    pub fn is_planted(&self, bug: &str) -> bool {
        let planted = self.bug.get_or_init(|| self.variable("BUG"));
        planted
            .as_deref()
            .is_some_and(|planted| planted.split(',').any(|name| name == bug))
    }

    fn variable(&self, name: &str) -> Option<String> {
        std::env::var(format!("{}_{name}", self.prefix)).ok()
    }

    /// Counts a hit of this failpoint. Returns the action if it has to happen at this hit.
    fn action_at_hit_of(&self, name: &str) -> Option<Action> {
        let failpoint = self.failpoint.get_or_init(|| {
            let text = self.variable("FAILPOINT")?;
            let hits_file = self.variable("FAILPOINT_HITS").expect("a file for the hits");
            Some(Failpoint::parse(&text, hits_file.into()))
        });
        let failpoint = failpoint.as_ref()?;
        if failpoint.name != name || !failpoint.count_hit() {
            return None;
        }
        tracing::warn!(failpoint = name, "the failpoint acts");
        Some(failpoint.action.clone())
    }
}

impl Failpoint {
    fn parse(text: &str, hits_file: PathBuf) -> Self {
        let (name, rest) = text.split_once('=').expect("NAME=ACTION@HIT");
        let (action, hit) = rest.split_once('@').expect("NAME=ACTION@HIT");
        let (action, argument) = action.split_once(':').unwrap_or((action, "0"));
        let wait = || Duration::from_millis(argument.parse().expect("milliseconds"));
        let action = match action {
            "exit" => Action::Exit,
            "kill" => Action::Kill(wait()),
            "delay" => Action::Delay(wait()),
            "until" => Action::Until(argument.into()),
            "freeze" => Action::Freeze,
            "panic" => Action::Panic,
            "error" => Action::Error,
            other => panic!("no action is called {other}"),
        };
        // Before the first hit there is no file.
        let before = std::fs::read_to_string(&hits_file).unwrap_or_default();
        Self {
            name: name.to_owned(),
            action,
            hit: hit.parse().expect("a number"),
            hits: Mutex::new(before.lines().count() as u64),
            hits_file,
        }
    }

    /// Counts a hit. Returns whether the action has to happen at it.
    fn count_hit(&self) -> bool {
        let mut hits = self.hits.lock().unwrap_or_else(PoisonError::into_inner);
        if *hits >= self.hit {
            return false;
        }
        *hits += 1;
        let lines = "hit\n".repeat(*hits as usize);
        std::fs::write(&self.hits_file, lines).expect("a writable file for the hits");
        *hits == self.hit
    }
}

/// Does the part of an action that comes after its wait.
fn act(action: Action, name: &'static str) -> Result<(), Failed> {
    match action {
        Action::Exit => std::process::exit(EXIT_CODE),
        Action::Kill(_) => kill_process(getpid(), Signal::KILL).expect("a signal to ourselves"),
        Action::Freeze => {
            kill_process(getpid(), Signal::STOP).expect("a signal to ourselves");
            // Another thread may take the signal, and this one would go on until that has happened.
            std::thread::sleep(SIGSTOP_MAX);
        }
        Action::Delay(_) | Action::Until(_) => {}
        Action::Panic => panic!("failpoint {name}"),
        Action::Error => return Err(Failed(name)),
    }
    Ok(())
}
