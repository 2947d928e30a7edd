//! A command that runs in the background, and what it has printed so far.

use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Child;
use tokio::sync::watch;

use super::CommandLine;
use crate::settings::Settings;

/// Most bytes of a command's output that are kept; of a longer one the beginning goes.
const OUTPUT_BYTES_MAX: usize = 256 * 1024;
/// How long a command that was asked to stop may take; then it is killed.
const STOP_TIME_MAX: Duration = Duration::from_millis(1_500);

/// A command that runs or has run.
#[derive(Debug)]
pub struct Job {
    pub number: u64,
    /// What it is for, such as `Rebuild user_view`.
    pub title: String,
    pub command: CommandLine,
    /// Who wanted it.
    pub person: String,
    pub began_at: OffsetDateTime,
    /// The page to which its result belongs.
    pub back: String,
    output: Mutex<String>,
    state: watch::Sender<JobState>,
    /// Somebody wants it to stop.
    stop: watch::Sender<bool>,
}

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobState {
    Running,
    Ended {
        /// `None`: a signal has ended it, or it could not be started.
        exit_code: Option<i32>,
        at: OffsetDateTime,
    },
}

impl Job {
    /// A job that has not begun.
    pub(super) fn new(number: u64, title: String, command: CommandLine, person: String, back: String) -> Self {
        Self {
            number,
            title,
            command,
            person,
            began_at: OffsetDateTime::now_utc(),
            back,
            output: Mutex::default(),
            state: watch::Sender::new(JobState::Running),
            stop: watch::Sender::new(false),
        }
    }

    /// Runs it to its end.
    pub(super) async fn run_to_its_end(&self, settings: &Settings) {
        let exit_code = match self.run(settings).await {
            Ok(exit_code) => exit_code,
            Err(err) => {
                self.add(&format!("{err:#}\n"));
                None
            }
        };
        self.end(exit_code);
    }

    pub(super) fn end(&self, exit_code: Option<i32>) {
        self.state.send_replace(JobState::Ended {
            exit_code,
            at: OffsetDateTime::now_utc(),
        });
    }

    #[must_use]
    pub fn state(&self) -> JobState {
        *self.state.borrow()
    }

    /// What it has printed so far: its answer, and what it told meanwhile.
    #[must_use]
    pub fn output(&self) -> String {
        self.output.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until it has ended, for `patience` at most.
    pub async fn wait(&self, patience: Option<Duration>) -> JobState {
        let mut state = self.state.subscribe();
        let ended = state.wait_for(|state| *state != JobState::Running);
        match patience {
            Some(patience) => _ = tokio::time::timeout(patience, ended).await,
            None => _ = ended.await,
        }
        self.state()
    }

    /// Asks the command to stop, if it still runs. The reason is added to its output. Nothing happens the second time.
    pub fn stop(&self, reason: &str) {
        if self.state() == JobState::Running && !self.stop.send_replace(true) {
            self.add(&format!("\n{reason}: the command is asked to stop (SIGTERM)\n"));
        }
    }

    async fn run(&self, settings: &Settings) -> anyhow::Result<Option<i32>> {
        let mut child = self.command.start(settings, Stdio::null())?;
        let (printed, told) = (child.stdout.take(), child.stderr.take());
        let (status, (), ()) = tokio::join!(self.wait_for(&mut child), self.collect(printed), self.collect(told));
        Ok(status?.code())
    }

    /// Waits until the program has ended. Where somebody wants it to stop, it gets SIGTERM, and is killed if that does not help.
    async fn wait_for(&self, child: &mut Child) -> std::io::Result<std::process::ExitStatus> {
        let mut stop = self.stop.subscribe();
        tokio::select! {
            status = child.wait() => return status,
            _ = stop.wait_for(|wanted| *wanted) => {}
        }
        // Nobody has waited for it to the end, so the number is still its own.
        let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(pid) = pid
            && let Err(err) = kill_process(pid, Signal::TERM)
        {
            tracing::warn!(error = %err, "a command cannot be asked to stop");
        }
        match tokio::time::timeout(STOP_TIME_MAX, child.wait()).await {
            Ok(status) => status,
            Err(_) => {
                child.start_kill()?;
                child.wait().await
            }
        }
    }

    async fn collect(&self, stream: Option<impl AsyncRead + Unpin>) {
        let Some(mut stream) = stream else { return };
        let mut bytes = Vec::with_capacity(4096);
        // The end of a text, or what is no text: there is nothing more to keep.
        while stream.read_buf(&mut bytes).await.is_ok_and(|read| read > 0) {
            // A character may be cut by the end of what was read.
            let whole = bytes.utf8_chunks().next().map_or(0, |chunk| chunk.valid().len());
            let take = if whole == 0 { bytes.len().min(4) } else { whole };
            let taken: Vec<u8> = bytes.drain(..take).collect();
            self.add(&String::from_utf8_lossy(&taken));
        }
        self.add(&String::from_utf8_lossy(&bytes));
    }

    fn add(&self, text: &str) {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        // A progress bar draws its line again and again. The last state of the line is enough.
        for part in text.split_inclusive(['\r', '\n']) {
            output.push_str(part);
            if part.ends_with('\r') {
                let line = output.trim_end_matches('\r').rfind('\n').map_or(0, |end| end + 1);
                output.truncate(line);
            }
        }
        if output.len() > OUTPUT_BYTES_MAX {
            let from = output.len() - OUTPUT_BYTES_MAX;
            let from = (from..output.len())
                .find(|at| output.is_char_boundary(*at))
                .unwrap_or(from);
            output.drain(..from);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;
    use crate::programs::Program;

    fn job() -> Job {
        let command = CommandLine::new(Program::ViewBuilder, &[]);
        Job::new(1, String::new(), command, String::new(), String::new())
    }

    #[test]
    fn of_a_line_that_is_drawn_again_only_the_last_state_is_kept() {
        let job = job();
        job.add("begin\n10 %\r20 %\r");
        job.add("30 %\rdone\n");
        assert_eq!(job.output(), "begin\ndone\n");
    }

    #[test]
    fn a_long_output_loses_its_beginning() {
        let job = job();
        for line in 0..40_000 {
            job.add(&format!("line {line}ü\n"));
        }
        let output = job.output();
        assert!(output.len() <= OUTPUT_BYTES_MAX);
        assert!(output.ends_with("line 39999ü\n"));
    }

    #[tokio::test]
    async fn a_program_that_is_to_stop_gets_sigterm_and_one_that_does_not_obey_is_killed() {
        for script in ["echo ready; exec sleep 60", "trap '' TERM; echo ready; exec sleep 60"] {
            let job = job();
            let mut child = tokio::process::Command::new("sh")
                .args(["-c", script])
                .stdout(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
                .unwrap();
            let mut ready = [0; 6];
            child.stdout.take().unwrap().read_exact(&mut ready).await.unwrap();
            job.stop("a test");
            let status = tokio::time::timeout(Duration::from_secs(20), job.wait_for(&mut child)).await;
            assert_eq!(status.unwrap().unwrap().code(), None, "{script}");
            assert!(job.output().contains("a test: the command is asked to stop"));
        }
    }

    #[tokio::test]
    async fn a_character_that_is_cut_is_put_together() {
        let job = job();
        let text = "é".repeat(5_000);
        let (mut near, far) = tokio::io::duplex(7);
        let write = async {
            near.write_all(text.as_bytes()).await.unwrap();
            drop(near);
        };
        tokio::join!(write, job.collect(Some(far)));
        assert_eq!(job.output(), text);
    }
}
