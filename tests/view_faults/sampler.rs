//! A reader that looks at the views every 50 ms, each time in one snapshot. It must never see something that no sequence of events gives.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::ensure;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

const INTERVAL: Duration = Duration::from_millis(50);

/// A running sampler. Dropping it ends it.
pub(crate) struct Sampler {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    samples: u64,
    /// The newest version of each user that was seen, including deleted users.
    versions: HashMap<i64, i64>,
    violations: Vec<String>,
}

impl Sampler {
    /// Looks at the database at `url`, whatever happens to the server.
    pub(crate) fn start(url: String) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let writing = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let mut client: Option<Client> = None;
            let mut ticks = tokio::time::interval(INTERVAL);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let connected = match client.take() {
                    Some(client) => Ok(client),
                    None => stack::postgres::connect(&url).await,
                };
                let Ok(connected) = connected else { continue };
                // Nothing can be seen before the views are made, or while the server is away.
                if let Ok(sample) = sample(&connected).await {
                    let mut seen = writing.lock().unwrap_or_else(PoisonError::into_inner);
                    seen.take(sample);
                }
                client = (!connected.is_closed()).then_some(connected);
            }
        });
        Self { seen, task }
    }

    /// How many samples were taken.
    ///
    /// # Errors
    /// A sample showed something impossible.
    pub(crate) fn verdict(&self) -> anyhow::Result<u64> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = &seen.violations[..seen.violations.len().min(5)];
        ensure!(shown.is_empty(), "the sampler saw {shown:?}");
        Ok(seen.samples)
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Sample {
    users_counted: i64,
    users_by_department: i64,
    versions: Vec<(i64, i64)>,
}

async fn sample(client: &Client) -> Result<Sample, tokio_postgres::Error> {
    client
        .batch_execute("rollback; begin isolation level repeatable read read only")
        .await?;
    let counted = client.query_one("select count(*) from user_view", &[]).await?;
    let by_department = "select coalesce(sum(user_count), 0)::bigint from department_stats";
    let by_department = client.query_one(by_department, &[]).await?;
    let versions = client.query("select user_id, version from user_view", &[]).await?;
    client.batch_execute("commit").await?;
    Ok(Sample {
        users_counted: counted.get(0),
        users_by_department: by_department.get(0),
        versions: versions.iter().map(|row| (row.get(0), row.get(1))).collect(),
    })
}

impl Seen {
    fn take(&mut self, sample: Sample) {
        self.samples += 1;
        if sample.users_counted != sample.users_by_department {
            self.violations.push(format!(
                "{} rows of user_view and {} users in department_stats",
                sample.users_counted, sample.users_by_department
            ));
        }
        for (user, version) in sample.versions {
            let newest = self.versions.entry(user).or_insert(version);
            if version < *newest {
                self.violations
                    .push(format!("user {user} at version {version} after {newest}"));
            }
            *newest = version.max(*newest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Sample, Seen};

    /// How many rows `user_view` has, how many users `department_stats` has, and the version of each user.
    type Seeing<'a> = (i64, i64, &'a [(i64, i64)]);

    fn seen(samples: &[Seeing<'_>]) -> usize {
        let mut seen = Seen::default();
        for &(users_counted, users_by_department, versions) in samples {
            seen.take(Sample {
                users_counted,
                users_by_department,
                versions: versions.to_vec(),
            });
        }
        seen.violations.len()
    }

    #[test]
    fn a_count_that_differs_and_a_version_that_goes_back_are_seen() {
        assert_eq!(seen(&[(1, 1, &[(7, 2)]), (0, 0, &[]), (1, 1, &[(7, 3)])]), 0);
        assert_eq!(seen(&[(1, 2, &[(7, 2)])]), 1);
        assert_eq!(seen(&[(1, 1, &[(7, 2)]), (1, 1, &[(7, 1)])]), 1);
        assert_eq!(seen(&[(1, 1, &[(7, 2)]), (0, 0, &[]), (1, 1, &[(7, 1)])]), 1);
    }
}
