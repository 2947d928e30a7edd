//! How long a batch takes in a view, and in a view that is ten times larger.

use std::fs;
use std::time::Instant;

use anyhow::Context;
use serde_json::json;
use stack::pipeline::VIEWS_DATABASE;
use stack::{PipelineBuilder, checkout, postgres};
use tokio_postgres::Client;

use crate::arguments::ViewCost;
use crate::report::Report;
use crate::statistics::{median, thousands};

/// Events of one batch, as view-builder makes them.
pub(crate) const BATCH_EVENTS: u64 = 5_000;
/// Events of one batch while the views are filled.
const FILL_EVENTS: u64 = 10_000;
/// How many times larger the larger view is.
const GROWTH: u64 = 10;
/// The goal: a batch in the larger view takes at most this many times as long as one in the smaller view.
const RATIO_MAX: f64 = 1.2;

/// A view, as its folder describes it.
pub(crate) struct View {
    /// Name of its folder.
    name: String,
    /// Its statement, with the arrays of a batch as $1 to $5, the last one as text.
    pub(crate) statement: String,
    /// Its statement, with the arrays from the table `batch`.
    apply: String,
    reads_users: bool,
    reads_posts: bool,
}

/// Which events a batch has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Changed {
    Users,
    Posts,
}

/// One batch, applied to all views in one transaction.
struct Run {
    whole_ms: f64,
    /// The part of each view, in the views' order.
    by_view_ms: Vec<f64>,
}

/// All batches of one kind at one size of the views.
struct Series {
    changed: Changed,
    /// Users in the view.
    users: u64,
    runs: Vec<Run>,
}

/// # Errors
/// A part failed, or a view's SQL is refused.
pub(crate) async fn measure(options: &ViewCost, builder: PipelineBuilder) -> anyhow::Result<Report> {
    let pipeline = builder.prepare().await?;
    let client = postgres::connect(&pipeline.database_url(VIEWS_DATABASE)?).await?;
    let views = install(&client).await?;
    let mut headings = vec!["changed", "users in the view", "ms a batch", "us/event", "ratio"];
    let names: Vec<&'static str> = views.iter().map(|view| &*view.name.clone().leak()).collect();
    headings.extend(names);
    let mut report = Report::begin(&pipeline, &headings).await?;
    let all_series = measure_sizes(&client, &views, options).await?;
    drop(client);
    pipeline.stop().await?;
    write_into_report(&mut report, &all_series);
    Ok(report)
}

/// Measures both kinds of batches: first in views of the size that is asked for, then in views ten times larger.
async fn measure_sizes(client: &Client, views: &[View], options: &ViewCost) -> anyhow::Result<Vec<Series>> {
    let mut all_series: Vec<Series> = Vec::new();
    let (mut filled, mut version) = (0, 1);
    for users in [options.users, options.users * GROWTH] {
        tracing::info!(
            "filling the views with {} users and as many posts",
            thousands(users as f64)
        );
        fill(client, views, filled + 1, users).await?;
        filled = users;
        for changed in [Changed::Users, Changed::Posts] {
            let mut runs = Vec::new();
            // There is one run more than asked for. The first one warms up, and does not count.
            for number in 0..=options.runs {
                version += 1;
                let ids = ids_of_a_batch(options.users);
                client.batch_execute(&batch(changed, &ids, version)).await?;
                let run = apply(client, views, changed).await?;
                if number > 0 {
                    runs.push(run);
                }
            }
            all_series.push(Series { changed, users, runs });
            if let Some(series) = all_series.last() {
                tracing::info!(
                    "  {}: {:.1} ms for {} events, ratio {:.2}",
                    changed.in_words(),
                    series.whole_ms(),
                    thousands(BATCH_EVENTS as f64),
                    series.ratio(&all_series)
                );
            }
        }
    }
    Ok(all_series)
}

fn write_into_report(report: &mut Report, all_series: &[Series]) {
    report.notes = vec!["Medians; the views' own columns are their parts in ms.".to_owned()];
    for series in all_series {
        let kind = series.changed.in_words();
        for run in &series.runs {
            report.runs.push(
                json!({"changed": kind, "users": series.users, "batch_ms": run.whole_ms, "views_ms": run.by_view_ms}),
            );
        }
        report.table.add_row(series.table_row(all_series));
        if series.ratio(all_series) > RATIO_MAX {
            report.notes.push(format!("The ratio for {kind} is above {RATIO_MAX}."));
        }
    }
}

impl Changed {
    fn in_words(self) -> &'static str {
        match self {
            Self::Users => "users",
            Self::Posts => "posts",
        }
    }
}

impl View {
    fn reads(&self, changed: Changed) -> bool {
        match changed {
            Changed::Users => self.reads_users,
            Changed::Posts => self.reads_posts,
        }
    }
}

impl Series {
    /// The median of a whole batch.
    fn whole_ms(&self) -> f64 {
        median(&self.runs.iter().map(|run| run.whole_ms).collect::<Vec<_>>())
    }

    /// The median of one view's part.
    fn part_ms(&self, view: usize) -> f64 {
        median(&self.runs.iter().map(|run| run.by_view_ms[view]).collect::<Vec<_>>())
    }

    /// How many times as long as at the first size, which is the smaller one.
    fn ratio(&self, all_series: &[Series]) -> f64 {
        let first = all_series.iter().find(|series| series.changed == self.changed);
        self.whole_ms() / first.unwrap_or(self).whole_ms()
    }

    fn table_row(&self, all_series: &[Series]) -> Vec<String> {
        let whole_ms = self.whole_ms();
        let mut cells = vec![
            self.changed.in_words().to_owned(),
            thousands(self.users as f64),
            format!("{whole_ms:.1}"),
            format!("{:.1}", whole_ms * 1e3 / BATCH_EVENTS as f64),
            format!("{:.2}", self.ratio(all_series)),
        ];
        let views = self.runs.first().map_or(0, |run| run.by_view_ms.len());
        cells.extend((0..views).map(|view| format!("{:.1}", self.part_ms(view))));
        cells
    }
}

/// The shipped views in this database, in the order in which view-builder applies them.
pub(crate) async fn install(client: &Client) -> anyhow::Result<Vec<View>> {
    client
        .batch_execute(
            "set synchronous_commit = off;
             create table batch (a1 text[], a2 bigint[], a3 bigint[], a4 text[], a5 jsonb[])",
        )
        .await?;
    let directory = checkout::root().join("sql/views");
    let mut views = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
        let folder = entry?.path();
        let name = folder
            .file_name()
            .and_then(|name| name.to_str())
            .context("a view's folder")?;
        let read = |file: &str| fs::read_to_string(folder.join(file)).with_context(|| format!("{name}/{file}"));
        client.batch_execute(&read("table.sql")?).await?;
        let statement = read("apply.sql")?;
        let apply = (1..=5).fold(statement.clone(), |text, number| {
            text.replace(&format!("${number}"), &format!("(select a{number} from batch)"))
        });
        views.push(View {
            name: name.to_owned(),
            reads_users: reads(&statement, events::USER_TOPIC),
            reads_posts: reads(&statement, events::POST_TOPIC),
            statement: statement.replace("$5", "$5::text[]"),
            apply,
        });
    }
    views.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(views)
}

/// Whether the statement names the topic in its line of topics.
fn reads(statement: &str, topic: &str) -> bool {
    let mut lines_of_topics = statement.lines().filter(|line| line.starts_with("-- topics:"));
    lines_of_topics.any(|line| line.contains(topic))
}

/// Applies the first version of the users and of the posts with ids from `first` to `last`.
async fn fill(client: &Client, views: &[View], first: u64, last: u64) -> anyhow::Result<()> {
    for changed in [Changed::Users, Changed::Posts] {
        for from in (first..=last).step_by(usize::try_from(FILL_EVENTS)?) {
            let ids = format!("generate_series({from}::bigint, {})", last.min(from + FILL_EVENTS - 1));
            client.batch_execute(&batch(changed, &ids, 1)).await?;
            apply(client, views, changed).await?;
        }
    }
    // These are two calls, because several statements in one call are one transaction, in which no vacuum can run.
    client.batch_execute("vacuum analyze").await?;
    client.batch_execute("checkpoint").await?;
    Ok(())
}

/// The ids of a measured batch, spread over the smaller view. They are the same at both sizes.
fn ids_of_a_batch(users: u64) -> String {
    format!("generate_series(1::bigint, {users}, {})", users / BATCH_EVENTS)
}

/// Fills the table `batch`. Each version moves users to other departments and posts to other authors.
pub(crate) fn batch(changed: Changed, ids: &str, version: u64) -> String {
    let (topic, entity) = match changed {
        Changed::Users => (
            "user-events",
            format!(
                "'name', '홍길동', 'email', 'gildong.hong.' || n || '@example.com', 'department', '부서' || (n + {version}) % 8,
                 'status', case n % 8 when 0 then 'INACTIVE' else 'ACTIVE' end, 'createdAt', '2026-01-01T00:00:00'"
            ),
        ),
        Changed::Posts => (
            "post-events",
            format!(
                "'authorId', greatest(1, n - {version} % 2), 'title', 't', 'content', 'c',
                 'createdAt', '2026-01-01T00:00:00'::timestamp + n * interval '1 second'"
            ),
        ),
    };
    format!(
        "truncate batch;
         insert into batch
         select array_agg('{topic}'::text), array_agg(n), array_agg({version}::bigint), array_agg(''::text),
            array_agg(jsonb_build_object('id', n, 'updatedAt', '2026-01-02T00:00:00'::timestamp + {version} * interval '1 second',
                {entity}))
         from {ids} as n"
    )
}

/// Applies the table `batch` to all views that read its events, in one transaction.
async fn apply(client: &Client, views: &[View], changed: Changed) -> anyhow::Result<Run> {
    let start = Instant::now();
    client.batch_execute("begin").await?;
    let mut by_view_ms = Vec::new();
    for view in views {
        let start = Instant::now();
        if view.reads(changed) {
            client
                .batch_execute(&view.apply)
                .await
                .with_context(|| view.name.clone())?;
        }
        by_view_ms.push(start.elapsed().as_secs_f64() * 1e3);
    }
    client.batch_execute("commit").await?;
    Ok(Run {
        whole_ms: start.elapsed().as_secs_f64() * 1e3,
        by_view_ms,
    })
}
