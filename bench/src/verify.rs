//! How long `view-builder verify` takes.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;
use stack::pipeline::VIEWS_DATABASE;
use stack::{Pipeline, PipelineBuilder, postgres};

use crate::arguments::Verify;
use crate::counter::Counter;
use crate::report::Report;
use crate::statistics::{median, thousands};
use crate::{usage, view_drain};

/// How often the process is looked at: its peak memory is known only while it runs.
const POLL: Duration = Duration::from_millis(5);
const RUN_DEADLINE: Duration = Duration::from_secs(300);
/// Documented by `view-builder --help`.
const EQUAL: i32 = 0;
const DIFFERENT: i32 = 10;

/// # Errors
/// A part failed, or `verify` ended otherwise than the tables are.
pub(crate) async fn measure(asked: &Verify, builder: PipelineBuilder) -> anyhow::Result<Report> {
    let pipeline = builder.start().await?;
    let mut report = Report::begin(
        &pipeline,
        &[
            "run",
            "user_view is",
            "seconds",
            "CPU s",
            "peak RSS MB",
            "PostgreSQL CPU s",
        ],
    )
    .await?;
    tracing::info!(
        "creating {} users, and taking them into the view",
        thousands(asked.users as f64)
    );
    view_drain::create_users(&pipeline, 0, asked.users).await?;
    view_drain::wait_for(
        &mut Counter::new(&pipeline.view_builder, "view_events_applied_total"),
        asked.users,
    )
    .await?;
    let mut seconds = Vec::new();
    for number in 1..=asked.runs {
        seconds.push(run(&pipeline, &mut report, number, "equal", EQUAL).await?);
    }
    let client = postgres::connect(&pipeline.database_url(VIEWS_DATABASE)?).await?;
    client
        .batch_execute("update user_view set name = 'by hand' where user_id % 1000 = 0")
        .await?;
    run(&pipeline, &mut report, asked.runs + 1, "edited by hand", DIFFERENT).await?;
    report.notes.push(format!(
        "Median on equal tables: {:.2} s for {} users, their view and department_stats. The last run waits until the relay has \
         confirmed the write-ahead log's end.",
        median(&seconds),
        thousands(asked.users as f64)
    ));
    pipeline.stop().await?;
    Ok(report)
}

/// Runs `verify` once; its seconds.
async fn run(pipeline: &Pipeline, report: &mut Report, number: u32, state: &str, wanted: i32) -> anyhow::Result<f64> {
    let command = pipeline.verifier(&format!("verify-{number}"), &["--wait", "60"])?;
    let server = pipeline.postgres()?.process().context("no postgres")?;
    let server_cpu = usage::cpu_seconds_with_children(&server)?;
    let start = Instant::now();
    command.start()?;
    let process = command.process().context("not started")?;
    let (mut cpu_s, mut memory_mb) = (0.0, 0.0);
    let status = loop {
        if let (Ok(cpu), Ok(memory)) = (usage::cpu_seconds(&process), usage::peak_memory_mb(&process)) {
            (cpu_s, memory_mb) = (cpu, memory);
        }
        if let Some(status) = process.exit_status() {
            break status;
        }
        ensure!(start.elapsed() < RUN_DEADLINE, "verify still runs");
        tokio::time::sleep(POLL).await;
    };
    let seconds = start.elapsed().as_secs_f64();
    ensure!(
        status.code() == Some(wanted),
        "verify ended with {status} instead of {wanted}:\n{}",
        command.log_tail(40)
    );
    let server_cpu_s = usage::cpu_seconds_with_children(&server)? - server_cpu;
    tracing::info!("  run {number}: {seconds:.2} s, {state}");
    report.runs.push(json!({
        "user_view_is": state,
        "seconds": seconds,
        "cpu_seconds": cpu_s,
        "peak_memory_mb": memory_mb,
        "postgres_cpu_seconds": server_cpu_s,
    }));
    report.table.row(vec![
        number.to_string(),
        state.to_owned(),
        format!("{seconds:.2}"),
        format!("{cpu_s:.2}"),
        format!("{memory_mb:.1}"),
        format!("{server_cpu_s:.2}"),
    ]);
    Ok(seconds)
}
