//! Waits until the view has the created users, and measures how long each row took from its commit to the view.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;
use stack::Pipeline;
use stack::pipeline::{USERS_DATABASE, VIEWS_DATABASE};
use stack::postgres;

use crate::load::latencies_us;
use crate::progress::Progress;

/// How often the rows of the view are counted.
const COUNT_INTERVAL: Duration = Duration::from_millis(200);
/// If no row has come for so long, none will come.
const STANDSTILL: Duration = Duration::from_secs(60);
/// If there are more rows, so many of them are taken for the latencies, evenly spread.
const SAMPLES_MAX: i64 = 200_000;

/// The state of the view after the wait.
#[derive(Debug)]
pub(crate) struct View {
    /// How many of the expected rows are there.
    pub rows: u64,
    /// The time from `start` until the wait was over: until all of them were there, or until nothing more came.
    pub elapsed: Duration,
    /// The time from the commit of a user's row to the commit of its row in the view, in microseconds. None: the server does not keep commit times.
    pub commit_to_view_us: Option<Histogram<u64>>,
}

/// Waits until the view has `created` rows with ids from `ids.0` to `ids.1`, or until no row has come for a minute.
pub(crate) async fn wait(pipeline: &Pipeline, ids: (i64, i64), created: u64, start: Instant) -> anyhow::Result<View> {
    let client = postgres::connect(&pipeline.database_url(VIEWS_DATABASE)?).await?;
    let mut progress = Progress::start("rows in the view", created);
    let (mut rows, mut last_change) = (0, Instant::now());
    loop {
        let row = client
            .query_one(
                "select count(*) from user_view where user_id between $1 and $2",
                &[&ids.0, &ids.1],
            )
            .await
            .context("cannot count the view")?;
        let counted = u64::try_from(row.get::<_, i64>(0))?;
        if counted != rows {
            (rows, last_change) = (counted, Instant::now());
            progress.set(rows);
        }
        if rows >= created || last_change.elapsed() > STANDSTILL {
            break;
        }
        tokio::time::sleep(COUNT_INTERVAL).await;
    }
    let elapsed = start.elapsed();
    progress.finish(rows);
    Ok(View {
        rows,
        elapsed,
        commit_to_view_us: commit_to_view_latencies(pipeline, &client, ids).await?,
    })
}

/// Both databases are in one cluster, so their commit times come from one clock.
async fn commit_to_view_latencies(
    pipeline: &Pipeline,
    views: &tokio_postgres::Client,
    ids: (i64, i64),
) -> anyhow::Result<Option<Histogram<u64>>> {
    let tracked = views
        .query_one("select current_setting('track_commit_timestamp')", &[])
        .await?;
    if tracked.get::<_, &str>(0) != "on" {
        return Ok(None);
    }
    let step = (ids.1 - ids.0) / SAMPLES_MAX + 1;
    let users = postgres::connect(&pipeline.database_url(USERS_DATABASE)?).await?;
    let committed = commit_times(&users, "users", "id", ids, step).await?;
    let applied = commit_times(views, "user_view", "user_id", ids, step).await?;
    let mut histogram = latencies_us()?;
    for (id, committed_us) in committed {
        if let Some(applied_us) = applied.get(&id) {
            histogram.saturating_record(u64::try_from(applied_us - committed_us).unwrap_or(0));
        }
    }
    Ok(Some(histogram))
}

/// The commit time of every `step`th row by id, in microseconds since 1970.
async fn commit_times(
    client: &tokio_postgres::Client,
    table: &str,
    id_column: &str,
    ids: (i64, i64),
    step: i64,
) -> anyhow::Result<HashMap<i64, i64>> {
    let sql = format!(
        "select {id_column}, (extract(epoch from pg_xact_commit_timestamp(xmin)) * 1000000)::bigint
         from {table} where {id_column} between $1 and $2 and {id_column} % $3 = 0 and pg_xact_commit_timestamp(xmin) is not null"
    );
    let rows = client.query(&sql, &[&ids.0, &ids.1, &step]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}
