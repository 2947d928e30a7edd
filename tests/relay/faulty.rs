//! A relay with a failpoint or a planted bug. It is started again whenever it dies, as a supervisor would do.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rig::rig::READY_DEADLINE;
use rig::{Ledger, Rig, relay_exit};
use stack::Program;

const SIGKILL: i32 = 9;
/// How many rows the transaction has that becomes several Kafka transactions. About 300 rows go into a Kafka transaction of the smallest size.
const LARGE_TRANSACTION_ROWS: u32 = 900;
/// For so long a relay lives before it is killed. That is enough to start and to publish something.
const LIFE_WHILE_REPEATING: Duration = Duration::from_millis(1_500);
const DEADLINE: Duration = Duration::from_secs(90);
/// A relay with a bug may wait for ever, so the test waits no longer than this.
const DEADLINE_WITH_BUG: Duration = Duration::from_secs(12);

/// What makes the relay come to a failpoint again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// It publishes.
    Publishing,
    /// It starts. It is killed each time after it has come to the point.
    Starting,
    /// It repeats what it has published, because it is killed again and again while rows are written.
    Repeating,
}

/// One trouble: `action` happens at the failpoint `point` when the relay comes there for the `hit`th time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trouble {
    pub point: &'static str,
    pub reach: Reach,
    pub action: &'static str,
    pub hit: u32,
}

/// A relay that meets a trouble, and the rows that it has to publish nevertheless.
pub(crate) struct FaultyRelay {
    rig: Arc<Rig>,
    relay: Program,
    trouble: Trouble,
    hits: PathBuf,
    started: Instant,
    deadline: Duration,
    panics: AtomicU32,
}

impl FaultyRelay {
    /// If `bug` is not empty, the relay has this planted bug.
    pub(crate) fn new(rig: &Arc<Rig>, trouble: Trouble, bug: &str) -> Self {
        let Trouble { point, action, hit, .. } = trouble;
        let hits = rig.logs().join(format!("{point}-{}-{hit}", action.replace(':', "-")));
        let relay = rig
            .relay
            .with_binary("outbox-relay-faults")
            .env("TRANSACTION_BYTES", "65536")
            .env(
                "KAFKA_PROPERTIES",
                "transaction.timeout.ms=2000\nmessage.timeout.ms=1500\nsocket.timeout.ms=2000",
            )
            .env("OUTBOX_RELAY_FAILPOINT", &format!("{point}={action}@{hit}"))
            .env("OUTBOX_RELAY_FAILPOINT_HITS", &hits.to_string_lossy())
            .env("OUTBOX_RELAY_BUG", bug);
        Self {
            rig: Arc::clone(rig),
            relay,
            trouble,
            hits,
            started: Instant::now(),
            panics: AtomicU32::new(0),
            deadline: if bug.is_empty() { DEADLINE } else { DEADLINE_WITH_BUG },
        }
    }

    /// Sets a further setting of the relay.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.relay = self.relay.with_env(name, value);
        self
    }

    /// Writes rows until the trouble has come, and then some more. Waits until all of them are published. Then the relay has to end in order.
    ///
    /// # Errors
    /// The relay stopped for good, rows are missing after a minute, or they are doubled or out of order.
    pub(crate) async fn survives(&self) -> anyhow::Result<Ledger> {
        self.relay.start()?;
        self.rig.insert_together(LARGE_TRANSACTION_ROWS).await;
        let (mut hits_before, mut started_at) = (0, Instant::now());
        while self.hits() < self.trouble.hit {
            self.rig.insert_each(3).await;
            self.restart_if_dead()?;
            let is_to_die = match self.trouble.reach {
                Reach::Publishing => false,
                Reach::Starting => self.hits() > hits_before,
                Reach::Repeating => started_at.elapsed() > LIFE_WHILE_REPEATING,
            };
            if is_to_die && self.hits() < self.trouble.hit {
                hits_before = self.hits();
                self.relay.kill_hard().await;
                self.relay.start()?;
                started_at = Instant::now();
            }
            ensure!(
                self.started.elapsed() < self.deadline,
                "{:?} was only hit {} times\n{}",
                self.trouble,
                self.hits(),
                self.relay.log_tail(20)
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if self.trouble.action == "panic" && self.panics() == 0 {
            // The trouble includes its end, and a busy machine prints a backtrace slowly.
            self.relay.exited(self.deadline).await?;
        }
        self.rig.insert_each(10).await;
        let ledger = self.wait_until_published_with_restarts().await?;
        self.restart_if_dead()?;
        // A process that has just begun does not react to SIGTERM yet.
        self.relay.wait_ready(READY_DEADLINE).await?;
        self.relay.stop().await?;
        ensure!(
            ledger.is_exact(),
            "{:?}: {ledger}\n{}",
            self.trouble,
            self.relay.log_tail(30)
        );
        Ok(ledger)
    }

    /// How many relays ended because something panicked.
    pub(crate) fn panics(&self) -> u32 {
        self.panics.load(Ordering::Relaxed)
    }

    /// Kills the relay. This is for a test that is done with a relay that did not survive.
    pub(crate) async fn kill(&self) {
        self.relay.kill_hard().await;
    }

    async fn wait_until_published_with_restarts(&self) -> anyhow::Result<Ledger> {
        let published = self
            .rig
            .wait_until_published_meanwhile(self.deadline, || self.restart_if_dead());
        published.await.with_context(|| format!("{:?}", self.trouble))
    }

    fn restart_if_dead(&self) -> anyhow::Result<()> {
        let status = self.relay.process().and_then(|process| process.exit_status());
        let Some(status) = status else { return Ok(()) };
        let panicked = self.trouble.action == "panic" && status.code() == Some(relay_exit::PANIC);
        if panicked {
            self.panics.fetch_add(1, Ordering::Relaxed);
        }
        ensure!(
            panicked || status.code() == Some(relay_exit::FAILPOINT) || status.signal() == Some(SIGKILL),
            "{:?}: the relay ended by itself ({status})\n{}",
            self.trouble,
            self.relay.log_tail(20)
        );
        self.relay.start()
    }

    fn hits(&self) -> u32 {
        let text = std::fs::read_to_string(&self.hits).unwrap_or_default();
        u32::try_from(text.lines().count()).unwrap_or(u32::MAX)
    }
}
