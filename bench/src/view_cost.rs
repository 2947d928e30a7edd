//! What a batch costs, in a view and in one ten times larger.

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
const GROWTH: u64 = 10;
/// What the ratio of the medians should not be above.
const RATIO_MAX: f64 = 1.2;

/// A view's folder name and its statement.
pub(crate) struct View {
    name: String,
    /// With the arrays of a batch as $1 to $5, the last one as text.
    pub(crate) statement: String,
    /// With arrays from the table `batch`.
    apply: String,
    /// Whether it reads users' events, and whether posts' events.
    reads: [bool; 2],
}

/// # Errors
/// A part failed, or a view's SQL is refused.
pub(crate) async fn measure(asked: &ViewCost, builder: PipelineBuilder) -> anyhow::Result<Report> {
    let pipeline = builder.prepare().await?;
    let client = postgres::connect(&pipeline.database_url(VIEWS_DATABASE)?).await?;
    let views = install(&client).await?;
    let mut headings = vec!["changed", "users in the view", "ms a batch", "us/event", "ratio"];
    let names: Vec<&'static str> = views.iter().map(|view| &*view.name.clone().leak()).collect();
    headings.extend(names);
    let mut report = Report::begin(&pipeline, &headings).await?;
    report.notes = vec!["Medians; the views' own columns are their parts in ms.".to_owned()];
    let mut smaller: [Option<f64>; 2] = [None, None];
    let (mut filled, mut version) = (0, 1);
    for users in [asked.users, asked.users * GROWTH] {
        tracing::info!(
            "filling the views with {} users and as many posts",
            thousands(users as f64)
        );
        fill(&client, &views, filled + 1, users).await?;
        filled = users;
        for posts in [false, true] {
            let kind = if posts { "posts" } else { "users" };
            // One more than asked for: the first one warms up.
            let (mut wholes, mut parts) = (Vec::new(), vec![Vec::new(); views.len()]);
            for run in 0..=asked.runs {
                version += 1;
                client
                    .batch_execute(&batch(posts, &changed(asked.users), version))
                    .await?;
                let (whole, by_view) = apply(&client, &views, posts).await?;
                if run > 0 {
                    wholes.push(whole);
                    by_view.iter().zip(&mut parts).for_each(|(ms, all)| all.push(*ms));
                    report
                        .runs
                        .push(json!({"changed": kind, "users": users, "batch_ms": whole, "views_ms": by_view}));
                }
            }
            let whole = median(&wholes);
            let slot = &mut smaller[usize::from(posts)];
            let ratio = whole / *slot.get_or_insert(whole);
            tracing::info!(
                "  {kind}: {whole:.1} ms for {} events, ratio {ratio:.2}",
                thousands(BATCH_EVENTS as f64)
            );
            let mut cells = vec![
                kind.to_owned(),
                thousands(users as f64),
                format!("{whole:.1}"),
                format!("{:.1}", whole * 1e3 / BATCH_EVENTS as f64),
                format!("{ratio:.2}"),
            ];
            cells.extend(parts.iter().map(|all| format!("{:.1}", median(all))));
            report.table.row(cells);
            if ratio > RATIO_MAX {
                report.notes.push(format!("The ratio for {kind} is above {RATIO_MAX}."));
            }
        }
    }
    drop(client);
    pipeline.stop().await?;
    Ok(report)
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
            reads: [events::USER_TOPIC, events::POST_TOPIC].map(|topic| {
                let mut heads = apply.lines().filter(|line| line.starts_with("-- topics:"));
                heads.any(|line| line.contains(topic))
            }),
            statement: statement.replace("$5", "$5::text[]"),
            apply,
        });
    }
    views.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(views)
}

async fn fill(client: &Client, views: &[View], first: u64, last: u64) -> anyhow::Result<()> {
    for posts in [false, true] {
        for from in (first..=last).step_by(usize::try_from(FILL_EVENTS)?) {
            let ids = format!("generate_series({from}::bigint, {})", last.min(from + FILL_EVENTS - 1));
            client.batch_execute(&batch(posts, &ids, 1)).await?;
            apply(client, views, posts).await?;
        }
    }
    // One by one: several statements in one text are one transaction, in which there is no vacuum.
    client.batch_execute("vacuum analyze").await?;
    client.batch_execute("checkpoint").await?;
    Ok(())
}

/// The same ids at both sizes, all over the smaller view.
fn changed(users: u64) -> String {
    format!("generate_series(1::bigint, {users}, {})", users / BATCH_EVENTS)
}

/// Fills the table `batch`. Each version moves users to other departments and posts to other authors.
pub(crate) fn batch(posts: bool, ids: &str, version: u64) -> String {
    let (topic, entity) = if posts {
        (
            "post-events",
            format!(
                "'authorId', greatest(1, n - {version} % 2), 'title', 't', 'content', 'c',
                 'createdAt', '2026-01-01T00:00:00'::timestamp + n * interval '1 second'"
            ),
        )
    } else {
        (
            "user-events",
            format!(
                "'name', '홍길동', 'email', 'gildong.hong.' || n || '@example.com', 'department', '부서' || (n + {version}) % 8,
                 'status', case n % 8 when 0 then 'INACTIVE' else 'ACTIVE' end, 'createdAt', '2026-01-01T00:00:00'"
            ),
        )
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

/// Milliseconds of the whole transaction, and of each view.
async fn apply(client: &Client, views: &[View], posts: bool) -> anyhow::Result<(f64, Vec<f64>)> {
    let start = Instant::now();
    client.batch_execute("begin").await?;
    let mut by_view = Vec::new();
    for view in views {
        let start = Instant::now();
        if view.reads[usize::from(posts)] {
            client
                .batch_execute(&view.apply)
                .await
                .with_context(|| view.name.clone())?;
        }
        by_view.push(start.elapsed().as_secs_f64() * 1e3);
    }
    client.batch_execute("commit").await?;
    Ok((start.elapsed().as_secs_f64() * 1e3, by_view))
}
