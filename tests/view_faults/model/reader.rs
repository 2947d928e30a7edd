//! A reader that looks at the view all the time.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::ensure;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

/// The time between two looks.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(30);

/// A running reader. Its task fails if the counts are wrong, if a row is gone, or if an item goes back to an older version.
pub(super) struct Reader {
    stop: Arc<AtomicBool>,
    task: JoinHandle<anyhow::Result<u64>>,
}

impl Reader {
    pub(super) fn start(client: Client) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let mut seen = HashMap::new();
            let mut looks = 0;
            while !stopped.load(Ordering::Relaxed) {
                client
                    .batch_execute("begin isolation level repeatable read read only")
                    .await?;
                let rows = client.query("select topic, id, version from item", &[]).await?;
                let counted = client
                    .query_one(
                        "select (select coalesce(sum(items), 0)::bigint from kind_count) - (select count(*) from item where kind is not null)",
                        &[],
                    )
                    .await?;
                client.batch_execute("commit").await?;
                let difference: i64 = counted.get(0);
                ensure!(difference == 0, "the counts are {difference} off");
                ensure!(
                    rows.len() >= seen.len(),
                    "{} rows, there were {}",
                    rows.len(),
                    seen.len()
                );
                for row in &rows {
                    let (key, version): ((String, i64), i64) = ((row.get(0), row.get(1)), row.get(2));
                    let before = seen.insert(key.clone(), version).unwrap_or(0);
                    ensure!(before <= version, "{key:?} went back from {before} to {version}");
                }
                looks += 1;
                tokio::time::sleep(SAMPLE_INTERVAL).await;
            }
            Ok(looks)
        });
        Self { stop, task }
    }

    /// Whether the reader has seen something impossible, or could not read.
    pub(super) fn has_failed(&self) -> bool {
        self.task.is_finished()
    }

    /// Ends the reader. Returns how often it has looked.
    ///
    /// # Errors
    /// The reader has seen something impossible, or could not read.
    pub(super) async fn end(self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?
    }
}
