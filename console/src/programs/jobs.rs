//! The commands that run now, and those that ran last.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::{CommandLine, Job, JobState};
use crate::settings::Settings;

/// Most jobs that are kept; the oldest that has ended goes first.
const JOBS_MAX: usize = 200;
/// Most jobs that run at once.
const RUNNING_MAX: usize = 8;

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
            let job = Job::new(known.last, title, command, person.to_owned(), back.to_owned());
            let job = Arc::new(job);
            known.jobs.insert(job.number, Arc::clone(&job));
            known.forget_old();
            job
        };
        let (settings, running) = (settings.clone(), Arc::clone(&job));
        tokio::spawn(async move { running.run_to_its_end(&settings).await });
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::programs::Program;

    fn job(number: u64) -> Job {
        let command = CommandLine::new(Program::ViewBuilder, &[]);
        Job::new(number, String::new(), command, String::new(), String::new())
    }

    #[test]
    fn the_same_command_does_not_run_twice_at_once() {
        let mut known = Known::default();
        let running = Arc::new(job(1));
        let (same, other) = (
            running.command.clone(),
            CommandLine::new(Program::ViewBuilder, &["status"]),
        );
        known.jobs.insert(1, Arc::clone(&running));
        assert_eq!(known.refusal(&same), Some(Refused::Same));
        assert_eq!(known.refusal(&other), None);
        for number in 2..=RUNNING_MAX as u64 {
            known.jobs.insert(number, Arc::new(job(1)));
        }
        assert_eq!(known.refusal(&other), Some(Refused::TooMany));
        for job in known.jobs.values() {
            job.end(Some(0));
        }
        assert_eq!(known.refusal(&same), None);
        known.is_ending = true;
        assert_eq!(known.refusal(&other), Some(Refused::Ending));
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
}
