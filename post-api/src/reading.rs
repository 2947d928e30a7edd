//! Reads the views at a version that the client names: at once if the views have it, and after a wait otherwise.
//!
//! One statement tells whether the views have the version, and what they say then, so both come from one snapshot (`statements.rs`). A request that
//! waits holds no connection. It looks again and again, and each look is one cheap statement.
//!
//! However far behind the views are, waiting requests cannot starve the others. There are limits on how many requests may wait and on how many of
//! them may look at once. And the more requests wait, the less often each of them looks.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRef;
use rest::database::Failure;
use rest::{Database, Problem};
use service::Shutdown;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{Postgres, Row};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout_at};

/// At most this many requests wait at a time. The next one is told at once that the view is behind.
const WAITING_MAX: usize = 256;
/// Pause between the first look and the second. The view is usually some milliseconds behind.
const PAUSE_FIRST: Duration = Duration::from_millis(2);
/// The pauses grow up to this length, while at most [`CALM_MAX`] requests wait.
const PAUSE_LAST: Duration = Duration::from_millis(25);
/// Beyond this many waiting requests the pause grows with their number: all of them together look at most 2,600 times a second.
const CALM_MAX: usize = 64;
/// Second and further looks may use one connection to the database for each so many that there are. The others stay free for first looks and for all
/// other requests.
const LOOKS_SHARE: usize = 4;

/// Reads the views. Clones share the bounds.
#[derive(Clone)]
pub(crate) struct Reader {
    database: Database,
    /// One permit for each request that may wait.
    places: Arc<Semaphore>,
    /// One permit for each look that may run now, beside the first looks.
    looks: Arc<Semaphore>,
    shutdown: Shutdown,
}

impl Reader {
    pub(crate) fn new(database: Database, shutdown: Shutdown) -> Self {
        metrics::describe_histogram!(
            "view_wait_seconds",
            "how long a read waited for the version that it names, by outcome"
        );
        metrics::describe_gauge!("view_waiting_requests", "reads that wait for a version now");
        let looks_max = (database.connections_max() / LOOKS_SHARE).max(1);
        Self {
            database,
            places: Arc::new(Semaphore::new(WAITING_MAX)),
            looks: Arc::new(Semaphore::new(looks_max)),
            shutdown,
        }
    }

    /// Runs a statement again and again until its column `behind` is null, which says that the views have the version. Then returns its row. No
    /// row is an answer, too. After `wait` no new look begins, but the last one may take as long as the database allows.
    ///
    /// # Errors
    /// 503 of the type `urn:problem-type:view-behind` when `wait` is over, the program is to stop, or too many requests wait already;
    /// what [`Failure::problem`] says when a look fails.
    pub(crate) async fn row(
        &self,
        wait: Duration,
        statement: impl Fn() -> Query<'static, Postgres, PgArguments>,
    ) -> Result<Option<PgRow>, Problem> {
        let arrived = Instant::now();
        let deadline = arrived + wait;
        let mut behind = match look(&self.database, statement()).await? {
            Look::UpToDate(row) => return Ok(row),
            Look::Behind(behind) => behind,
        };
        let Some(mut waiting) = self.begin_to_wait(arrived) else {
            metrics::histogram!("view_wait_seconds", "outcome" => "refused").record(arrived.elapsed());
            let reason = format!("and {WAITING_MAX} requests wait for it already");
            return Err(view_behind(&reason, arrived, behind));
        };
        let mut shutdown = self.shutdown.clone();
        let mut pause = PAUSE_FIRST;
        while Instant::now() < deadline {
            tokio::select! {
                () = sleep_until(deadline.min(Instant::now() + pause)) => {}
                () = shutdown.triggered() => {
                    waiting.outcome = "stopped";
                    return Err(view_behind("and the program is stopping", arrived, behind));
                }
            }
            pause = (pause * 3 / 2).min(self.longest_pause());
            // If other requests use all looks until the deadline, the database is busy, and this request ends without another look.
            let Ok(_permit) = timeout_at(deadline, self.looks.acquire()).await else {
                break;
            };
            match look(&self.database, statement()).await {
                Ok(Look::Behind(still)) => behind = still,
                Ok(Look::UpToDate(row)) => {
                    waiting.outcome = "caught_up";
                    return Ok(row);
                }
                Err(problem) => {
                    waiting.outcome = "failed";
                    return Err(problem);
                }
            }
        }
        waiting.outcome = "timed_out";
        Err(view_behind("and the wait is over", arrived, behind))
    }

    pub(crate) fn database(&self) -> &Database {
        &self.database
    }

    /// Counts this request as waiting. `None`: too many wait already.
    fn begin_to_wait(&self, arrived: Instant) -> Option<WaitingRequest> {
        let permit = Arc::clone(&self.places).try_acquire_owned().ok()?;
        metrics::gauge!("view_waiting_requests").increment(1);
        Some(WaitingRequest {
            _permit: permit,
            arrived,
            outcome: "left",
        })
    }

    fn longest_pause(&self) -> Duration {
        let waiting = WAITING_MAX - self.places.available_permits();
        // At most 4, since `WAITING_MAX` limits the number of requests.
        let factor = u32::try_from(waiting.div_ceil(CALM_MAX)).unwrap_or(u32::MAX);
        PAUSE_LAST * factor.max(1)
    }
}

impl FromRef<Reader> for Database {
    fn from_ref(reader: &Reader) -> Self {
        reader.database.clone()
    }
}

/// A request that waits. When it ends, its wait is recorded with the outcome. `left`: the client went away.
struct WaitingRequest {
    _permit: OwnedSemaphorePermit,
    arrived: Instant,
    outcome: &'static str,
}

impl Drop for WaitingRequest {
    fn drop(&mut self) {
        metrics::gauge!("view_waiting_requests").decrement(1);
        metrics::histogram!("view_wait_seconds", "outcome" => self.outcome).record(self.arrived.elapsed());
    }
}

enum Look {
    /// The views have the version.
    UpToDate(Option<PgRow>),
    /// What is behind, as a JSON array.
    Behind(serde_json::Value),
}

async fn look(database: &Database, statement: Query<'_, Postgres, PgArguments>) -> Result<Look, Problem> {
    let read = |row: Option<PgRow>| {
        let behind: Option<String> = row.as_ref().map_or(Ok(None), |row| row.try_get("behind"))?;
        Ok(match behind {
            None => Look::UpToDate(row),
            Some(text) => Look::Behind(serde_json::from_str(&text).map_err(|err| sqlx::Error::Decode(err.into()))?),
        })
    };
    database
        .row(statement)
        .await
        .and_then(|row| read(row).map_err(Failure::Refused))
        .map_err(|failure| failure.problem(&[]))
}

/// The answer that the view is behind. It is 503 and not 504, since the same request may succeed in a moment, as `Retry-After` says.
fn view_behind(reason: &str, arrived: Instant, behind: serde_json::Value) -> Problem {
    // 64 bits hold the milliseconds of some hundred million years.
    let waited_ms = u64::try_from(arrived.elapsed().as_millis()).unwrap_or(u64::MAX);
    Problem::unavailable(format!(
        "the view is not yet at the version that minVersion asks for, {reason}"
    ))
    .with_type("urn:problem-type:view-behind", "View Behind")
    .with_member("waitedMs", waited_ms)
    .with_member("behind", behind)
}
