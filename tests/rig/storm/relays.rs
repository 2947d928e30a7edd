//! The relays of a storm, and who starts them again, as an init system would.

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

/// One relay, or two of which one waits.
#[derive(Debug)]
pub(super) struct Relays {
    rig: Rig,
    standby: Option<Program>,
    restarts: AtomicU64,
    /// An operator has ended them, and they are not to be started.
    held: AtomicBool,
}

/// Whoever starts the relays again.
#[derive(Debug)]
pub(super) struct Supervisors {
    tasks: Vec<JoinHandle<()>>,
    /// Relays that ended otherwise than by a kill or a passing error.
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

    /// SIGKILL to one of them, as soon as it runs.
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

    /// Ends them by SIGTERM.
    ///
    /// # Errors
    /// One does not end in order.
    pub(super) async fn stop(&self) -> anyhow::Result<()> {
        for program in self.all() {
            program.stop().await?;
        }
        Ok(())
    }

    /// Ends them by SIGTERM, and keeps them from being started again.
    pub(super) async fn hold(&self) {
        self.held.store(true, Ordering::SeqCst);
        // One may just have been started.
        for _ in 0..2 {
            for program in self.all() {
                operators::end(program).await;
            }
            tokio::time::sleep(POLL * 10).await;
        }
    }

    /// They are started again.
    pub(super) fn release(&self) {
        self.held.store(false, Ordering::SeqCst);
    }

    fn is_held(&self) -> bool {
        self.held.load(Ordering::SeqCst)
    }

    /// A panic of a thread that the process survived would be a half life.
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

/// Starts each relay again when it was killed or ended with exit code 1.
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
                    let passes = status.signal() == Some(Signal::KILL.as_raw())
                        || status.code() == Some(1)
                        || (status.success() && relays.is_held());
                    while relays.is_held() {
                        tokio::time::sleep(POLL).await;
                    }
                    relays.restarts.fetch_add(1, Ordering::Relaxed);
                    let started = if passes { program.start() } else { Ok(()) };
                    if !passes || started.is_err() {
                        let tail = program.log_tail(10);
                        // Nobody listens once the storm is over.
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
    /// Nobody starts a relay again from here on.
    pub(super) fn end(&self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}
