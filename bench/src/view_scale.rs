//! How fast several view-builders together bring a view up to date.

use std::time::Instant;

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use serde_json::{Value, json};
use stack::{Pipeline, PipelineBuilder, Program, port, postgres};
use tokio_postgres::Client;

use crate::arguments::ViewScale;
use crate::counter::Counter;
use crate::report::Report;
use crate::statistics::{median, thousands};
use crate::usage;
use crate::view_drain::{POLL, READY_DEADLINE, RUN_DEADLINE, check_equality, create_users, wait_until_counted};

const HEADINGS: [&str; 6] = [
    "builders",
    "rows/s",
    "ratio",
    "summed peak RSS MB",
    "builders' CPU s",
    "PostgreSQL CPU s",
];

/// One run: so many builders have applied all users to a new view.
struct Run {
    builders: u32,
    users: u64,
    seconds: f64,
    /// Events that each process applied.
    applied: Vec<u64>,
    /// The sum of the processes' peak memory.
    memory_mb: f64,
    /// CPU time of all processes.
    cpu_s: f64,
    postgres_cpu_s: f64,
}

/// # Errors
/// A part failed, or a view differs from the users.
pub(crate) async fn measure(options: &ViewScale, builder: PipelineBuilder) -> anyhow::Result<Report> {
    let pipeline = builder.prepare().await?;
    let mut report = Report::begin(&pipeline, &HEADINGS).await?;
    publish_users(&pipeline, options.users).await?;
    let runs = measure_runs(&pipeline, options).await?;
    pipeline.stop().await?;
    write_into_report(&mut report, options, &runs);
    Ok(report)
}

/// Creates the users, and waits until the topic has them.
async fn publish_users(pipeline: &Pipeline, users: u64) -> anyhow::Result<()> {
    pipeline.users_relay.start()?;
    pipeline.users_relay.wait_ready(READY_DEADLINE).await?;
    tracing::info!("creating {} users, and publishing them", thousands(users as f64));
    create_users(pipeline, 0, users).await?;
    let mut published = Counter::new(&pipeline.users_relay, "relay_published_records_total");
    wait_until_counted(&mut published, users).await?;
    pipeline.users_relay.stop().await
}

/// Measures each number of builders as often as asked for; the numbers take turns.
async fn measure_runs(pipeline: &Pipeline, options: &ViewScale) -> anyhow::Result<Vec<Run>> {
    let client = postgres::connect(&pipeline.database_url("postgres")?).await?;
    tracing::info!("warming up");
    drain(pipeline, &client, "scale_warm_up", options.users, 1).await?;
    let mut runs = Vec::new();
    for number in 1..=options.runs {
        for &builders in &options.builders {
            let name = format!("scale_{number}_{builders}");
            let run = drain(pipeline, &client, &name, options.users, builders).await?;
            tracing::info!(
                "  run {number}, builders {builders}: {:.2} s, {} rows/s; user_view equals users",
                run.seconds,
                thousands(run.rate())
            );
            runs.push(run);
        }
    }
    Ok(runs)
}

fn write_into_report(report: &mut Report, options: &ViewScale, runs: &[Run]) {
    report.notes = vec![format!(
        "Medians of {} runs, in turns, of {} users each. The clock runs from the start of the processes until the last transaction has \
         committed. After each run user_view was equal to users.",
        options.runs,
        thousands(options.users as f64)
    )];
    report.runs = runs.iter().map(Run::json).collect();
    let mut first_rate = None;
    for &builders in &options.builders {
        let median_of = |value: fn(&Run) -> f64| {
            let values = runs.iter().filter(|run| run.builders == builders).map(value);
            median(&values.collect::<Vec<_>>())
        };
        let rate = options.users as f64 / median_of(|run| run.seconds);
        report.table.add_row(vec![
            builders.to_string(),
            thousands(rate),
            format!("{:.2}", rate / *first_rate.get_or_insert(rate)),
            format!("{:.1}", median_of(|run| run.memory_mb)),
            format!("{:.2}", median_of(|run| run.cpu_s)),
            format!("{:.2}", median_of(|run| run.postgres_cpu_s)),
        ]);
    }
}

impl Run {
    /// Rows per second.
    fn rate(&self) -> f64 {
        self.users as f64 / self.seconds
    }

    fn json(&self) -> Value {
        json!({
            "builders": self.builders,
            "users": self.users,
            "seconds": self.seconds,
            "rows_per_second": self.rate(),
            "events_applied": self.applied,
            "builders_peak_memory_mb": self.memory_mb,
            "builders_cpu_seconds": self.cpu_s,
            "postgres_cpu_seconds": self.postgres_cpu_s,
        })
    }
}

/// Starts so many new builders, and waits until they have applied all users to the views of a new database. `name` is the name of the database and
/// of the consumer group.
async fn drain(pipeline: &Pipeline, client: &Client, name: &str, users: u64, builders: u32) -> anyhow::Result<Run> {
    client
        .batch_execute(&format!("create database {name} owner view_builder"))
        .await?;
    // Each run begins with as little to write as the one before. (Two statements in one call would be one transaction, in which no database
    // can be made.)
    client.batch_execute("checkpoint").await?;
    let url = pipeline.database_url(name)?.replacen("postgres@", "view_builder@", 1);
    let mut programs = Vec::new();
    for number in 1..=builders {
        let port = port::free()?;
        let program = pipeline
            .view_builder
            .another(&format!("view-builder-{name}-{number}"), port);
        programs.push(
            program
                .env("DATABASE_URL", &url)
                .env("GROUP_ID", name)
                .env("ADMIN_LISTEN", &format!("127.0.0.1:{port}")),
        );
    }
    let server = pipeline.postgres()?.process().context("no postgres")?;
    let server_cpu_s = usage::cpu_seconds_with_children(&server)?;
    let start = Instant::now();
    for program in &programs {
        program.start()?;
    }
    let applied = wait_for_all(&programs, users).await?;
    let seconds = start.elapsed().as_secs_f64();
    let (mut memory_mb, mut cpu_s) = (0.0, 0.0);
    for program in &programs {
        let process = program.process().context("no view-builder")?;
        memory_mb += usage::peak_memory_mb(&process)?;
        cpu_s += usage::cpu_seconds(&process)?;
    }
    let postgres_cpu_s = usage::cpu_seconds_with_children(&server)? - server_cpu_s;
    try_join_all(programs.iter().map(Program::stop)).await?;
    check_equality(pipeline, name, users).await?;
    client
        .batch_execute(&format!("drop database {name} with (force)"))
        .await?;
    Ok(Run {
        builders,
        users,
        seconds,
        applied,
        memory_mb,
        cpu_s,
        postgres_cpu_s,
    })
}

/// Waits until the builders together have applied all users. Returns how many each has applied.
async fn wait_for_all(programs: &[Program], users: u64) -> anyhow::Result<Vec<u64>> {
    let counter = |program| Counter::new(program, "view_events_applied_total");
    let mut counters: Vec<Counter<'_>> = programs.iter().map(counter).collect();
    let start = Instant::now();
    loop {
        let applied = try_join_all(counters.iter_mut().map(Counter::read)).await?;
        let sum: u64 = applied.iter().sum();
        if sum >= users {
            ensure!(sum == users, "{sum} events were applied, there are {users}");
            return Ok(applied);
        }
        ensure!(start.elapsed() < RUN_DEADLINE, "only {sum} of {users} came in time");
        tokio::time::sleep(POLL).await;
    }
}
