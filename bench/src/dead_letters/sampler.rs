//! Reads again and again at what time each user's version came into the view.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use stack::pipeline::VIEWS_DATABASE;
use stack::{Pipeline, postgres};
use tokio::task::JoinHandle;

use super::round::Users;
use crate::arguments::DeadLetters;

/// How often the view is read while each user gets one change. A version that comes and is replaced between two reads is not seen.
const READS_PER_TURN: u32 = 4;
const READ_INTERVAL_MAX: Duration = Duration::from_millis(500);
/// When each version came into the view, of the users with ids from $1 to $2; microseconds since 1970.
const TIMES_IN_VIEW: &str =
    "select user_id, version, (extract(epoch from pg_xact_commit_timestamp(xmin)) * 1000000)::bigint
    from user_view where user_id between $1 and $2";

/// When each version came into the view (microseconds since 1970), by user and version.
pub(super) type TimesInView = BTreeMap<i64, BTreeMap<i64, i64>>;

/// A task that reads the view until it is told to end.
pub(super) struct ViewSampler {
    task: JoinHandle<anyhow::Result<TimesInView>>,
    is_over: Arc<AtomicBool>,
}

impl ViewSampler {
    /// # Errors
    /// PostgreSQL refuses.
    pub(super) async fn start(pipeline: &Pipeline, options: &DeadLetters, users: Users) -> anyhow::Result<Self> {
        let client = postgres::connect(&pipeline.database_url(VIEWS_DATABASE)?).await?;
        let statement = client.prepare(TIMES_IN_VIEW).await?;
        let turn = Duration::from_secs(1) * options.keys / options.rate;
        let interval = (turn / READS_PER_TURN).min(READ_INTERVAL_MAX);
        let is_over = Arc::new(AtomicBool::new(false));
        let told_to_end = Arc::clone(&is_over);
        let task = tokio::spawn(async move {
            let mut times = TimesInView::new();
            loop {
                // This is asked before the view is read, so that the last read begins after the end.
                let is_last = told_to_end.load(Ordering::Relaxed);
                for row in client.query(&statement, &[&users.first, &users.last]).await? {
                    times.entry(row.get(0)).or_default().insert(row.get(1), row.get(2));
                }
                if is_last {
                    return Ok(times);
                }
                tokio::time::sleep(interval).await;
            }
        });
        Ok(Self { task, is_over })
    }

    /// Reads the view a last time, and gives back all times that were seen.
    ///
    /// # Errors
    /// PostgreSQL refused.
    pub(super) async fn end(self) -> anyhow::Result<TimesInView> {
        self.is_over.store(true, Ordering::Relaxed);
        self.task.await?
    }
}
