//! How fast view-builder brings a view up to date.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::future::{try_join_all, try_join3};
use serde_json::json;
use stack::pipeline::{USERS_DATABASE, VIEWS_DATABASE};
use stack::{Pipeline, PipelineBuilder, postgres};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Statement};
use user_api::statements;

use crate::arguments::ViewDrain;
use crate::counter::Counter;
use crate::report::Report;
use crate::statistics::{median, thousands};
use crate::view_cost::BATCH_EVENTS;
use crate::{usage, view_cost};

/// Users that one transaction creates.
const TRANSACTION_ROWS: u64 = 10_000;
/// How often a program is asked how far it is. An answer costs it about 0.1 ms.
pub(crate) const POLL: Duration = Duration::from_millis(20);
pub(crate) const READY_DEADLINE: Duration = Duration::from_secs(60);
/// A topic that takes longer is not drained at all.
pub(crate) const RUN_DEADLINE: Duration = Duration::from_secs(600);
/// The yardstick's database.
const BY_HAND: &str = "by_hand";
/// What the ratio to it should not be below.
const RATIO_MIN: f64 = 0.8;
const PARAMETERS: [Type; 5] = [
    Type::TEXT_ARRAY,
    Type::INT8_ARRAY,
    Type::INT8_ARRAY,
    Type::TEXT_ARRAY,
    Type::TEXT_ARRAY,
];
/// What both tables have: compared as one text.
const USER: &str = "name, email, department, status, created_at, updated_at, version";

/// # Errors
/// A part failed, or the view differs from the users.
pub(crate) async fn measure(asked: &ViewDrain, builder: PipelineBuilder) -> anyhow::Result<Report> {
    let pipeline = builder.prepare().await?;
    pipeline.users_relay.start()?;
    pipeline.users_relay.wait_ready(READY_DEADLINE).await?;
    let mut report = Report::begin(
        &pipeline,
        &[
            "run",
            "users in the view before",
            "added",
            "rows/s",
            "hand-batched SQL rows/s",
            "ratio",
            "view-builder CPU us/row",
            "peak RSS MB",
            "PostgreSQL CPU us/row",
        ],
    )
    .await?;
    report.notes = vec![
        "The clock runs from the start of view-builder's process until its last transaction has committed.".to_owned(),
        format!(
            "By hand: the views' own statements with {} of the same users a transaction as parameters, on one connection.",
            thousands(BATCH_EVENTS as f64)
        ),
    ];
    let by_hand = ByHand::new(&pipeline).await?;
    let mut published = Counter::new(&pipeline.users_relay, "relay_published_records_total");
    let (mut rates, mut rates_by_hand) = (Vec::new(), Vec::new());
    for number in 1..=asked.runs {
        let before = u64::from(number - 1) * asked.users;
        tracing::info!("creating {} users, and publishing them", thousands(asked.users as f64));
        create_users(&pipeline, before, asked.users).await?;
        wait_for(&mut published, before + asked.users).await?;
        by_hand.checkpoint().await?;
        let postgres = pipeline.postgres()?.process().context("no postgres")?;
        let cpu_before = usage::cpu_seconds_with_children(&postgres)?;
        let start = Instant::now();
        pipeline.view_builder.start()?;
        wait_for(
            &mut Counter::new(&pipeline.view_builder, "view_events_applied_total"),
            asked.users,
        )
        .await?;
        let seconds = start.elapsed().as_secs_f64();
        let process = pipeline.view_builder.process().context("no view-builder")?;
        let per_row_us = 1e6 / asked.users as f64;
        let cpu_us = usage::cpu_seconds(&process)? * per_row_us;
        let memory_mb = usage::peak_memory_mb(&process)?;
        let postgres_cpu_us = (usage::cpu_seconds_with_children(&postgres)? - cpu_before) * per_row_us;
        pipeline.view_builder.stop().await?;
        check_equality(&pipeline, VIEWS_DATABASE, before + asked.users).await?;
        let rate = asked.users as f64 / seconds;
        rates.push(rate);
        let rate_by_hand = by_hand.add(before, asked.users).await?;
        rates_by_hand.push(rate_by_hand);
        tracing::info!(
            "  run {number}: {seconds:.2} s, {} rows/s, by hand {}; user_view equals users",
            thousands(rate),
            thousands(rate_by_hand)
        );
        report.runs.push(json!({
            "users_before": before,
            "users": asked.users,
            "seconds": seconds,
            "rows_per_second": rate,
            "by_hand_rows_per_second": rate_by_hand,
            "view_builder_cpu_us_per_row": cpu_us,
            "view_builder_peak_memory_mb": memory_mb,
            "postgres_cpu_us_per_row": postgres_cpu_us,
        }));
        report.table.row(vec![
            number.to_string(),
            thousands(before as f64),
            thousands(asked.users as f64),
            thousands(rate),
            thousands(rate_by_hand),
            format!("{:.2}", rate / rate_by_hand),
            format!("{cpu_us:.1}"),
            format!("{memory_mb:.1}"),
            format!("{postgres_cpu_us:.1}"),
        ]);
    }
    report.notes.push(format!(
        "Medians: {} rows/s, by hand {}, ratio {:.2} (goal: {RATIO_MIN}). After each run user_view was equal to users.",
        thousands(median(&rates)),
        thousands(median(&rates_by_hand)),
        median(&rates) / median(&rates_by_hand)
    ));
    drop(by_hand);
    pipeline.stop().await?;
    Ok(report)
}

/// The yardstick: what the views' SQL takes where a batch is in the client's memory already.
struct ByHand {
    client: Client,
    views: Vec<Statement>,
}

impl ByHand {
    /// Views in a database of their own, without positions, dead letters and everything else that view-builder has.
    async fn new(pipeline: &Pipeline) -> anyhow::Result<Self> {
        let server = postgres::connect(&pipeline.database_url("postgres")?).await?;
        server.batch_execute(&format!("create database {BY_HAND}")).await?;
        let client = postgres::connect(&pipeline.database_url(BY_HAND)?).await?;
        let mut views = Vec::new();
        for view in view_cost::install(&client).await? {
            views.push(client.prepare_typed(&view.statement, &PARAMETERS).await?);
        }
        client
            .batch_execute("set synchronous_commit = on; set plan_cache_mode = force_generic_plan")
            .await?;
        Ok(Self { client, views })
    }

    /// Whoever is measured next begins with as little to write as the one before.
    async fn checkpoint(&self) -> anyhow::Result<()> {
        Ok(self.client.batch_execute("checkpoint").await?)
    }

    /// Applies so many new users in batches; rows/s of the views' transactions alone.
    async fn add(&self, before: u64, users: u64) -> anyhow::Result<f64> {
        self.checkpoint().await?;
        let (end, mut spent) = (before + users, Duration::ZERO);
        for first in (before + 1..=end).step_by(usize::try_from(BATCH_EVENTS)?) {
            let ids = format!(
                "generate_series({first}::bigint, {})",
                end.min(first + BATCH_EVENTS - 1)
            );
            self.client.batch_execute(&view_cost::batch(false, &ids, 1)).await?;
            spent += self.apply().await?;
        }
        Ok(users as f64 / spent.as_secs_f64())
    }

    /// Sends the table `batch` as parameters, in one round trip as view-builder does; how long that took.
    async fn apply(&self) -> anyhow::Result<Duration> {
        let client = &self.client;
        let sql = "select a1, a2, a3, a4, a5::text[] from batch";
        let row = client.query_one(sql, &[]).await?;
        let [topics, types, entities] = [0, 3, 4].map(|column| row.get::<_, Vec<&str>>(column));
        let [keys, versions] = [1, 2].map(|column| row.get::<_, Vec<i64>>(column));
        let parameters: [&(dyn ToSql + Sync); 5] = [&topics, &keys, &versions, &types, &entities];
        let start = Instant::now();
        let views = self.views.iter().map(|view| client.execute(view, &parameters));
        try_join3(
            client.batch_execute("begin"),
            try_join_all(views),
            client.batch_execute("commit"),
        )
        .await?;
        Ok(start.elapsed())
    }
}

/// By user-api's own statement, with rows of a series in place of its parameters.
pub(crate) async fn create_users(pipeline: &Pipeline, before: u64, users: u64) -> anyhow::Result<()> {
    let client = postgres::connect(&pipeline.database_url(USERS_DATABASE)?).await?;
    client.batch_execute("set synchronous_commit = off").await?;
    let end = before + users;
    for first in (before + 1..=end).step_by(usize::try_from(TRANSACTION_ROWS)?) {
        let last = end.min(first + TRANSACTION_ROWS - 1);
        client.batch_execute(&many_users(first, last)?).await?;
    }
    Ok(())
}

fn many_users(first: u64, last: u64) -> anyhow::Result<String> {
    const ONE: &str = "values ($1, $2, $3, $4)";
    ensure!(
        statements::CREATE.matches(ONE).count() == 1,
        "user-api's statement has no `{ONE}`"
    );
    let many = format!(
        "select '홍길동', 'gildong.hong.' || n || '@example.com', '부서' || n % 8, case n % 8 when 0 then 'INACTIVE' else 'ACTIVE' end
         from generate_series({first}, {last}) as n"
    );
    Ok(statements::CREATE
        .replace(ONE, &many)
        .replace("$5", "gen_random_uuid()"))
}

pub(crate) async fn wait_for(counter: &mut Counter<'_>, wanted: u64) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        let now = counter.read().await?;
        if now >= wanted {
            return Ok(());
        }
        ensure!(start.elapsed() < RUN_DEADLINE, "only {now} of {wanted} came in time");
        tokio::time::sleep(POLL).await;
    }
}

/// Row by row: each table's rows, in the order of their ids, as one text's hash.
pub(crate) async fn check_equality(pipeline: &Pipeline, views_database: &str, users: u64) -> anyhow::Result<()> {
    let mut seen = Vec::new();
    for (database, table, id) in [
        (USERS_DATABASE, "users", "id"),
        (views_database, "user_view", "user_id"),
    ] {
        let client = postgres::connect(&pipeline.database_url(database)?).await?;
        let sql =
            format!("select count(*), md5(string_agg(md5(row({id}, {USER})::text), '' order by {id})) from {table}");
        let row = client.query_one(&sql, &[]).await?;
        seen.push((row.get::<_, i64>(0).unsigned_abs(), row.get::<_, Option<String>>(1)));
    }
    ensure!(seen[0].0 == users, "{} users instead of {users}", seen[0].0);
    ensure!(seen[0] == seen[1], "user_view differs from users: {seen:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::many_users;

    #[test]
    fn many_users_come_from_the_statement_of_user_api() {
        let statement = many_users(1, 10).unwrap();
        assert!(statement.contains("generate_series(1, 10)"), "{statement}");
        assert!(statement.contains("insert into outbox"), "{statement}");
        assert!(!statement.contains('$'), "{statement}");
    }
}
