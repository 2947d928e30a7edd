//! A lane: one database with the shipped views and `applied_events`, one consumer group, and the builders that keep the views. The builders have
//! failpoints.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use stack::scratch::Scratch;
use stack::{Program, checkout, port};

use super::oracle::{self, Complete};
use super::positions;
use super::sampler::Sampler;
use super::site::Site;

/// By then the builders must have applied everything that is published.
const CAUGHT_UP: Duration = Duration::from_secs(90);
/// Before the load pauses, the builders should be behind by at most so many offsets. The test waits for that only so long.
const BEHIND_MAX: i64 = 60;
const BEHIND_WAIT: Duration = Duration::from_secs(10);
/// If the positions are at the ends of the topics for so long, and the views still differ, they always will. This is longer than a row takes to be
/// published.
const AT_END: Duration = Duration::from_secs(10);
/// The time between two looks, because each look costs the servers something.
const LOOK_INTERVAL: Duration = Duration::from_millis(300);

pub(crate) struct Lane {
    pub site: Arc<Site>,
    pub sampler: Sampler,
    /// The name of the database and of the group.
    pub name: String,
    complete: Complete,
    bug: String,
    logs: Scratch,
    views: Scratch,
}

impl Lane {
    /// Makes a lane. `name` may have a-z, 0-9 and _.
    pub(crate) async fn new(site: &Arc<Site>, name: &str, complete: Complete) -> Self {
        let sql = format!("create database {name} owner view_builder");
        site.query("postgres", &sql).await.expect("a database");
        let url = site.pipeline.database_url(name).expect("a URL");
        Self {
            site: Arc::clone(site),
            sampler: Sampler::start(url),
            name: name.to_owned(),
            complete,
            bug: String::new(),
            logs: Scratch::temporary("outbox-lane-").expect("a directory for logs"),
            views: views().expect("a directory of views"),
        }
    }

    /// Sets a planted bug for all builders of the lane.
    pub(crate) fn bug(mut self, bug: &str) -> Self {
        bug.clone_into(&mut self.bug);
        self
    }

    /// A builder, not yet started. A static member takes its partitions over at once after a restart. Without `static_member`, Kafka notices a death
    /// only after the session's timeout, and an end in order causes a rebalance.
    pub(crate) fn builder(&self, name: &str, static_member: bool) -> Program {
        let port = port::free().expect("a free port");
        let bootstrap = self.site.pipeline.bootstrap_servers();
        let binary = checkout::programs_directory()
            .expect("the programs")
            .join("view-builder-faults");
        let url = self.site.pipeline.database_url(&self.name).expect("a URL");
        let url = url.replacen("postgres@", "view_builder@", 1);
        let rows = match self.complete {
            Complete::EachEvent => "1",
            Complete::LatestOfEachKey => "5000",
        };
        let program = Program::new(name, &binary, self.logs.path().join(format!("{name}.log")), port)
            .argument("run")
            .env("DATABASE_URL", &url)
            .env("KAFKA_BOOTSTRAP_SERVERS", bootstrap)
            .env("GROUP_ID", &self.name)
            .env("VIEWS", &self.views.path().to_string_lossy())
            .env("BATCH_ROWS", rows)
            .env("VIEW_BUILDER_BUG", &self.bug)
            .env("ADMIN_LISTEN", &format!("127.0.0.1:{port}"))
            .env("LOG_FORMAT", "text");
        if static_member {
            program.env("GROUP_INSTANCE_ID", name)
        } else {
            program
        }
    }

    /// The directory of the logs and of the files that count hits.
    pub(crate) fn directory(&self) -> &Path {
        self.logs.path()
    }

    pub(crate) async fn query(&self, sql: &str) -> anyhow::Result<Vec<Vec<Option<String>>>> {
        self.site.query(&self.name, sql).await
    }

    /// Runs `sql`, which must give one value. Returns it as text.
    pub(crate) async fn value(&self, sql: &str) -> anyhow::Result<String> {
        let rows = self.query(sql).await?;
        let value = rows.into_iter().flatten().flatten().next();
        value.with_context(|| format!("{sql}: no value"))
    }

    /// Pauses the load, and waits until the views are what their sources give. Checks that each event was applied once and in order, and that the
    /// sampler has seen nothing wrong.
    ///
    /// # Errors
    /// One of these is not true.
    pub(crate) async fn check_exact(&self) -> anyhow::Result<()> {
        // This comes before the pause, because a pause makes the other lanes wait.
        let start = Instant::now();
        while start.elapsed() < BEHIND_WAIT && self.behind().await.is_none_or(|behind| behind > BEHIND_MAX) {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        let _pause = self.site.load.pause().await;
        self.check_order().await?;
        self.wait_until_views_are_right().await?;
        self.check_order().await?;
        let samples = self.sampler.verdict()?;
        ensure!(samples > 10, "{}: only {samples} samples", self.name);
        Ok(())
    }

    /// Checks that no event was applied twice or too late.
    ///
    /// # Errors
    /// An event was.
    pub(crate) async fn check_order(&self) -> anyhow::Result<()> {
        let disorder = oracle::disorder(&self.site, &self.name).await?;
        ensure!(disorder.is_empty(), "{}: {disorder:?}\n{}", self.name, self.log_tails());
        Ok(())
    }

    /// Waits until the views are what their sources give. The load must pause.
    ///
    /// # Errors
    /// The views still differ after every event has been applied, or not every event was applied in time.
    pub(crate) async fn wait_until_views_are_right(&self) -> anyhow::Result<()> {
        let start = Instant::now();
        let mut at_end_since: Option<Instant> = None;
        loop {
            if positions::is_all_applied(self).await.is_ok_and(|applied| applied) {
                let found = oracle::differences(&self.site, &self.name, self.complete).await;
                if found.as_ref().is_ok_and(Vec::is_empty) {
                    return Ok(());
                }
                let since = *at_end_since.get_or_insert_with(Instant::now);
                ensure!(
                    since.elapsed() < AT_END,
                    "{}: every event was applied, and the views differ: {found:#?}\n{}",
                    self.name,
                    self.log_tails()
                );
            } else {
                at_end_since = None;
            }
            ensure!(
                start.elapsed() < CAUGHT_UP,
                "{}: events are still not applied\n{}",
                self.name,
                self.log_tails()
            );
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// How many offsets are not applied yet. None: this cannot be found out now.
    pub(crate) async fn behind(&self) -> Option<i64> {
        let partitions = positions::read_partition_states(self).await.ok()?;
        Some(
            partitions
                .iter()
                .map(|partition| partition.end - partition.position)
                .sum(),
        )
    }

    pub(crate) fn bootstrap(&self) -> String {
        self.site.pipeline.bootstrap_servers().to_owned()
    }

    /// The last lines of the logs of all builders.
    pub(crate) fn log_tails(&self) -> String {
        let entries = std::fs::read_dir(self.logs.path()).into_iter().flatten();
        let logs = entries.filter_map(Result::ok).map(|entry| entry.path());
        let logs = logs.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
        logs.map(|path| {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            format!(
                "--- {}\n{}\n",
                path.display(),
                lines[lines.len().saturating_sub(25)..].join("\n")
            )
        })
        .collect()
    }
}

/// A directory with the shipped views and `applied_events`.
fn views() -> anyhow::Result<Scratch> {
    let directory = Scratch::temporary("outbox-views-")?;
    let root = checkout::root();
    let own = root.join("tests/view_faults/applied_events");
    std::os::unix::fs::symlink(own, directory.path().join("applied_events"))?;
    for entry in std::fs::read_dir(root.join("sql/views"))? {
        let entry = entry?;
        std::os::unix::fs::symlink(entry.path(), directory.path().join(entry.file_name()))?;
    }
    Ok(directory)
}
