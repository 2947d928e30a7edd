//! A reader who looks at the view every 50 ms, each time in one snapshot.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use stack::Pipeline;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use super::connect;

const SAMPLE_INTERVAL: Duration = Duration::from_millis(50);

/// Reads until it is told to end. It panics if a user goes back to an older version, or if the statistics differ from the users.
pub(super) struct CarefulReader {
    is_over: Arc<AtomicBool>,
    samples: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl CarefulReader {
    pub(super) async fn start(pipeline: &Pipeline) -> Self {
        let client = connect(pipeline).await;
        let (is_over, samples) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (told_to_end, count) = (Arc::clone(&is_over), Arc::clone(&samples));
        let task = tokio::spawn(async move {
            let mut versions = HashMap::new();
            while !told_to_end.load(Ordering::Relaxed) {
                take_sample(&client, &mut versions).await;
                count.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(SAMPLE_INTERVAL).await;
            }
        });
        Self { is_over, samples, task }
    }

    /// Returns how often the reader has looked.
    pub(super) async fn end(self) -> u64 {
        self.is_over.store(true, Ordering::Relaxed);
        self.task.await.expect("a reader who never sees anything wrong");
        self.samples.load(Ordering::Relaxed)
    }
}

/// `versions` has the version of each user that was seen last.
async fn take_sample(client: &Client, versions: &mut HashMap<i64, i64>) {
    client
        .batch_execute("begin isolation level repeatable read read only")
        .await
        .expect("begin");
    let users = client
        .query("select user_id, version from user_view", &[])
        .await
        .expect("the view");
    let counted: i64 = client
        .query_one("select coalesce(sum(user_count), 0)::bigint from department_stats", &[])
        .await
        .expect("the statistics")
        .get(0);
    client.batch_execute("commit").await.expect("commit");
    assert_eq!(i64::try_from(users.len()), Ok(counted), "the statistics");
    for user in &users {
        let (id, version): (i64, i64) = (user.get(0), user.get(1));
        let before = versions.insert(id, version).unwrap_or(0);
        assert!(before <= version, "user {id} went back from {before} to {version}");
    }
}
