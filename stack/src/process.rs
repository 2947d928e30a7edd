//! One child process, in a process group of its own. Its output goes into a file.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::warden;

/// How often to ask whether a process has ended. This uses the standard library's child. Tokio's child belongs to the runtime that spawned it, and a
/// part that several tests share outlives the runtime of each.
const POLL: Duration = Duration::from_millis(10);
/// A dropped process has so long to end before it gets SIGKILL.
const DROP_DEADLINE: Duration = Duration::from_secs(6);

/// A child process, running or ended. Dropping it ends the child. The child also ends when this process dies.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Mutex<Child>,
    pid: Pid,
    log: PathBuf,
    ending: Ending,
}

/// The signal that ends a process when it is dropped, or when this process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// SIGKILL: for a program that recovers by itself.
    Kill,
    /// SIGQUIT, PostgreSQL's immediate shutdown. SIGKILL would leave its backends behind for a while.
    Quit,
}

impl Process {
    /// Starts `command` in a process group of its own. So a Ctrl-C on the terminal reaches only us, and we end the parts in their order. Standard
    /// output and standard error are appended to `log`.
    ///
    /// # Errors
    /// The log cannot be opened or the program cannot be run.
    pub fn spawn(name: impl Into<String>, command: &mut Command, log: &Path, ending: Ending) -> anyhow::Result<Self> {
        let output = append(log)?;
        command.stdout(
            output
                .try_clone()
                .with_context(|| format!("cannot open {} twice", log.display()))?,
        );
        Self::spawn_with_stdout(name, command.stderr(output), log, ending)
    }

    /// As [`Process::spawn`], but the caller has set standard output and standard error. `log` is the file that [`Process::log_tail`] reads.
    ///
    /// # Errors
    /// The program cannot be run.
    pub fn spawn_with_stdout(
        name: impl Into<String>,
        command: &mut Command,
        log: &Path,
        ending: Ending,
    ) -> anyhow::Result<Self> {
        let name = name.into();
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot run {} as {name}", command.get_program().to_string_lossy()))?;
        warden::end_group_with_us(child.id(), ending.signal_name());
        Ok(Self {
            name,
            pid: Pid::from_child(&child),
            child: Mutex::new(child),
            log: log.to_owned(),
            ending,
        })
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The id of the process, which is also the id of its group.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// The file that the output goes into.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// How the process ended. None: it still runs.
    #[must_use]
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.reap(&mut self.child())
    }

    #[must_use]
    pub fn is_running(&self) -> bool {
        self.exit_status().is_none()
    }

    /// Sends `signal` to the whole group, unless the process has ended.
    pub fn signal(&self, signal: Signal) {
        let mut child = self.child();
        // Nobody reaps the child while we hold the lock. So the id cannot belong to another process yet.
        if self.reap(&mut child).is_none()
            && let Err(err) = kill_process_group(self.pid, signal)
        {
            tracing::debug!(process = %self.name, error = %err, "cannot signal");
        }
    }

    /// Waits until the process ends. This is cancel-safe.
    pub async fn exited(&self) -> ExitStatus {
        loop {
            if let Some(status) = self.exit_status() {
                return status;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Sends SIGKILL, and waits until the process ends.
    pub async fn kill_hard(&self) -> ExitStatus {
        self.signal(Signal::KILL);
        self.exited().await
    }

    /// Sends `signal`, and waits until the process ends.
    ///
    /// # Errors
    /// The process still ran after `deadline`. It has been killed then.
    pub async fn stop(&self, signal: Signal, deadline: Duration) -> anyhow::Result<ExitStatus> {
        self.signal(signal);
        if let Ok(status) = tokio::time::timeout(deadline, self.exited()).await {
            return Ok(status);
        }
        self.kill_hard().await;
        bail!(
            "{} was still running {} s after it was told to end, and was killed",
            self.name,
            deadline.as_secs()
        )
    }

    /// The last `lines` lines of the output.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.log, lines).unwrap_or_else(|err| format!("(no log: {err})"))
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reap(&self, child: &mut Child) -> Option<ExitStatus> {
        let status = child.try_wait().ok().flatten();
        if status.is_some() {
            warden::forget_group(self.id());
        }
        status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.is_running() {
            return;
        }
        self.signal(self.ending.signal());
        let deadline = Instant::now() + DROP_DEADLINE;
        while self.is_running() {
            if Instant::now() > deadline {
                self.signal(Signal::KILL);
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Ending {
    fn signal(self) -> Signal {
        match self {
            Self::Kill => Signal::KILL,
            Self::Quit => Signal::QUIT,
        }
    }

    fn signal_name(self) -> &'static str {
        match self {
            Self::Kill => "KILL",
            Self::Quit => "QUIT",
        }
    }
}

/// Opens a file for appending. Makes the file if there is none.
///
/// # Errors
/// The file cannot be opened.
pub fn append(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))
}

fn tail(path: &Path, lines: usize) -> std::io::Result<String> {
    const WINDOW_BYTES: u64 = 64 * 1024;
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(WINDOW_BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    Ok(all[all.len().saturating_sub(lines)..].join("\n"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use rustix::process::Signal;

    use super::{Ending, Process};
    use crate::scratch::Scratch;

    fn shell(script: &str, directory: &Scratch) -> Process {
        Process::spawn(
            "shell",
            Command::new("/bin/sh").args(["-c", script]),
            &directory.path().join("log"),
            Ending::Kill,
        )
        .expect("a shell")
    }

    #[tokio::test]
    async fn an_ended_process_tells_its_code_and_its_last_lines() {
        let directory = Scratch::temporary("process-").expect("a directory");
        let process = shell("echo one; echo two; echo three >&2; exit 7", &directory);
        assert_eq!(process.exited().await.code(), Some(7));
        assert_eq!(process.log_tail(2), "two\nthree");
    }

    #[tokio::test]
    async fn a_process_that_will_not_stop_is_killed_at_the_deadline() {
        let directory = Scratch::temporary("process-").expect("a directory");
        let process = shell("trap '' TERM; echo up; while :; do sleep 0.05; done", &directory);
        while process.log_tail(1) != "up" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let stopped = process.stop(Signal::TERM, Duration::from_millis(100)).await;
        assert!(stopped.is_err());
        assert!(!process.is_running());
    }

    #[test]
    fn a_dropped_process_is_gone() {
        let directory = Scratch::temporary("process-").expect("a directory");
        let process = shell("sleep 1000", &directory);
        let id = process.id();
        drop(process);
        assert!(!std::path::Path::new(&format!("/proc/{id}")).exists());
    }
}
