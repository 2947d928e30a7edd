//! Watches the publication and the slot while the relay streams.
//!
//! `pgoutput` silently leaves out the rows that a publication does not contain. Somebody may remove the table from the publication and add it again, or
//! set `publish` without inserts and set it right again. The stream does not show that, and the rows that were written in between are lost.
//!
//! So the guard asks once a second, in a session of its own and in one round trip: how far is the WAL flushed (W), and is the publication still the
//! one that the checkpoint pins? The order of the two questions matters. An alteration whose commit record lies at or below W has marked the catalog's
//! row before W was read. So when we look at that row afterwards, we see either the altered row or, in `xmax`, that the alteration has not ended yet.
//! If we see neither, everything that was committed at or below W was decoded under the pinned publication, and may be confirmed. Nothing beyond W may.
//!
//! Under `FOR ALL TABLES` and `FOR TABLES IN SCHEMA` the publication's rows in the catalog do not change when the outbox table changes. But a table that
//! is renamed, set unlogged, or replaced by another table or a view is gone from the stream too. So the guard also compares the table's own row: its
//! name, oid, kind and persistence. The table counts as unlogged if one of its partitions is.
//!
//! A look proves something about the stream only if it was made on the server that streams. Each session proves that when it begins. Each look also checks
//! that our own walsender reads the slot, and that the server is still on the timeline that the stream began on. A session is replaced every few seconds,
//! in case the address leads to another server by then. If it does, the relay ends its stream and begins again with the server that it finds.
//! It also begins again when a standby was promoted while it streamed: the walsender goes on, but the next start has to prove that the relay may.
//!
//! The loop that streams never waits for the guard. Without the guard nothing is confirmed, but publishing goes on.

mod look;
mod planted;
pub mod retention;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use service::Readiness;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{interval, timeout};

pub use crate::guard::look::Pinned;
use crate::guard::look::{ANSWER_TIMEOUT, Finding, Look, Session, compare_with_pinned, look_once, look_sql};
use crate::guard::retention::RetentionGauges;
use crate::outbox::publication::require_usable_publication;
use crate::process::stop::{RelayError, Stop};
use crate::settings::Config;
use pg_replication::Lsn;
use pg_replication::{Connection, Mode, MovedAway};

/// How often the guard looks. A confirmation may be late by as much.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// The relay is not ready once no look has verified a position for so long: it confirms nothing, and the server keeps WAL for it.
const UNVERIFIED_MAX: Duration = Duration::from_secs(5);
/// A session is replaced after this time, so that an address that moved to another server is noticed.
const SESSION_LIFETIME: Duration = Duration::from_secs(10);

/// What the guard tells the loop that streams.
#[derive(Clone, Debug, Default)]
struct Verdict {
    /// Up to where the publication was the pinned one.
    verified: Lsn,
    /// The publication is not the pinned one any more.
    stop: Option<Stop>,
    /// Why the relay has to end its stream and begin again: the address leads to another server than the one that streams, or the server was promoted.
    begin_again_because: Option<String>,
    /// The number of the look that it is from, from 1. It tells a new verdict from an old one.
    look: u64,
}

/// The running guard. It ends when this is dropped.
pub struct Guard {
    verdicts: watch::Receiver<Verdict>,
    /// How many looks have begun. A look that is under way has this number.
    looks_begun: Arc<AtomicU64>,
    look_requests: mpsc::Sender<()>,
    task: JoinHandle<()>,
    readiness: Readiness,
}

impl Guard {
    /// Starts to watch. `config` leads to the server that streams, see [`Config::pinned_to`]; `pinned` is what the checkpoint was made under.
    #[must_use]
    pub fn start(config: &Config, pinned: Pinned, readiness: &Readiness) -> Self {
        let (sender, verdicts) = watch::channel(Verdict::default());
        let (look_requests, requested_looks) = mpsc::channel(1);
        let looks_begun = Arc::new(AtomicU64::new(0));
        let task = Task {
            config: config.clone(),
            pinned,
            readiness: readiness.clone(),
            gauges: RetentionGauges::new(),
            verdict: Verdict::default(),
            looks_begun: Arc::clone(&looks_begun),
            sender,
        };
        Self {
            verdicts,
            looks_begun,
            look_requests,
            task: tokio::spawn(task.run(requested_looks)),
            readiness: readiness.clone(),
        }
    }

    /// Returns the position up to which confirming is safe. Never waits.
    ///
    /// # Errors
    /// [`Stop::PublicationChanged`] once the publication was altered; a transient error once the address leads to another server, or the
    /// server was promoted.
    pub fn verified(&self) -> Result<Lsn, RelayError> {
        let verdict = self.verdicts.borrow();
        if let Some(stop) = &verdict.stop {
            return Err(stop.clone().into());
        }
        if let Some(reason) = &verdict.begin_again_because {
            return Err(anyhow::anyhow!(reason.clone()).into());
        }
        Ok(verdict.verified)
    }

    /// Looks for the reason of `stop`. Returns the guard's own stop if the publication was altered, and `stop` if it was not.
    pub async fn explain_stop(&mut self, stop: Stop) -> Stop {
        self.look_now(ANSWER_TIMEOUT).await;
        let altered = self.verdicts.borrow().stop.clone();
        altered.unwrap_or(stop)
    }

    /// Looks now, for a last confirmation, and returns the verified position. If the server does not answer in time, it is that of the last look.
    ///
    /// A look that is under way does not count: it may have seen the publication before the alteration that the caller asks about.
    pub async fn look_now(&mut self, patience: Duration) -> Lsn {
        let begun = self.looks_begun.load(Ordering::Acquire);
        // If the channel is full, somebody has asked for a look already, and that look serves us too: it has not begun.
        let _full = self.look_requests.try_send(());
        let newer = timeout(patience, self.verdicts.wait_for(|verdict| verdict.look > begun));
        // If the time is over, or the task has ended, the last verdict stands.
        drop(newer.await);
        self.verdicts.borrow().verified
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.task.abort();
        // Nobody looks any more, so nobody could set these to ready later.
        self.readiness.ready("guard");
        self.readiness.ready("wal");
    }
}

struct Task {
    config: Config,
    pinned: Pinned,
    readiness: Readiness,
    gauges: RetentionGauges,
    verdict: Verdict,
    looks_begun: Arc<AtomicU64>,
    sender: watch::Sender<Verdict>,
}

impl Task {
    async fn run(mut self, mut requested_looks: mpsc::Receiver<()>) {
        let sql = look_sql(&self.config);
        let mut verified_at = Instant::now();
        let mut ticks = interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut session: Option<Session> = None;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                request = requested_looks.recv() => if request.is_none() { return },
            }
            if session
                .as_ref()
                .is_some_and(|session| session.opened_at.elapsed() > SESSION_LIFETIME)
            {
                session = None;
            }
            let number = self.looks_begun.fetch_add(1, Ordering::AcqRel) + 1;
            match look_once(&self.config, &sql, &mut session).await {
                Ok(look) => match self.judge_look(number, &look).await {
                    None => {
                        verified_at = Instant::now();
                        self.readiness.ready("guard");
                    }
                    Some(reason) => {
                        tracing::debug!(reason, "this look of the guard verified no position");
                        self.note_unverified(verified_at, &reason);
                    }
                },
                Err(err) => {
                    session = None;
                    let reason = format!("{err:#}");
                    if MovedAway::is_cause_of(&err) {
                        self.verdict.begin_again_because = Some(reason.clone());
                        self.sender.send_replace(self.verdict.clone());
                    }
                    tracing::debug!(
                        error = reason,
                        "the guard has no answer; nothing is confirmed meanwhile"
                    );
                    self.note_unverified(verified_at, &format!("cannot look at the publication: {reason}"));
                }
            }
        }
    }

    /// A look verified nothing. The relay is not ready if that has lasted for too long.
    fn note_unverified(&self, verified_at: Instant, reason: &str) {
        if verified_at.elapsed() > UNVERIFIED_MAX {
            self.readiness
                .not_ready("guard", format!("nothing is confirmed: {reason}"));
        }
    }

    /// Judges the look and tells the loop that streams. Returns why the look verifies no position; `None` if it verifies one.
    async fn judge_look(&mut self, number: u64, look: &Look) -> Option<String> {
        if let Some(retention) = &look.retention {
            self.gauges.show(retention, look.wal_flushed, &self.readiness);
        }
        let unverified = match compare_with_pinned(look, &self.pinned) {
            // An alteration may hide rows below every later position, so nothing is verified after it.
            Finding::Unaltered(lsn) if self.verdict.stop.is_none() => {
                self.verdict.verified = lsn;
                None
            }
            Finding::Unaltered(_) => Some("the publication was altered".to_owned()),
            Finding::Undecided => {
                Some("a transaction that alters the publication or the outbox table is not over yet".to_owned())
            }
            Finding::NotOurStream => Some(format!(
                "the slot that the guard looks at does not stream to this relay: it is read by backend {}, and not by {}",
                look.slot_reader
                    .map_or_else(|| "0 (nobody)".to_owned(), |pid| pid.to_string()),
                self.pinned.walsender_pid
            )),
            Finding::OtherTimeline(timeline) => {
                let reason = format!(
                    "the server was promoted: it is on timeline {timeline}, and the stream began on timeline {}",
                    self.pinned.timeline
                );
                if !planted::streams_on_after_promotion() {
                    self.verdict.begin_again_because = Some(reason.clone());
                }
                Some(reason)
            }
            Finding::Altered => {
                if self.verdict.stop.is_none() {
                    self.verdict.stop = Some(self.describe_alteration().await);
                }
                Some("the publication was altered".to_owned())
            }
        };
        self.verdict.look = number;
        self.sender.send_replace(self.verdict.clone());
        unverified
    }

    /// Finds out what is wrong with the publication now. If nothing is wrong any more, the stop says that it was altered.
    async fn describe_alteration(&self) -> Stop {
        let is_usable = async {
            let mut connection = Connection::open(&self.config.source.target, Mode::Sql).await?;
            require_usable_publication(&mut connection, &self.config).await
        };
        match is_usable.await {
            Err(RelayError::Stop(stop)) => stop,
            Ok(_) | Err(RelayError::Transient(_)) => Stop::PublicationChanged {
                publication: self.config.source.publication.to_string(),
                what: format!(
                    "it was altered while the relay was streaming, after {}; nothing beyond is confirmed",
                    self.verdict.verified
                ),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use pg_replication::Lsn;
    use service::Readiness;
    use tokio::sync::{mpsc, watch};

    use super::{Guard, Verdict};

    fn verdict(look: u64, verified: u64) -> Verdict {
        Verdict {
            verified: Lsn(verified),
            look,
            ..Verdict::default()
        }
    }

    #[tokio::test]
    async fn a_look_that_was_under_way_does_not_answer_whoever_asks_after_it_began() {
        let (sender, verdicts) = watch::channel(verdict(1, 100));
        let (look_requests, mut requested_looks) = mpsc::channel(1);
        let looks_begun = Arc::new(AtomicU64::new(1));
        let (begun, begin) = (Arc::clone(&looks_begun), move || {
            looks_begun.fetch_add(1, Ordering::AcqRel) + 1
        });
        // A look begins, somebody asks, and only then does its answer come.
        let under_way = begin();
        let task = tokio::spawn(async move {
            requested_looks.recv().await;
            sender.send_replace(verdict(under_way, 200));
            // Whoever waits for a verdict sees this one before the next.
            tokio::task::yield_now().await;
            sender.send_replace(verdict(begin(), 300));
            std::future::pending().await
        });
        let mut guard = Guard {
            verdicts,
            looks_begun: begun,
            look_requests,
            task,
            readiness: Readiness::default(),
        };
        assert_eq!(guard.look_now(Duration::from_secs(10)).await, Lsn(300));
    }
}
