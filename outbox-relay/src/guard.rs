//! Watches the publication and the slot while the relay streams.
//!
//! `pgoutput` hides without a word what a publication does not have. A table that is removed and added again, or a `publish` without
//! inserts that is set right again, leaves no trace in the stream, and what was written meanwhile is lost. So a session of its own asks once
//! a second, in one round trip: how far is the WAL flushed (W), and is the publication still the one that the checkpoint pins? The order
//! matters: an alteration whose commit record lies at or below W has marked the catalog's row before W was read, so that a later look at
//! that row shows either its outcome or, in `xmax`, that it is not over yet. Where it shows neither, everything that was committed at or
//! below W was decoded under the pinned publication, and may be confirmed. Nothing beyond W may.
//!
//! The loop that streams never waits for the guard: without it nothing is confirmed, and publishing goes on.

use std::time::{Duration, Instant};

use anyhow::Context;
use service::Readiness;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{interval, timeout};

use crate::config::Config;
use crate::lsn::Lsn;
use crate::postgres::{Connection, Mode, Row, quote_literal};
use crate::retention::{Retention, RetentionGauges};
use crate::source::{self, text};
use crate::stop::{RelayError, Stop};

/// How often the guard looks; confirmations lag behind by as much.
const INTERVAL: Duration = Duration::from_secs(1);
/// A server that takes longer for its answer gets a new session.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Without a look for so long, the relay is not ready: it confirms nothing, and the server keeps WAL for it.
const BLIND_MAX: Duration = Duration::from_secs(5);

/// What the loop that streams gets to know.
#[derive(Clone, Debug, Default)]
struct Verdict {
    /// Up to where the publication was the pinned one.
    verified: Lsn,
    /// It is another one.
    stop: Option<Stop>,
    looks: u64,
}

/// The running guard. It ends when this is dropped.
pub struct Guard {
    verdicts: watch::Receiver<Verdict>,
    wishes: mpsc::Sender<()>,
    task: JoinHandle<()>,
    readiness: Readiness,
}

/// What one round trip brought.
#[derive(Debug, Default)]
struct Look {
    wal_flushed: Lsn,
    /// Version of the publication, and whether an alteration of it is not over yet.
    publication: Option<(String, bool)>,
    retention: Option<Retention>,
}

/// What a look says about the publication.
#[derive(Debug, PartialEq, Eq)]
enum Finding {
    /// It was the pinned one at this position.
    Unaltered(Lsn),
    /// An alteration has begun and is neither committed nor rolled back.
    Undecided,
    Altered,
}

impl Guard {
    /// Starts to watch; `pinned` is the publication's version that the checkpoint was made under.
    #[must_use]
    pub fn start(config: &Config, pinned: &str, readiness: &Readiness) -> Self {
        let (sender, verdicts) = watch::channel(Verdict::default());
        let (wishes, wished) = mpsc::channel(1);
        let task = Task {
            config: config.clone(),
            pinned: pinned.to_owned(),
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
    /// [`Stop::PublicationChanged`] once the publication was altered.
    pub fn verified(&self) -> Result<Lsn, Stop> {
        let verdict = self.verdicts.borrow();
        match &verdict.stop {
            Some(stop) => Err(stop.clone()),
            None => Ok(verdict.verified),
        }
    }

    /// Why the stream stopped making sense: an altered publication, where that is behind `stop`.
    pub async fn explain(&mut self, stop: Stop) -> Stop {
        self.look_now(ANSWER_TIMEOUT).await;
        self.verified().err().unwrap_or(stop)
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
    pinned: String,
    readiness: Readiness,
    gauges: RetentionGauges,
    verdict: Verdict,
    sender: watch::Sender<Verdict>,
}

impl Task {
    async fn run(mut self, mut wished: mpsc::Receiver<()>) {
        let sql = look_sql(&self.config);
        let mut looked_at = Instant::now();
        let mut due = interval(INTERVAL);
        due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut session = None;
        loop {
            tokio::select! {
                _ = due.tick() => {}
                wish = wished.recv() => if wish.is_none() { return },
            }
            match look(&self.config, &sql, &mut session).await {
                Ok(look) => {
                    looked_at = Instant::now();
                    self.readiness.ready("guard");
                    self.judge(&look).await;
                }
                Err(err) => {
                    session = None;
                    let reason = format!("{err:#}");
                    tracing::debug!(
                        error = reason,
                        "the guard has no answer; nothing is confirmed meanwhile"
                    );
                    if looked_at.elapsed() > BLIND_MAX {
                        self.readiness.not_ready(
                            "guard",
                            format!("cannot look at the publication, so nothing is confirmed: {reason}"),
                        );
                    }
                }
            }
        }
    }

    async fn judge(&mut self, look: &Look) {
        if let Some(retention) = &look.retention {
            self.gauges.show(retention, look.wal_flushed, &self.readiness);
        }
        match find(look, &self.pinned) {
            // What was altered once may hide rows below every later position.
            Finding::Unaltered(lsn) if self.verdict.stop.is_none() => self.verdict.verified = lsn,
            Finding::Unaltered(_) | Finding::Undecided => {}
            Finding::Altered => {
                if self.verdict.stop.is_none() {
                    self.verdict.stop = Some(self.alteration().await);
                }
            }
        }
        self.verdict.looks += 1;
        self.sender.send_replace(self.verdict.clone());
    }

    /// What is wrong with the publication now; that it was altered, where nothing is any more.
    async fn alteration(&self) -> Stop {
        let looked = async {
            let mut connection = Connection::open(&self.config.target, Mode::Sql).await?;
            source::usable_publication(&mut connection, &self.config).await
        };
        match looked.await {
            Err(RelayError::Stop(stop)) => stop,
            Ok(_) | Err(RelayError::Transient(_)) => Stop::PublicationChanged {
                publication: self.config.publication.clone(),
                what: format!(
                    "it was altered while the relay was streaming, after {}; nothing beyond is confirmed",
                    self.verdict.verified
                ),
            },
        }
    }
}

fn find(look: &Look, pinned: &str) -> Finding {
    match &look.publication {
        Some((version, _)) if version != pinned => Finding::Altered,
        None => Finding::Altered,
        Some((_, true)) => Finding::Undecided,
        Some((_, false)) => Finding::Unaltered(look.wal_flushed),
    }
}

async fn look(config: &Config, sql: &str, session: &mut Option<Connection>) -> anyhow::Result<Look> {
    let connection = match session {
        Some(connection) => connection,
        None => session.insert(Connection::open(&config.target, Mode::Sql).await?),
    };
    let rows = timeout(ANSWER_TIMEOUT, connection.rows(sql))
        .await
        .context("the server takes too long to answer")??;
    read(&rows)
}

/// Three statements in one round trip: the first must have been answered before the second begins, see the module's page.
fn look_sql(config: &Config) -> String {
    format!(
        "select 'wal', case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_flush_lsn() end;
         select 'publication', {version},
                coalesce({p}, false) or coalesce({pr}, false) or coalesce({pn}, false)
         {from};
         select 'slot', coalesce(confirmed_flush_lsn, '0/0'),
                coalesce(pg_wal_lsn_diff(case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end, restart_lsn), 0)::bigint,
                safe_wal_size, pg_size_bytes(current_setting('max_slot_wal_keep_size')), coalesce(wal_status, ''),
                coalesce(to_jsonb(s) ->> 'invalidation_reason', '')
         from pg_replication_slots s where slot_name = {slot}",
        version = source::VERSION,
        p = is_undecided("p.xmax"),
        pr = is_undecided("pr.xmax"),
        pn = is_undecided("pn.xmax"),
        from = source::from_publication(config),
        slot = quote_literal(&config.slot)
    )
}

/// Whether the transaction that has marked a row as updated or deleted may still be running. One that was rolled back leaves its mark.
fn is_undecided(xmax: &str) -> String {
    format!("{xmax}::text <> '0' and age({xmax}) <= age(pg_snapshot_xmin(pg_current_snapshot())::xid)")
}

fn read(rows: &[Row]) -> anyhow::Result<Look> {
    let mut look = Look::default();
    for row in rows {
        match text(row, 0)? {
            "wal" => look.wal_flushed = text(row, 1)?.parse()?,
            "publication" => look.publication = Some((text(row, 1)?.to_owned(), text(row, 2)? == "t")),
            _ => {
                look.retention = Some(Retention {
                    confirmed: text(row, 1)?.parse()?,
                    retained_bytes: text(row, 2)?.parse()?,
                    safe_bytes: row.get(3).and_then(Option::as_deref).map(str::parse).transpose()?,
                    keep_bytes: text(row, 4)?.parse()?,
                    wal_status: text(row, 5)?.to_owned(),
                    invalidation_reason: text(row, 6)?.to_owned(),
                });
            }
        }
    }
    Ok(look)
}

#[cfg(test)]
mod tests {
    use super::{Finding, Look, find, read};
    use crate::lsn::Lsn;

    fn look(publication: Option<(&str, bool)>) -> Look {
        Look {
            wal_flushed: Lsn(700),
            publication: publication.map(|(version, undecided)| (version.to_owned(), undecided)),
            retention: None,
        }
    }

    #[test]
    fn only_a_publication_that_is_the_pinned_one_for_certain_verifies_a_position() {
        assert_eq!(
            find(&look(Some(("1:2:3:4", false))), "1:2:3:4"),
            Finding::Unaltered(Lsn(700))
        );
        assert_eq!(find(&look(Some(("1:2:3:4", true))), "1:2:3:4"), Finding::Undecided);
        assert_eq!(find(&look(Some(("1:9:3:4", false))), "1:2:3:4"), Finding::Altered);
        assert_eq!(find(&look(Some(("1:9:3:4", true))), "1:2:3:4"), Finding::Altered);
        assert_eq!(find(&look(None), "1:2:3:4"), Finding::Altered, "it was dropped");
    }

    #[test]
    fn an_answer_without_a_publication_or_a_slot_is_read() {
        let row = |values: &[&str]| values.iter().map(|value| Some((*value).to_owned())).collect::<Vec<_>>();
        let mut slot = row(&["slot", "0/10", "4096", "", "-1", "reserved", ""]);
        slot[3] = None;
        let look = read(&[row(&["wal", "0/20"]), slot]).unwrap();
        assert_eq!((look.wal_flushed, look.publication), (Lsn(0x20), None));
        let retention = look.retention.unwrap();
        assert_eq!((retention.retained_bytes, retention.safe_bytes), (4096, None));
    }
}
