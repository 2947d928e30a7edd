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

pub mod retention;

use std::time::{Duration, Instant};

use anyhow::Context;
use service::Readiness;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{interval, timeout};

use crate::guard::retention::{Retention, RetentionGauges};
use crate::outbox::publication::{self, require_usable_publication};
use crate::outbox::rows::text;
use crate::process::faults::{self, Bug};
use crate::process::stop::{RelayError, Stop};
use crate::settings::Config;
use pg_replication::Lsn;
use pg_replication::{Connection, Mode, MovedAway, Row, quote_literal};

/// How often the guard looks; confirmations lag behind by as much.
const INTERVAL: Duration = Duration::from_secs(1);
/// A server that takes longer for its answer gets a new session.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Without a look that verifies for so long, the relay is not ready: it confirms nothing, and the server keeps WAL for it.
const BLIND_MAX: Duration = Duration::from_secs(5);

/// A session is replaced after this time, so that an address that moved to another server is noticed.
const SESSION_LIFETIME: Duration = Duration::from_secs(10);

/// What must be as it was when the stream began.
#[derive(Clone, Debug)]
pub struct Pinned {
    /// See [`publication::Publication::version`].
    pub publication: String,
    /// See [`publication::Publication::outbox`].
    pub outbox: Option<String>,
    pub timeline: u32,
    /// The backend that streams to us.
    pub walsender_pid: i32,
}

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

/// What one round trip brought.
#[derive(Debug, Default)]
struct Look {
    wal_flushed: Lsn,
    /// Absent on a standby, which writes no WAL of its own.
    timeline: Option<u32>,
    publication: Option<PublicationLook>,
    /// The backend that reads the slot.
    slot_reader: Option<i32>,
    retention: Option<Retention>,
}

/// The publication and the outbox table as a look shows them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PublicationLook {
    version: String,
    outbox: Option<String>,
    /// An alteration of either has begun and is not over yet.
    is_undecided: bool,
}

/// What a look says about the publication.
#[derive(Debug, PartialEq, Eq)]
enum Finding {
    /// It was the pinned one at this position.
    Unaltered(Lsn),
    /// An alteration has begun and is neither committed nor rolled back.
    Undecided,
    Altered,
    /// The slot that was looked at is not the one that streams to us, so nothing follows from the look.
    NotOurStream,
    /// The server is on this timeline now, and not on the one that the stream began on.
    OtherTimeline(u32),
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
                Ok(look) => match self.judge(&look).await {
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
    async fn judge(&mut self, look: &Look) -> Option<String> {
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
                if !faults::is_planted(Bug::StreamOnAfterPromotion) {
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
                publication: self.config.source.publication.clone(),
                what: format!(
                    "it was altered while the relay was streaming, after {}; nothing beyond is confirmed",
                    self.verdict.verified
                ),
            },
        }
    }
}

fn compare_with_pinned(look: &Look, pinned: &Pinned) -> Finding {
    if !faults::is_planted(Bug::GuardTrustsAnySlot) {
        if look.slot_reader != Some(pinned.walsender_pid) {
            return Finding::NotOurStream;
        }
        if let Some(timeline) = look.timeline.filter(|timeline| *timeline != pinned.timeline) {
            return Finding::OtherTimeline(timeline);
        }
    }
    match &look.publication {
        None => Finding::Altered,
        Some(found) if found.version != pinned.publication => Finding::Altered,
        Some(found) if found.outbox != pinned.outbox && !faults::is_planted(Bug::TrustAnyTable) => Finding::Altered,
        Some(found) if found.is_undecided => Finding::Undecided,
        Some(_) => Finding::Unaltered(look.wal_flushed),
    }
}

/// A session of the guard's.
struct Session {
    connection: Connection,
    opened_at: Instant,
}

async fn look_once(config: &Config, sql: &str, session: &mut Option<Session>) -> anyhow::Result<Look> {
    let session = match session {
        Some(session) => session,
        None => session.insert(Session {
            connection: Connection::open(&config.source.target, Mode::Sql).await?,
            opened_at: Instant::now(),
        }),
    };
    faults::point("guard.look")?;
    let rows = timeout(ANSWER_TIMEOUT, session.connection.rows(sql))
        .await
        .context("the server takes too long to answer")??;
    read(&rows)
}

/// Three statements in one round trip: the first must have been answered before the second begins, see the module's page.
fn look_sql(config: &Config) -> String {
    format!(
        "select 'wal', case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_flush_lsn() end,
                case when not pg_is_in_recovery() then substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) end;
         select 'publication', {version}, {outbox},
                coalesce({p}, false) or coalesce({pr}, false) or coalesce({pn}, false) or coalesce({c}, false)
                or exists (select from {partitions} pt join pg_class i on i.oid = pt.relid where {i})
         {from};
         select 'slot', coalesce(confirmed_flush_lsn, '0/0'),
                coalesce(pg_wal_lsn_diff(case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end, restart_lsn), 0)::bigint,
                safe_wal_size, pg_size_bytes(current_setting('max_slot_wal_keep_size')), coalesce(wal_status, ''),
                coalesce(to_jsonb(s) ->> 'invalidation_reason', ''), active_pid
         from pg_replication_slots s where slot_name = {slot}",
        version = publication::VERSION,
        outbox = publication::outbox_sql(config),
        partitions = publication::partition_tree("c.oid"),
        p = is_undecided("p.xmax"),
        pr = is_undecided("pr.xmax"),
        pn = is_undecided("pn.xmax"),
        c = is_undecided("c.xmax"),
        i = is_undecided("i.xmax"),
        from = publication::from_publication(config),
        slot = quote_literal(&config.source.slot)
    )
}

/// Whether the transaction that has marked a row as updated or deleted may still be running. One that was rolled back leaves its mark.
fn is_undecided(xmax: &str) -> String {
    format!("{xmax}::text <> '0' and age({xmax}) <= age(pg_snapshot_xmin(pg_current_snapshot())::xid)")
}

fn read(rows: &[Row]) -> anyhow::Result<Look> {
    let mut look = Look::default();
    for row in rows {
        let optional = |index: usize| row.get(index).and_then(Option::as_deref);
        match text(row, 0)? {
            "wal" => {
                look.wal_flushed = text(row, 1)?.parse()?;
                // The first eight digits of a WAL file's name are its timeline, in hexadecimal.
                look.timeline = optional(2).map(|digits| u32::from_str_radix(digits, 16)).transpose()?;
            }
            "publication" => {
                look.publication = Some(PublicationLook {
                    version: text(row, 1)?.to_owned(),
                    outbox: optional(2).map(str::to_owned),
                    is_undecided: text(row, 3)? == "t",
                });
            }
            _ => {
                look.slot_reader = optional(7).map(str::parse).transpose()?;
                look.retention = Some(Retention {
                    confirmed: text(row, 1)?.parse()?,
                    retained_bytes: text(row, 2)?.parse()?,
                    safe_bytes: optional(3).map(str::parse).transpose()?,
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
    use super::{Finding, Look, Pinned, PublicationLook, compare_with_pinned, read};
    use pg_replication::Lsn;

    fn pinned() -> Pinned {
        Pinned {
            publication: "1:2:3:4".to_owned(),
            outbox: Some("public.outbox 9 r p".to_owned()),
            timeline: 1,
            walsender_pid: 50,
        }
    }

    fn look(publication: Option<(&str, bool)>) -> Look {
        Look {
            wal_flushed: Lsn(700),
            timeline: Some(1),
            publication: publication.map(|(version, is_undecided)| PublicationLook {
                version: version.to_owned(),
                outbox: pinned().outbox,
                is_undecided,
            }),
            slot_reader: Some(50),
            retention: None,
        }
    }

    #[test]
    fn only_a_publication_that_is_the_pinned_one_for_certain_verifies_a_position() {
        let found = |publication| compare_with_pinned(&look(publication), &pinned());
        assert_eq!(found(Some(("1:2:3:4", false))), Finding::Unaltered(Lsn(700)));
        assert_eq!(found(Some(("1:2:3:4", true))), Finding::Undecided);
        assert_eq!(found(Some(("1:9:3:4", false))), Finding::Altered);
        assert_eq!(found(Some(("1:9:3:4", true))), Finding::Altered);
        assert_eq!(found(None), Finding::Altered, "it was dropped");
    }

    #[test]
    fn another_table_or_the_same_one_unlogged_is_an_alteration() {
        for outbox in [
            None,
            Some("public.outbox 10 r p"),
            Some("public.outbox 9 r u"),
            Some("public.outbox 9 v p"),
        ] {
            let mut look = look(Some(("1:2:3:4", false)));
            if let Some(publication) = &mut look.publication {
                publication.outbox = outbox.map(str::to_owned);
            }
            assert_eq!(compare_with_pinned(&look, &pinned()), Finding::Altered, "{outbox:?}");
        }
    }

    #[test]
    fn a_look_at_another_server_verifies_and_refutes_nothing() {
        for (reader, timeline, finding) in [
            (None, Some(1), Finding::NotOurStream),
            (Some(51), Some(1), Finding::NotOurStream),
            (Some(50), Some(2), Finding::OtherTimeline(2)),
        ] {
            let mut look = look(Some(("1:9:3:4", false)));
            (look.slot_reader, look.timeline) = (reader, timeline);
            assert_eq!(compare_with_pinned(&look, &pinned()), finding);
        }
        let on_a_standby = Look {
            timeline: None,
            ..look(Some(("1:2:3:4", false)))
        };
        assert_eq!(
            compare_with_pinned(&on_a_standby, &pinned()),
            Finding::Unaltered(Lsn(700))
        );
    }

    #[test]
    fn an_answer_without_a_publication_or_a_slot_is_read() {
        let row = |values: &[&str]| values.iter().map(|value| Some((*value).to_owned())).collect::<Vec<_>>();
        let mut slot = row(&["slot", "0/10", "4096", "", "-1", "reserved", "", "50"]);
        slot[3] = None;
        let look = read(&[row(&["wal", "0/20", "0000000A"]), slot]).unwrap();
        assert_eq!((look.wal_flushed, look.timeline), (Lsn(0x20), Some(10)));
        assert_eq!((look.publication, look.slot_reader), (None, Some(50)));
        let retention = look.retention.unwrap();
        assert_eq!((retention.retained_bytes, retention.safe_bytes), (4096, None));
    }
}
