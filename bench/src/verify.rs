//! How long `view-builder verify` takes.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use stack::pipeline::VIEWS_DATABASE;
use stack::{Pipeline, PipelineBuilder, postgres};

use crate::arguments::Verify;
use crate::counter::Counter;
use crate::report::Report;
use crate::statistics::{median, thousands};
use crate::{usage, view_drain};

/// How often the process is asked for its memory, which is known only while the process runs.
const POLL: Duration = Duration::from_millis(5);
const RUN_DEADLINE: Duration = Duration::from_secs(300);

const HEADINGS: [&str; 6] = [
    "run",
    "user_view is",
    "seconds",
    "CPU s",
    "peak RSS MB",
    "PostgreSQL CPU s",
];

/// Whether user_view is as view-builder made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum View {
    Equal,
    EditedByHand,
}

/// One run of `view-builder verify`.
struct Run {
    view: View,
    seconds: f64,
    cpu_s: f64,
    peak_memory_mb: f64,
    postgres_cpu_s: f64,
}

/// # Errors
/// A part failed, or `verify` did not find what is true of the tables.
pub(crate) async fn measure(options: &Verify, builder: PipelineBuilder) -> anyhow::Result<Report> {
    let pipeline = builder.start().await?;
    let mut report = Report::begin(&pipeline, &HEADINGS).await?;
    create_users_and_view(&pipeline, options.users).await?;
    let mut runs = Vec::new();
    for number in 1..=options.runs {
        runs.push(run(&pipeline, number, View::Equal).await?);
    }
    edit_view_by_hand(&pipeline).await?;
    runs.push(run(&pipeline, options.runs + 1, View::EditedByHand).await?);
    pipeline.stop().await?;
    write_into_report(&mut report, options, &runs);
    Ok(report)
}

async fn create_users_and_view(pipeline: &Pipeline, users: u64) -> anyhow::Result<()> {
    tracing::info!(
        "creating {} users, and taking them into the view",
        thousands(users as f64)
    );
    view_drain::create_users(pipeline, 0, users).await?;
    let mut applied = Counter::new(&pipeline.view_builder, "view_events_applied_total");
    view_drain::wait_until_counted(&mut applied, users).await
}

async fn edit_view_by_hand(pipeline: &Pipeline) -> anyhow::Result<()> {
    let client = postgres::connect(&pipeline.database_url(VIEWS_DATABASE)?).await?;
    let edit = "update user_view set name = 'by hand' where user_id % 1000 = 0";
    Ok(client.batch_execute(edit).await?)
}

/// Runs `verify` once.
async fn run(pipeline: &Pipeline, number: u32, view: View) -> anyhow::Result<Run> {
    let command = pipeline.verifier(&format!("verify-{number}"), &["--wait", "60"])?;
    let postgres = pipeline.postgres()?.process().context("no postgres")?;
    let postgres_cpu_before = usage::cpu_seconds_with_children(&postgres)?;
    let start = Instant::now();
    command.start()?;
    let process = command.process().context("not started")?;
    let (mut cpu_s, mut peak_memory_mb) = (0.0, 0.0);
    let status = loop {
        if let (Ok(cpu), Ok(memory)) = (usage::cpu_seconds(&process), usage::peak_memory_mb(&process)) {
            (cpu_s, peak_memory_mb) = (cpu, memory);
        }
        if let Some(status) = process.exit_status() {
            break status;
        }
        ensure!(start.elapsed() < RUN_DEADLINE, "verify still runs");
        tokio::time::sleep(POLL).await;
    };
    let seconds = start.elapsed().as_secs_f64();
    let wanted = view.exit_code_of_verify();
    ensure!(
        status.code() == Some(wanted),
        "verify ended with {status} instead of {wanted}:\n{}",
        command.log_tail(40)
    );
    tracing::info!("  run {number}: {seconds:.2} s, {}", view.in_words());
    Ok(Run {
        view,
        seconds,
        cpu_s,
        peak_memory_mb,
        postgres_cpu_s: usage::cpu_seconds_with_children(&postgres)? - postgres_cpu_before,
    })
}

fn write_into_report(report: &mut Report, options: &Verify, runs: &[Run]) {
    for (run, number) in runs.iter().zip(1..) {
        report.runs.push(run.json());
        report.table.add_row(run.table_row(number));
    }
    let equal = runs.iter().filter(|run| run.view == View::Equal);
    report.notes.push(format!(
        "Median on equal tables: {:.2} s for {} users, their view and department_stats. The last run waits until the relay has \
         confirmed the write-ahead log's end.",
        median(&equal.map(|run| run.seconds).collect::<Vec<_>>()),
        thousands(options.users as f64)
    ));
}

impl View {
    fn in_words(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::EditedByHand => "edited by hand",
        }
    }

    /// As `view-builder --help` documents it.
    fn exit_code_of_verify(self) -> i32 {
        match self {
            Self::Equal => 0,
            Self::EditedByHand => 10,
        }
    }
}

impl Run {
    fn json(&self) -> Value {
        json!({
            "user_view_is": self.view.in_words(),
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_s,
            "peak_memory_mb": self.peak_memory_mb,
            "postgres_cpu_seconds": self.postgres_cpu_s,
        })
    }

    fn table_row(&self, number: u32) -> Vec<String> {
        vec![
            number.to_string(),
            self.view.in_words().to_owned(),
            format!("{:.2}", self.seconds),
            format!("{:.2}", self.cpu_s),
            format!("{:.1}", self.peak_memory_mb),
            format!("{:.2}", self.postgres_cpu_s),
        ]
    }
}
