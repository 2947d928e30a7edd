//! A builder that meets a trouble at a failpoint. It is started again whenever it dies, as a supervisor would do.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::ensure;
use stack::Program;

use super::lane::Lane;

const SIGKILL: i32 = 9;
/// By then a failpoint must have acted.
const DEADLINE: Duration = Duration::from_secs(90);
/// The time between two actions of the test.
const ACTION_INTERVAL: Duration = Duration::from_millis(200);

/// What makes the builder come to a failpoint again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// It applies events.
    Working,
    /// It starts. It is killed each time after it has come to the point.
    Starting,
    /// It ends. It is stopped and started again.
    Stopping,
    /// It loses its connection in the middle of a COMMIT.
    CutOff,
    /// It gets events that cannot be applied.
    BadEvents,
    /// An operator changes dead letters.
    Letters,
}

/// One trouble: `action` happens at the failpoint `point` when the program comes there for the `hit`th time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trouble {
    pub point: &'static str,
    pub reach: Reach,
    pub action: &'static str,
    pub hit: usize,
}

impl Trouble {
    /// The program with the environment that makes this trouble, and the file that counts the hits.
    pub(crate) fn arm(&self, lane: &Lane, program: &Program) -> (Program, PathBuf) {
        let Self { point, action, hit, .. } = self;
        let hits = lane
            .directory()
            .join(format!("{}-{point}-{}-{hit}", program.name(), action.replace(':', "-")));
        let armed = program
            .with_env("VIEW_BUILDER_FAILPOINT", &format!("{point}={action}@{hit}"))
            .env("VIEW_BUILDER_FAILPOINT_HITS", &hits.to_string_lossy());
        (armed, hits)
    }

    /// Lets a builder of `lane` meet this trouble. When this returns, the builder runs: it is in the state that the trouble has left, or it was
    /// started again after it died.
    ///
    /// # Errors
    /// The point was not reached, or the builder ended by itself.
    pub(crate) async fn meet(&self, lane: &Lane, builder: &Program) -> anyhow::Result<Program> {
        let (builder, hits) = self.arm(lane, builder);
        let started = Instant::now();
        let (mut hits_before, mut last_action) = (0, Instant::now());
        builder.start()?;
        if self.reach == Reach::CutOff {
            lane.query("insert into slow_commits values (0.3)").await?;
        }
        loop {
            let has_died = restart_if_dead(&builder)?;
            let count = hits_in(&hits);
            if count >= self.hit && (has_died || !self.action.starts_with("kill")) {
                break;
            }
            ensure!(
                started.elapsed() < DEADLINE,
                "{self:?} was only hit {count} times\n{}",
                builder.log_tail(20)
            );
            match self.reach {
                Reach::Working => {}
                // The failpoint acts right now.
                _ if count >= self.hit => {}
                Reach::Starting if count > hits_before => {
                    builder.kill_hard().await;
                    builder.start()?;
                }
                Reach::Stopping if is_working(lane, &builder).await => {
                    if let Some(process) = builder.process() {
                        process.signal(rustix::process::Signal::TERM);
                        if process.exited().await.signal().is_none() {
                            builder.start()?;
                        }
                    }
                }
                Reach::CutOff => cut_off_in_commit(lane).await?,
                Reach::BadEvents if last_action.elapsed() > ACTION_INTERVAL => {
                    lane.site.write_bad_event().await;
                    last_action = Instant::now();
                }
                Reach::Letters if last_action.elapsed() > ACTION_INTERVAL => {
                    discard_a_letter_before_its_next_event(lane).await?;
                    last_action = Instant::now();
                }
                Reach::Starting | Reach::Stopping | Reach::Letters | Reach::BadEvents => {}
            }
            hits_before = count;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if self.reach == Reach::CutOff {
            lane.query("delete from slow_commits").await?;
        }
        Ok(builder)
    }
}

/// An operator discards a dead letter, and another event of its key comes before the builder can know.
async fn discard_a_letter_before_its_next_event(lane: &Lane) -> anyhow::Result<()> {
    let key = lane.site.write_bad_event().await;
    let discard = format!(
        "update view_dead_letters set discarded_at = clock_timestamp()
         where key = convert_to('{key}', 'UTF8') and discarded_at is null returning id"
    );
    let start = Instant::now();
    while lane.query(&discard).await?.is_empty() {
        ensure!(start.elapsed() < DEADLINE, "no dead letter of {key}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    lane.site.write_bad_event_of(key).await;
    Ok(())
}

/// How often the failpoint was hit.
pub(crate) fn hits_in(path: &PathBuf) -> usize {
    std::fs::read_to_string(path).unwrap_or_default().lines().count()
}

/// Starts the builder again if it was killed. Returns whether it was.
///
/// # Errors
/// The builder ended in another way.
fn restart_if_dead(builder: &Program) -> anyhow::Result<bool> {
    let status = builder.process().and_then(|process| process.exit_status());
    let Some(status) = status else { return Ok(false) };
    ensure!(
        status.signal() == Some(SIGKILL),
        "the builder ended by itself ({status})\n{}",
        builder.log_tail(20)
    );
    builder.start()?;
    Ok(true)
}

/// Whether the builder has claimed its partitions. An end before that would show nothing.
async fn is_working(lane: &Lane, builder: &Program) -> bool {
    let Some(process) = builder.process() else { return false };
    let owner = format!("%/{}", process.id());
    let sql = format!("select count(*) from view_positions where owner like '{owner}'");
    lane.value(&sql).await.is_ok_and(|count| count != "0")
}

/// Ends the builder's connection during its COMMIT, which takes long here.
async fn cut_off_in_commit(lane: &Lane) -> anyhow::Result<()> {
    let cut = "select pg_terminate_backend(pid) from pg_stat_activity
        where datname = current_database() and usename = 'view_builder' and wait_event = 'PgSleep'";
    lane.query(cut).await.map(drop)
}
