//! The relays of a storm. They are started again after each end, as an init system would do.

use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use stack::Program;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::operators;
use crate::rig::Rig;

const POLL: Duration = Duration::from_millis(10);

/// One relay, or two, of which one waits as a standby.
#[derive(Debug)]
pub(super) struct Relays {
    rig: Rig,
    standby: Option<Program>,
    restarts: AtomicU64,
    /// Whether an operator has stopped them. Then they are not started again.
    held: AtomicBool,
}

/// The tasks that start the relays again.
#[derive(Debug)]
pub(super) struct Supervisors {
    tasks: Vec<JoinHandle<()>>,
    /// The relays that did not end by a kill or by a passing error.
    pub(super) stops: mpsc::UnboundedReceiver<String>,
}

impl Relays {
    pub(super) fn new(rig: Rig, with_standby: bool) -> Self {
        let standby = with_standby.then(|| rig.another_relay("standby"));
        Self {
            rig,
            standby,
            restarts: AtomicU64::new(0),
            held: AtomicBool::new(false),
        }
    }

    pub(super) fn rig(&self) -> &Rig {
        &self.rig
    }

    pub(super) fn start_standby(&self) -> anyhow::Result<()> {
        self.standby.as_ref().map_or(Ok(()), Program::start)
    }

    pub(super) fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::Relaxed)
    }

    fn all(&self) -> Vec<&Program> {
        std::iter::once(&self.rig.relay).chain(&self.standby).collect()
    }

    /// Sends SIGKILL to one relay, as soon as it runs.
    pub(super) async fn kill(&self, victim: usize) {
        let all = self.all();
        let program = all[victim % all.len()];
        let process = loop {
            match program.process() {
                Some(process) if process.is_running() => break process,
                _ => tokio::time::sleep(POLL).await,
            }
        };
        process.signal(Signal::KILL);
    }

    /// Stops the relays by SIGTERM.
    ///
    /// # Errors
    /// One does not end in order.
    pub(super) async fn stop(&self) -> anyhow::Result<()> {
        for program in self.all() {
            program.stop().await?;
        }
        Ok(())
    }

    /// Stops the relays by SIGTERM, and keeps them from being started again.
    pub(super) async fn hold(&self) {
        self.held.store(true, Ordering::SeqCst);
        // A relay may just have been started, so this is done twice.
        for _ in 0..2 {
            for program in self.all() {
                operators::end(program).await;
            }
            tokio::time::sleep(POLL * 10).await;
        }
    }

    /// Lets the relays be started again.
    pub(super) fn release(&self) {
        self.held.store(false, Ordering::SeqCst);
    }

    fn is_held(&self) -> bool {
        self.held.load(Ordering::SeqCst)
    }

    /// The lines of the logs that tell of a panic. No process may live on after a panic.
    pub(super) fn log_lines_of_panics(&self) -> Vec<String> {
        let logs = self.all().into_iter().map(Program::log_text);
        logs.flat_map(|log| {
            let lines: Vec<String> = log
                .lines()
                .filter(|line| line.contains("panicked at"))
                .map(str::to_owned)
                .collect();
            lines
        })
        .collect()
    }
}

/// Starts each relay again after it was killed or ended with exit code 1.
pub(super) fn supervise(relays: &Arc<Relays>) -> Supervisors {
    let (tell, stops) = mpsc::unbounded_channel();
    let tasks = (0..relays.all().len())
        .map(|index| {
            let (relays, tell) = (Arc::clone(relays), tell.clone());
            tokio::spawn(async move {
                loop {
                    let program = relays.all()[index];
                    let Some(process) = program.process() else { return };
                    let status = process.exited().await;
                    let was_expected = status.signal() == Some(Signal::KILL.as_raw())
                        || status.code() == Some(1)
                        || (status.success() && relays.is_held());
                    while relays.is_held() {
                        tokio::time::sleep(POLL).await;
                    }
                    relays.restarts.fetch_add(1, Ordering::Relaxed);
                    let started = if was_expected { program.start() } else { Ok(()) };
                    if !was_expected || started.is_err() {
                        let tail = program.log_tail(10);
                        // Once the storm is over, nobody receives this.
                        drop(tell.send(format!("{} ended ({status}): {tail}", program.name())));
                        return;
                    }
                }
            })
        })
        .collect();
    Supervisors { tasks, stops }
}

impl Supervisors {
    /// From here on no relay is started again.
    pub(super) fn end(&self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}
