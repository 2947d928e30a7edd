//! How fast view-builder brings a view up to date.

mod by_hand;

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use stack::pipeline::{USERS_DATABASE, VIEWS_DATABASE};
use stack::{Pipeline, PipelineBuilder, postgres};
use user_api::statements;

use crate::arguments::ViewDrain;
use crate::counter::Counter;
use crate::report::Report;
use crate::statistics::{median, thousands};
use crate::usage;
use crate::view_cost::BATCH_EVENTS;
use by_hand::ByHand;

/// Users that one transaction creates.
const TRANSACTION_ROWS: u64 = 10_000;
/// How often a program is asked how far it is. An answer costs it about 0.1 ms.
pub(crate) const POLL: Duration = Duration::from_millis(20);
pub(crate) const READY_DEADLINE: Duration = Duration::from_secs(60);
/// A run that takes longer does not come to an end.
pub(crate) const RUN_DEADLINE: Duration = Duration::from_secs(600);
/// The goal: view-builder's rate is at least this part of the rate by hand.
const RATIO_MIN: f64 = 0.8;
/// The columns that both tables have.
const USER_COLUMNS: &str = "name, email, department, status, created_at, updated_at, version";

const HEADINGS: [&str; 9] = [
    "run",
    "users in the view before",
    "added",
    "rows/s",
    "hand-batched SQL rows/s",
    "ratio",
    "view-builder CPU us/row",
    "peak RSS MB",
    "PostgreSQL CPU us/row",
];

/// One run of view-builder, and the same users applied by hand.
struct Run {
    users_before: u64,
    /// Users that the run added.
    users: u64,
    seconds: f64,
    by_hand_rate: f64,
    view_builder_cpu_seconds: f64,
    view_builder_peak_memory_mb: f64,
    postgres_cpu_seconds: f64,
}

/// # Errors
/// A part failed, or the view differs from the users.
pub(crate) async fn measure(options: &ViewDrain, builder: PipelineBuilder) -> anyhow::Result<Report> {
    let pipeline = builder.prepare().await?;
    pipeline.users_relay.start()?;
    pipeline.users_relay.wait_ready(READY_DEADLINE).await?;
    let mut report = Report::begin(&pipeline, &HEADINGS).await?;
    let by_hand = ByHand::new(&pipeline).await?;
    let mut published = Counter::new(&pipeline.users_relay, "relay_published_records_total");
    let mut runs = Vec::new();
    for number in 1..=options.runs {
        let users_before = u64::from(number - 1) * options.users;
        tracing::info!(
            "creating {} users, and publishing them",
            thousands(options.users as f64)
        );
        create_users(&pipeline, users_before, options.users).await?;
        wait_until_counted(&mut published, users_before + options.users).await?;
        let run = measure_run(&pipeline, &by_hand, users_before, options.users).await?;
        tracing::info!(
            "  run {number}: {:.2} s, {} rows/s, by hand {}; user_view equals users",
            run.seconds,
            thousands(run.rate()),
            thousands(run.by_hand_rate)
        );
        runs.push(run);
    }
    drop(by_hand);
    pipeline.stop().await?;
    write_into_report(&mut report, &runs);
    Ok(report)
}

/// Starts view-builder, and waits until it has applied the users that are new in the topic. Then applies the same users by hand.
async fn measure_run(pipeline: &Pipeline, by_hand: &ByHand, users_before: u64, users: u64) -> anyhow::Result<Run> {
    by_hand.checkpoint().await?;
    let postgres = pipeline.postgres()?.process().context("no postgres")?;
    let postgres_cpu_before = usage::cpu_seconds_with_children(&postgres)?;
    let start = Instant::now();
    pipeline.view_builder.start()?;
    let mut applied = Counter::new(&pipeline.view_builder, "view_events_applied_total");
    wait_until_counted(&mut applied, users).await?;
    let seconds = start.elapsed().as_secs_f64();
    let process = pipeline.view_builder.process().context("no view-builder")?;
    let view_builder_cpu_seconds = usage::cpu_seconds(&process)?;
    let view_builder_peak_memory_mb = usage::peak_memory_mb(&process)?;
    let postgres_cpu_seconds = usage::cpu_seconds_with_children(&postgres)? - postgres_cpu_before;
    pipeline.view_builder.stop().await?;
    check_equality(pipeline, VIEWS_DATABASE, users_before + users).await?;
    Ok(Run {
        users_before,
        users,
        seconds,
        by_hand_rate: by_hand.add(users_before, users).await?,
        view_builder_cpu_seconds,
        view_builder_peak_memory_mb,
        postgres_cpu_seconds,
    })
}

impl Run {
    /// Rows per second.
    fn rate(&self) -> f64 {
        self.users as f64 / self.seconds
    }

    fn us_per_row(&self, seconds: f64) -> f64 {
        seconds * 1e6 / self.users as f64
    }

    fn json(&self) -> Value {
        json!({
            "users_before": self.users_before,
            "users": self.users,
            "seconds": self.seconds,
            "rows_per_second": self.rate(),
            "by_hand_rows_per_second": self.by_hand_rate,
            "view_builder_cpu_us_per_row": self.us_per_row(self.view_builder_cpu_seconds),
            "view_builder_peak_memory_mb": self.view_builder_peak_memory_mb,
            "postgres_cpu_us_per_row": self.us_per_row(self.postgres_cpu_seconds),
        })
    }

    fn table_row(&self, number: usize) -> Vec<String> {
        vec![
            number.to_string(),
            thousands(self.users_before as f64),
            thousands(self.users as f64),
            thousands(self.rate()),
            thousands(self.by_hand_rate),
            format!("{:.2}", self.rate() / self.by_hand_rate),
            format!("{:.1}", self.us_per_row(self.view_builder_cpu_seconds)),
            format!("{:.1}", self.view_builder_peak_memory_mb),
            format!("{:.1}", self.us_per_row(self.postgres_cpu_seconds)),
        ]
    }
}

fn write_into_report(report: &mut Report, runs: &[Run]) {
    for (run, number) in runs.iter().zip(1..) {
        report.runs.push(run.json());
        report.table.add_row(run.table_row(number));
    }
    let median_of = |value: fn(&Run) -> f64| median(&runs.iter().map(value).collect::<Vec<_>>());
    let (rate, by_hand_rate) = (median_of(Run::rate), median_of(|run| run.by_hand_rate));
    report.notes = vec![
        "The clock runs from the start of view-builder's process until its last transaction has committed.".to_owned(),
        format!(
            "By hand: the views' own statements with {} of the same users a transaction as parameters, on one connection.",
            thousands(BATCH_EVENTS as f64)
        ),
        format!(
            "Medians: {} rows/s, by hand {}, ratio {:.2} (goal: {RATIO_MIN}). After each run user_view was equal to users.",
            thousands(rate),
            thousands(by_hand_rate),
            rate / by_hand_rate
        ),
    ];
}

/// Creates users by user-api's own statement, with rows of a series in place of its parameters. The ids follow `before`.
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

/// The statement that creates the users with the numbers from `first` to `last`.
pub(crate) fn many_users(first: u64, last: u64) -> anyhow::Result<String> {
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

/// Waits until the counter is at least `wanted`.
///
/// # Errors
/// The program has ended, or takes too long.
pub(crate) async fn wait_until_counted(counter: &mut Counter<'_>, wanted: u64) -> anyhow::Result<()> {
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

/// Checks that the view equals the users, row by row: the rows of each table become one hash, in the order of their ids.
///
/// # Errors
/// They differ, or there are not `users` users.
pub(crate) async fn check_equality(pipeline: &Pipeline, views_database: &str, users: u64) -> anyhow::Result<()> {
    let mut seen = Vec::new();
    for (database, table, id) in [
        (USERS_DATABASE, "users", "id"),
        (views_database, "user_view", "user_id"),
    ] {
        let client = postgres::connect(&pipeline.database_url(database)?).await?;
        let sql = format!(
            "select count(*), md5(string_agg(md5(row({id}, {USER_COLUMNS})::text), '' order by {id})) from {table}"
        );
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
