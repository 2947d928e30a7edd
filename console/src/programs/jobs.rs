//! Commands that run in the background, and what they have printed so far.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Child;
use tokio::sync::watch;

use super::CommandLine;
use crate::settings::Settings;

/// Most bytes of a command's output that are kept; of a longer one the beginning goes.
const OUTPUT_BYTES_MAX: usize = 256 * 1024;
/// Most jobs that are kept; the oldest that has ended goes first.
const JOBS_MAX: usize = 200;
/// Most jobs that run at once.
const RUNNING_MAX: usize = 8;
/// How long a command that was asked to stop may take; then it is killed.
const STOP_TIME_MAX: Duration = Duration::from_millis(1_500);

/// The commands that run now, and those that ran last, by their numbers.
#[derive(Debug, Default)]
pub struct Jobs {
    known: Mutex<Known>,
    /// Changes whose end is not in the audit yet.
    unwritten: watch::Sender<usize>,
}

/// A change whose end is not in the audit yet. Dropped once it is, or cannot be.
#[derive(Debug)]
pub struct Unwritten(watch::Sender<usize>);

/// Why a command is not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The same command runs already.
    Same,
    TooMany,
    /// The console is about to end.
    Ending,
}

#[derive(Debug, Default)]
struct Known {
    last: u64,
    is_ending: bool,
    jobs: BTreeMap<u64, Arc<Job>>,
}

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

impl Jobs {
    /// Runs the command in the background.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn begin(
        &self,
        settings: &Settings,
        title: String,
        command: CommandLine,
        person: &str,
        back: &str,
    ) -> Result<Arc<Job>, Refused> {
        let job = {
            let mut known = self.lock();
            if let Some(refused) = known.refusal(&command) {
                return Err(refused);
            }
            known.last += 1;
            let job = Arc::new(Job {
                number: known.last,
                title,
                command,
                person: person.to_owned(),
                began_at: OffsetDateTime::now_utc(),
                back: back.to_owned(),
                output: Mutex::default(),
                state: watch::Sender::new(JobState::Running),
                stop: watch::Sender::new(false),
            });
            known.jobs.insert(job.number, Arc::clone(&job));
            known.forget_old();
            job
        };
        let (settings, running) = (settings.clone(), Arc::clone(&job));
        tokio::spawn(async move {
            let exit_code = match running.run(&settings).await {
                Ok(exit_code) => exit_code,
                Err(err) => {
                    running.add(&format!("{err:#}\n"));
                    None
                }
            };
            running.state.send_replace(JobState::Ended {
                exit_code,
                at: OffsetDateTime::now_utc(),
            });
        });
        Ok(job)
    }

    /// The end of a change is to be written into the audit, once its command has ended. [`Self::end_all`] waits for that.
    #[must_use]
    pub fn note_unwritten(&self) -> Unwritten {
        self.unwritten.send_modify(|count| *count += 1);
        Unwritten(self.unwritten.clone())
    }

    /// Begins no further command, stops those that run, and waits until the ends of all are in the audit, for `patience` at most.
    pub async fn end_all(&self, patience: Duration) {
        let running: Vec<Arc<Job>> = {
            let mut known = self.lock();
            known.is_ending = true;
            known.running().cloned().collect()
        };
        for job in running {
            job.stop("the console ends");
        }
        let mut unwritten = self.unwritten.subscribe();
        let is_over = tokio::time::timeout(patience, unwritten.wait_for(|count| *count == 0)).await;
        if is_over.is_err() {
            tracing::warn!("the console ends before the ends of all changes are in the audit");
        }
    }

    #[must_use]
    pub fn find(&self, number: u64) -> Option<Arc<Job>> {
        self.lock().jobs.get(&number).cloned()
    }

    /// The jobs that belong to a page, the newest first.
    #[must_use]
    pub fn of_page(&self, back: &str) -> Vec<Arc<Job>> {
        let known = self.lock();
        let jobs = known.jobs.values().rev().filter(|job| job.back == back);
        jobs.cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Unwritten {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count = count.saturating_sub(1));
    }
}

impl Known {
    fn running(&self) -> impl Iterator<Item = &Arc<Job>> {
        self.jobs.values().filter(|job| job.state() == JobState::Running)
    }

    /// Why this command is not begun now.
    fn refusal(&self, command: &CommandLine) -> Option<Refused> {
        if self.is_ending {
            Some(Refused::Ending)
        } else if self.running().any(|job| job.command == *command) {
            Some(Refused::Same)
        } else if self.running().count() >= RUNNING_MAX {
            Some(Refused::TooMany)
        } else {
            None
        }
    }

    fn forget_old(&mut self) {
        while self.jobs.len() > JOBS_MAX {
            let oldest = self.jobs.values().find(|job| job.state() != JobState::Running);
            let Some(number) = oldest.map(|job| job.number) else {
                return;
            };
            self.jobs.remove(&number);
        }
    }
}

impl Job {
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

/// What a command has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// `None`: a signal has ended it.
    pub exit_code: Option<i32>,
    pub printed: String,
    /// What it told on standard error.
    pub told: String,
}

impl CommandLine {
    /// Runs it to its end, and gives it `input`. For commands that change nothing and need little time.
    ///
    /// # Errors
    /// It cannot be started, or has not ended in time; then it is ended.
    pub async fn ask(&self, settings: &Settings, input: &str, time_max: Duration) -> anyhow::Result<Answer> {
        let mut child = self.start(settings, Stdio::piped())?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that does not want to read it closes its end.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        let output = tokio::time::timeout(time_max, child.wait_with_output())
            .await
            .map_err(|_| anyhow::anyhow!("no answer within {} s", time_max.as_secs()))??;
        Ok(Answer {
            exit_code: output.status.code(),
            printed: String::from_utf8_lossy(&output.stdout).into_owned(),
            told: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::programs::Program;

    fn job() -> Job {
        Job {
            number: 1,
            title: String::new(),
            command: CommandLine::new(Program::ViewBuilder, &[]),
            person: String::new(),
            began_at: OffsetDateTime::now_utc(),
            back: String::new(),
            output: Mutex::default(),
            state: watch::Sender::new(JobState::Running),
            stop: watch::Sender::new(false),
        }
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

    #[test]
    fn the_same_command_does_not_run_twice_at_once() {
        let mut known = Known::default();
        let running = Arc::new(job());
        let (same, other) = (
            running.command.clone(),
            CommandLine::new(Program::ViewBuilder, &["status"]),
        );
        known.jobs.insert(1, Arc::clone(&running));
        assert_eq!(known.refusal(&same), Some(Refused::Same));
        assert_eq!(known.refusal(&other), None);
        for number in 2..=RUNNING_MAX as u64 {
            known.jobs.insert(number, Arc::new(job()));
        }
        assert_eq!(known.refusal(&other), Some(Refused::TooMany));
        for job in known.jobs.values() {
            job.state.send_replace(JobState::Ended {
                exit_code: Some(0),
                at: OffsetDateTime::now_utc(),
            });
        }
        assert_eq!(known.refusal(&same), None);
        known.is_ending = true;
        assert_eq!(known.refusal(&other), Some(Refused::Ending));
    }

    #[tokio::test]
    async fn a_program_that_is_to_stop_gets_sigterm_and_one_that_does_not_obey_is_killed() {
        for script in ["exec sleep 60", "trap '' TERM; echo ready; exec sleep 60"] {
            let job = job();
            let mut child = tokio::process::Command::new("sh")
                .args(["-c", script])
                .kill_on_drop(true)
                .spawn()
                .unwrap();
            job.stop("a test");
            let status = tokio::time::timeout(Duration::from_secs(20), job.wait_for(&mut child)).await;
            assert_eq!(status.unwrap().unwrap().code(), None, "{script}");
            assert!(job.output().contains("a test: the command is asked to stop"));
        }
    }

    #[tokio::test]
    async fn the_end_waits_for_what_is_not_in_the_audit() {
        let jobs = Jobs::default();
        let unwritten = jobs.note_unwritten();
        let ended = tokio::time::timeout(Duration::from_millis(20), jobs.end_all(Duration::from_secs(60))).await;
        assert!(ended.is_err());
        drop(unwritten);
        jobs.end_all(Duration::from_secs(60)).await;
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
