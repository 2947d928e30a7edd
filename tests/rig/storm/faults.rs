//! Kills the parts as the schedule says. Each part has a task of its own, so one part can be killed while another is coming back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::relays::Relays;
use super::schedule::{Kill, Part, Schedule};

const POLL: Duration = Duration::from_millis(10);
/// A server that is up again stays up for at least so long.
const UP_FOR_MIN: Duration = Duration::from_secs(4);

/// A kill that was carried out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fired {
    pub(super) part: Part,
    /// The time since the storm's start.
    pub(super) at: Duration,
}

/// The kills so far.
#[derive(Debug)]
pub(super) struct Faults {
    relays: Arc<Relays>,
    start: Instant,
    fired: Mutex<Vec<Fired>>,
    given_up: AtomicBool,
}

/// Carries the schedule out, and waits until the storm's time is over. Every server is up then.
///
/// # Errors
/// A server does not come back.
pub(super) async fn carry_out(faults: Arc<Faults>, schedule: Schedule, duration: Duration) -> anyhow::Result<()> {
    let tasks: Vec<_> = Part::ALL
        .into_iter()
        .map(|part| {
            let (faults, kills) = (Arc::clone(&faults), schedule.kills_of(part));
            tokio::spawn(async move {
                // A part that came back late gets a moment. Otherwise the kills that were due meanwhile would never let anything through.
                let mut next_kill_at_min = Duration::ZERO;
                for kill in kills {
                    let at = kill.at.max(next_kill_at_min);
                    if at >= duration || !faults.wait_until(at).await {
                        break;
                    }
                    faults.kill(kill).await?;
                    if matches!(part, Part::Postgres | Part::Kafka) {
                        next_kill_at_min = faults.start.elapsed() + UP_FOR_MIN;
                    }
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for task in tasks {
        task.await.context("a killer")??;
    }
    faults.wait_until(duration).await;
    Ok(())
}

impl Faults {
    pub(super) fn new(relays: Arc<Relays>, start: Instant) -> Self {
        Self {
            relays,
            start,
            fired: Mutex::default(),
            given_up: AtomicBool::new(false),
        }
    }

    pub(super) fn fired(&self) -> Vec<Fired> {
        self.fired.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops the killing.
    pub(super) fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    /// Waits until so much time has passed since the storm's start. Returns false if the storm was given up before.
    async fn wait_until(&self, at: Duration) -> bool {
        loop {
            let left = at.saturating_sub(self.start.elapsed());
            if self.given_up.load(Ordering::Relaxed) {
                return false;
            }
            if left.is_zero() {
                return true;
            }
            tokio::time::sleep(left.min(Duration::from_millis(100))).await;
        }
    }

    async fn kill(&self, kill: Kill) -> anyhow::Result<()> {
        let servers = &self.relays.rig().servers;
        match kill.part {
            Part::Relay => {
                self.relays.kill(kill.victim).await;
                self.note_fired(kill.part);
            }
            Part::Walsender => self.terminate_walsender().await,
            Part::Postgres => {
                self.note_fired(kill.part);
                servers.postgres.kill_hard().await;
                servers.postgres.start_again().await?;
            }
            Part::Kafka => {
                self.note_fired(kill.part);
                servers.kafka.kill_hard().await;
                servers.kafka.start_again().await?;
            }
        }
        Ok(())
    }

    /// Ends the session that reads the slot, as soon as there is one.
    async fn terminate_walsender(&self) {
        let rig = self.relays.rig();
        let sql = format!(
            "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = '{}' and active_pid is not null",
            rig.name()
        );
        while !self.given_up.load(Ordering::Relaxed) {
            // While Postgres itself is away, there is no walsender to end.
            if let Ok(rows) = rig.servers.postgres.query("postgres", &sql).await
                && !rows.is_empty()
            {
                return self.note_fired(Part::Walsender);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn note_fired(&self, part: Part) {
        let at = self.start.elapsed();
        let mut fired = self.fired.lock().unwrap_or_else(PoisonError::into_inner);
        fired.push(Fired { part, at });
    }
}
