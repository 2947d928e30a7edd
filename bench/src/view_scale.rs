//! How fast several view-builders together bring a view up to date.

use std::time::Instant;

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use serde_json::json;
use stack::{Pipeline, PipelineBuilder, Program, port, postgres};
use tokio_postgres::Client;

use crate::arguments::ViewScale;
use crate::counter::Counter;
use crate::report::Report;
use crate::statistics::{median, thousands};
use crate::usage;
use crate::view_drain::{POLL, READY_DEADLINE, RUN_DEADLINE, check_equality, create_users, wait_for};

/// What one drain took.
struct Run {
    builders: u32,
    seconds: f64,
    /// Events that each process applied.
    applied: Vec<u64>,
    /// Of all processes: the sum of what each had at most.
    memory_mb: f64,
    cpu_s: f64,
    postgres_cpu_s: f64,
}

/// # Errors
/// A part failed, or a view differs from the users.
pub(crate) async fn measure(asked: &ViewScale, builder: PipelineBuilder) -> anyhow::Result<Report> {
    let pipeline = builder.prepare().await?;
    let mut report = Report::begin(
        &pipeline,
        &[
            "builders",
            "rows/s",
            "ratio",
            "summed peak RSS MB",
            "builders' CPU s",
            "PostgreSQL CPU s",
        ],
    )
    .await?;
    report.notes = vec![format!(
        "Medians of {} runs, in turns, of {} users each. The clock runs from the start of the processes until the last transaction has \
         committed. After each run user_view was equal to users.",
        asked.runs,
        thousands(asked.users as f64)
    )];
    pipeline.users_relay.start()?;
    pipeline.users_relay.wait_ready(READY_DEADLINE).await?;
    tracing::info!("creating {} users, and publishing them", thousands(asked.users as f64));
    create_users(&pipeline, 0, asked.users).await?;
    wait_for(
        &mut Counter::new(&pipeline.users_relay, "relay_published_records_total"),
        asked.users,
    )
    .await?;
    pipeline.users_relay.stop().await?;
    let client = postgres::connect(&pipeline.database_url("postgres")?).await?;
    tracing::info!("warming up");
    drain(&pipeline, &client, "scale_warm_up", asked.users, 1).await?;
    let mut runs = Vec::new();
    for number in 1..=asked.runs {
        for &builders in &asked.builders {
            let name = format!("scale_{number}_{builders}");
            let run = drain(&pipeline, &client, &name, asked.users, builders).await?;
            let rate = asked.users as f64 / run.seconds;
            tracing::info!(
                "  run {number}, builders {builders}: {:.2} s, {} rows/s; user_view equals users",
                run.seconds,
                thousands(rate)
            );
            report.runs.push(json!({
                "builders": builders,
                "users": asked.users,
                "seconds": run.seconds,
                "rows_per_second": rate,
                "events_applied": run.applied,
                "builders_peak_memory_mb": run.memory_mb,
                "builders_cpu_seconds": run.cpu_s,
                "postgres_cpu_seconds": run.postgres_cpu_s,
            }));
            runs.push(run);
        }
    }
    let mut first = None;
    for &builders in &asked.builders {
        let of = |value: fn(&Run) -> f64| {
            let values = runs.iter().filter(|run| run.builders == builders).map(value);
            median(&values.collect::<Vec<_>>())
        };
        let rate = asked.users as f64 / of(|run| run.seconds);
        report.table.row(vec![
            builders.to_string(),
            thousands(rate),
            format!("{:.2}", rate / *first.get_or_insert(rate)),
            format!("{:.1}", of(|run| run.memory_mb)),
            format!("{:.2}", of(|run| run.cpu_s)),
            format!("{:.2}", of(|run| run.postgres_cpu_s)),
        ]);
    }
    drop(client);
    pipeline.stop().await?;
    Ok(report)
}

/// Has so many new builders take all users into a new database; `name` is its and the group's.
async fn drain(pipeline: &Pipeline, client: &Client, name: &str, users: u64, builders: u32) -> anyhow::Result<Run> {
    client
        .batch_execute(&format!("create database {name} owner view_builder"))
        .await?;
    // One by one: there is none in a transaction. Each run begins with as little to write as the one before.
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
        seconds,
        applied,
        memory_mb,
        cpu_s,
        postgres_cpu_s,
    })
}

/// Waits until these builders have applied all users between them; how many each has.
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
