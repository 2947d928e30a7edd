//! Watches the publication and the slot while the relay streams.
//!
//! `pgoutput` hides without a word what a publication does not have. A table that is removed and added again, or a `publish` without
//! inserts that is set right again, leaves no trace in the stream, and what was written meanwhile is lost. So a session of its own asks once
//! a second, in one round trip: how far is the WAL flushed (W), and is the publication still the one that the checkpoint pins? The order
//! matters: an alteration whose commit record lies at or below W has marked the catalog's row before W was read, so that a later look at
//! that row shows either its outcome or, in `xmax`, that it is not over yet. Where it shows neither, everything that was committed at or
//! below W was decoded under the pinned publication, and may be confirmed. Nothing beyond W may.
//!
//! Under `FOR ALL TABLES` and `FOR TABLES IN SCHEMA` the publication's rows in the catalog do not change with the outbox table: renamed, set
//! unlogged, or replaced by another table or a view, it is gone from the stream all the same. So the table's own row counts too: its name,
//! oid, kind and persistence, which is that of its partitions where one of them is unlogged.
//!
//! A look proves something of the stream only where it was made on the server that streams. Each session proves that when it begins, each
//! look sees our own walsender as the slot's reader and the timeline that the stream began on, and a session is replaced every few seconds:
//! where the address leads to another server by then, the relay ends its stream and begins again with the server that it finds. So it does
//! where a standby was promoted under its stream: the walsender goes on, and whether the relay may is for the next start to prove.
//!
//! The loop that streams never waits for the guard: without it nothing is confirmed, and publishing goes on.

mod look;
mod planted;
pub mod retention;

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

/// How often the guard looks; confirmations lag behind by as much.
const INTERVAL: Duration = Duration::from_secs(1);
/// Without a look that verifies for so long, the relay is not ready: it confirms nothing, and the server keeps WAL for it.
const BLIND_MAX: Duration = Duration::from_secs(5);

/// A session is replaced after this time, so that an address that moved to another server is noticed.
const SESSION_LIFETIME: Duration = Duration::from_secs(10);

/// What the loop that streams gets to know.
#[derive(Clone, Debug, Default)]
struct Verdict {
    /// Up to where the publication was the pinned one.
    verified: Lsn,
    /// It is another one.
    stop: Option<Stop>,
    /// The server that streams is not the one that the address leads to any more, or was promoted.
    begin_again: Option<String>,
    looks: u64,
}

/// The running guard. It ends when this is dropped.
pub struct Guard {
    verdicts: watch::Receiver<Verdict>,
    wishes: mpsc::Sender<()>,
    task: JoinHandle<()>,
    readiness: Readiness,
}

impl Guard {
    /// Starts to watch. `config` leads to the server that streams, see [`Config::pinned_to`]; `pinned` is what the checkpoint was made under.
    #[must_use]
    pub fn start(config: &Config, pinned: Pinned, readiness: &Readiness) -> Self {
        let (sender, verdicts) = watch::channel(Verdict::default());
        let (wishes, wished) = mpsc::channel(1);
        let task = Task {
            config: config.clone(),
            pinned,
            readiness: readiness.clone(),
            gauges: RetentionGauges::new(),
            verdict: Verdict::default(),
            sender,
        };
        Self {
            verdicts,
            wishes,
            task: tokio::spawn(task.run(wished)),
            readiness: readiness.clone(),
        }
    }

    /// Up to where confirming is safe. Never waits.
    ///
    /// # Errors
    /// [`Stop::PublicationChanged`] once the publication was altered; a transient error once the address leads to another server, or the
    /// server was promoted.
    pub fn verified(&self) -> Result<Lsn, RelayError> {
        let verdict = self.verdicts.borrow();
        if let Some(stop) = &verdict.stop {
            return Err(stop.clone().into());
        }
        if let Some(reason) = &verdict.begin_again {
            return Err(anyhow::anyhow!(reason.clone()).into());
        }
        Ok(verdict.verified)
    }

    /// Why the stream stopped making sense: an altered publication, where that is behind `stop`.
    pub async fn explain(&mut self, stop: Stop) -> Stop {
        self.look_now(ANSWER_TIMEOUT).await;
        let altered = self.verdicts.borrow().stop.clone();
        altered.unwrap_or(stop)
    }

    /// The position of a look that is made now, for a last confirmation; that of the last look where the server does not answer in time.
    pub async fn look_now(&mut self, patience: Duration) -> Lsn {
        let before = self.verdicts.borrow().looks;
        // A wish that is already waiting is as good.
        let _full = self.wishes.try_send(());
        let newer = timeout(patience, self.verdicts.wait_for(|verdict| verdict.looks > before));
        // Its time is over, or the task is: the last verdict stands.
        drop(newer.await);
        self.verdicts.borrow().verified
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.task.abort();
        // Nobody looks any more, so nobody could take these back.
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
    sender: watch::Sender<Verdict>,
}

impl Task {
    async fn run(mut self, mut wished: mpsc::Receiver<()>) {
        let sql = look_sql(&self.config);
        let mut verified_at = Instant::now();
        let mut due = interval(INTERVAL);
        due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut session: Option<Session> = None;
        loop {
            tokio::select! {
                _ = due.tick() => {}
                wish = wished.recv() => if wish.is_none() { return },
            }
            if session
                .as_ref()
                .is_some_and(|session| session.opened_at.elapsed() > SESSION_LIFETIME)
            {
                session = None;
            }
            match look_once(&self.config, &sql, &mut session).await {
                Ok(look) => match self.pass_verdict_on(&look).await {
                    None => {
                        verified_at = Instant::now();
                        self.readiness.ready("guard");
                    }
                    Some(reason) => {
                        tracing::debug!(reason, "nothing is confirmed by this look of the guard's");
                        self.blind_since(verified_at, &reason);
                    }
                },
                Err(err) => {
                    session = None;
                    let reason = format!("{err:#}");
                    if MovedAway::is_cause_of(&err) {
                        self.verdict.begin_again = Some(reason.clone());
                        self.sender.send_replace(self.verdict.clone());
                    }
                    tracing::debug!(
                        error = reason,
                        "the guard has no answer; nothing is confirmed meanwhile"
                    );
                    self.blind_since(verified_at, &format!("cannot look at the publication: {reason}"));
                }
            }
        }
    }

    fn blind_since(&self, verified_at: Instant, reason: &str) {
        if verified_at.elapsed() > BLIND_MAX {
            self.readiness
                .not_ready("guard", format!("nothing is confirmed: {reason}"));
        }
    }

    /// Passes the verdict on; answers with why the look verifies no position, where it does not.
    async fn pass_verdict_on(&mut self, look: &Look) -> Option<String> {
        if let Some(retention) = &look.retention {
            self.gauges.show(retention, look.wal_flushed, &self.readiness);
        }
        let unverified = match compare_with_pinned(look, &self.pinned) {
            // What was altered once may hide rows below every later position.
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
                    self.verdict.begin_again = Some(reason.clone());
                }
                Some(reason)
            }
            Finding::Altered => {
                if self.verdict.stop.is_none() {
                    self.verdict.stop = Some(self.alteration().await);
                }
                Some("the publication was altered".to_owned())
            }
        };
        self.verdict.looks += 1;
        self.sender.send_replace(self.verdict.clone());
        unverified
    }

    /// What is wrong with the publication now; that it was altered, where nothing is any more.
    async fn alteration(&self) -> Stop {
        let looked = async {
            let mut connection = Connection::open(&self.config.source.target, Mode::Sql).await?;
            require_usable_publication(&mut connection, &self.config).await
        };
        match looked.await {
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
