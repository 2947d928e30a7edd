//! One database with the shipped views and `applied_events`, one consumer group, and the builders that keep them, with failpoints.

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

/// Until the builders must have applied what is published.
const CAUGHT_UP: Duration = Duration::from_secs(90);
/// How many offsets they may be behind when the load begins to pause, in all, and how long that is waited for.
const BEHIND_MAX: i64 = 60;
const BEHIND_WAIT: Duration = Duration::from_secs(10);
/// The positions have been at the topics' ends for so long, and the views still differ: they always will. Longer than what is written
/// takes to be published.
const AT_END: Duration = Duration::from_secs(10);
/// Each look costs the servers something.
const LOOK_INTERVAL: Duration = Duration::from_millis(300);

pub(crate) struct Lane {
    pub site: Arc<Site>,
    pub sampler: Sampler,
    /// The database's and the group's.
    pub name: String,
    complete: Complete,
    bug: String,
    logs: Scratch,
    views: Scratch,
}

impl Lane {
    /// `name`: a-z, 0-9 and _.
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

    /// With this bug in all its builders.
    pub(crate) fn bug(mut self, bug: &str) -> Self {
        bug.clone_into(&mut self.bug);
        self
    }

    /// A builder, not started. With `static_member` a restart takes its partitions over at once; without, a death is noticed after the
    /// session's timeout and an end in order is a rebalance.
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

    /// The directory of logs and of hits.
    pub(crate) fn directory(&self) -> &Path {
        self.logs.path()
    }

    pub(crate) async fn query(&self, sql: &str) -> anyhow::Result<Vec<Vec<Option<String>>>> {
        self.site.query(&self.name, sql).await
    }

    /// The only value of `sql`'s answer.
    pub(crate) async fn value(&self, sql: &str) -> anyhow::Result<String> {
        let rows = self.query(sql).await?;
        let value = rows.into_iter().flatten().flatten().next();
        value.with_context(|| format!("{sql}: no value"))
    }

    /// The load pauses; the views must become what their sources give, with each event applied once and in order, and the sampler must
    /// have seen nothing wrong.
    ///
    /// # Errors
    /// It is not so.
    pub(crate) async fn is_exact(&self) -> anyhow::Result<()> {
        // Before the pause, which holds up the other lanes.
        let start = Instant::now();
        while start.elapsed() < BEHIND_WAIT && self.behind().await.is_none_or(|behind| behind > BEHIND_MAX) {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        let _pause = self.site.load.pause().await;
        self.is_in_order().await?;
        self.settle().await?;
        self.is_in_order().await?;
        let samples = self.sampler.verdict()?;
        ensure!(samples > 10, "{}: only {samples} samples", self.name);
        Ok(())
    }

    /// No event was applied twice or too late.
    ///
    /// # Errors
    /// One was.
    pub(crate) async fn is_in_order(&self) -> anyhow::Result<()> {
        let disorder = oracle::disorder(&self.site, &self.name).await?;
        ensure!(disorder.is_empty(), "{}: {disorder:?}\n{}", self.name, self.log_tails());
        Ok(())
    }

    /// Waits until the views are what their sources give; the load must pause.
    ///
    /// # Errors
    /// They still differ although every event has been applied, or that has not come to pass in time.
    pub(crate) async fn settle(&self) -> anyhow::Result<()> {
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

    /// How many offsets are not applied; none where nobody knows.
    pub(crate) async fn behind(&self) -> Option<i64> {
        let places = positions::places(self).await.ok()?;
        Some(places.iter().map(|place| place.end - place.position).sum())
    }

    pub(crate) fn bootstrap(&self) -> String {
        self.site.pipeline.bootstrap_servers().to_owned()
    }

    /// The last lines of all builders.
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

/// The shipped views, and `applied_events` beside them.
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
