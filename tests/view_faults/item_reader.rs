//! A reader that looks at the view of items all the time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::ensure;
use rig::ViewRig;
use tokio::task::JoinHandle;

/// Looks at the items all the time. An item that was there once must be there at each later look, and never at an older version.
pub(crate) struct ItemReader {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    looks: u64,
    versions: BTreeMap<i64, i64>,
    violations: Vec<String>,
}

impl ItemReader {
    pub(crate) async fn start(rig: &ViewRig) -> Self {
        let client = rig.client().await.expect("a connection");
        let seen = Arc::new(Mutex::new(Seen::default()));
        let writing = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            loop {
                let rows = client.query("select id, version from item", &[]).await;
                let rows = rows.expect("the view is there");
                let now: BTreeMap<i64, i64> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
                writing.lock().unwrap_or_else(PoisonError::into_inner).take(now);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        Self { seen, task }
    }

    /// Ends the reader.
    ///
    /// # Errors
    /// The reader has seen something go back.
    pub(crate) fn end(self) -> anyhow::Result<()> {
        ensure!(!self.task.is_finished(), "the reader could not read");
        self.task.abort();
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(seen.looks > 5, "only {} looks", seen.looks);
        let shown = &seen.violations[..seen.violations.len().min(5)];
        ensure!(shown.is_empty(), "{} times: {shown:?}", seen.violations.len());
        Ok(())
    }
}

impl Seen {
    fn take(&mut self, now: BTreeMap<i64, i64>) {
        self.looks += 1;
        for (id, version) in &self.versions {
            let shown = now.get(id);
            if shown.is_none_or(|shown| shown < version) {
                self.violations
                    .push(format!("item {id} at {shown:?} after version {version}"));
            }
        }
        self.versions = now;
    }
}
