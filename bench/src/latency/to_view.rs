//! From a commit of a new user, created through REST, to the commit of its row in the view.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use stack::pipeline::{USERS_DATABASE, VIEWS_DATABASE};
use stack::{Pipeline, eventually_ok, postgres};
use tokio_postgres::Client;

use super::parts_in_use::Stopwatch;
use super::run::Run;
use super::{ARRIVAL_DEADLINE, WARM_UP_SECONDS};
use crate::arguments::Latency;
use crate::http::Connection;
use crate::statistics::{latency_histogram, record_latency};
use crate::topic::now_us;
use crate::{pace, people};

/// # Errors
/// A part failed, or a user did not come into the view.
pub(super) async fn measure(pipeline: &Pipeline, options: &Latency, rate: u32) -> anyhow::Result<Run> {
    let source = postgres::connect(&pipeline.database_url(USERS_DATABASE)?).await?;
    let views = postgres::connect(&pipeline.database_url(VIEWS_DATABASE)?).await?;
    let mut connections = Vec::new();
    for _ in 0..options.connections {
        connections.push(Connection::open(pipeline.user_api.port()).await?);
    }
    // It makes the addresses of this run different from those of every other run.
    let run_name: Arc<str> = format!("{:x}", now_us()).into();
    let warm_up = async |connection: &mut Connection, index: u64| {
        connection
            .create("/api/users", &people::person(&format!("w{run_name}"), index))
            .await
    };
    pace::change_at_rate(&mut connections, rate, WARM_UP_SECONDS, warm_up).await?;
    let row = source.query_one("select coalesce(max(id), 0) from users", &[]).await?;
    let last_id_before: i64 = row.get(0);
    let stopwatch = Stopwatch::start(pipeline)?;
    let create = async |connection: &mut Connection, index: u64| {
        connection.create("/api/users", &people::person(&run_name, index)).await
    };
    let achieved_rate = pace::change_at_rate(&mut connections, rate, options.seconds, create).await?;
    let parts = stopwatch.end()?;
    let made = u64::from(rate) * u64::from(options.seconds);
    wait_until_in_view(&views, last_id_before, made).await?;
    Ok(Run {
        way: "view",
        rate,
        achieved_rate,
        latencies_us: latencies_of_users_after(last_id_before, &source, &views).await?,
        parts,
    })
}

/// Waits until the view has `users` users with ids above `last_id_before`.
async fn wait_until_in_view(views: &Client, last_id_before: i64, users: u64) -> anyhow::Result<()> {
    eventually_ok(ARRIVAL_DEADLINE, "the view has all users", async || {
        let sql = "select count(*) from user_view where user_id > $1";
        let rows: i64 = views.query_one(sql, &[&last_id_before]).await?.get(0);
        ensure!(rows.unsigned_abs() == users, "{rows} of {users} users are in the view");
        Ok(())
    })
    .await
}

async fn latencies_of_users_after(
    last_id_before: i64,
    source: &Client,
    views: &Client,
) -> anyhow::Result<Histogram<u64>> {
    let committed_by_id = commit_times(source, "users", "id", last_id_before).await?;
    let applied_by_id = commit_times(views, "user_view", "user_id", last_id_before).await?;
    let mut latencies_us = latency_histogram()?;
    for (id, committed_us) in committed_by_id {
        let applied_us = applied_by_id.get(&id).context("a user without a row in the view")?;
        record_latency(&mut latencies_us, committed_us, *applied_us);
    }
    Ok(latencies_us)
}

/// When each row was committed whose id is above `last_id_before`. The key is the id, the value is in microseconds since 1970.
async fn commit_times(
    client: &Client,
    table: &str,
    id_column: &str,
    last_id_before: i64,
) -> anyhow::Result<HashMap<i64, i64>> {
    let sql = format!(
        "select {id_column}, (extract(epoch from pg_xact_commit_timestamp(xmin)) * 1000000)::bigint from {table} where {id_column} > $1"
    );
    let rows = client.query(&sql, &[&last_id_before]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}
