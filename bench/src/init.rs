//! How long the relay's first publishing takes, of an outbox that has been filled for years, and whether a killed one goes on.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;
use stack::pipeline::USERS_DATABASE;
use stack::{PipelineBuilder, Program, postgres};
use tokio_postgres::Client;

use crate::arguments::Init;
use crate::backlog::check_exactly_once;
use crate::report::Report;
use crate::statistics::thousands;
use crate::topic::Topic;
use crate::usage;

/// An aggregate type of its own, since the view-builder would try to apply a user's event.
const TOPIC: &str = "bench-events";
/// Rows that one statement writes.
const FILL_ROWS: u64 = 1_000_000;
const POLL: Duration = Duration::from_millis(200);
const RUN_DEADLINE: Duration = Duration::from_secs(4 * 3600);

/// One `init`, until it ended or was killed.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    seconds: f64,
    /// Records that the topic got, the ends of transactions included.
    offsets: u64,
    peak_memory_mb: f64,
    cpu_seconds: f64,
}

/// # Errors
/// A part failed, or the topic has not every row exactly once.
pub(crate) async fn measure(asked: &Init, builder: PipelineBuilder) -> anyhow::Result<Report> {
    let pipeline = builder.prepare().await?;
    let client = postgres::connect(&pipeline.database_url(USERS_DATABASE)?).await?;
    fill(&client, asked.rows).await?;
    let topic = Topic::new(pipeline.bootstrap_servers(), TOPIC);
    pipeline
        .kafka()?
        .topic_tool(&[
            "--create",
            "--topic",
            TOPIC,
            "--partitions",
            &events::PARTITIONS.to_string(),
        ])
        .await?;
    // Beside the pipeline's own relay, which is initialised already: another slot, and another topic of checkpoints.
    let init = pipeline
        .users_relay
        .command_of("init", &["init"])
        .env("DATABASE_URL", &pipeline.database_url(USERS_DATABASE)?)
        .env("OUTBOX_SLOT", "bench_init")
        .env("CHECKPOINT_TOPIC", "bench-checkpoints")
        .env("ROUTER_OPTIONS", &format!("route.topic.replacement={TOPIC}"));
    let mut report = Report::begin(
        &pipeline,
        &["init", "s", "offsets", "offsets/s", "CPU us/offset", "peak RSS MB"],
    )
    .await?;
    report.notes = vec![format!(
        "{} rows; afterwards every outbox id was in the topic exactly once.",
        thousands(asked.rows as f64)
    )];
    let mut row = |what: &str, attempt: Attempt| {
        let Attempt {
            seconds,
            offsets,
            peak_memory_mb,
            cpu_seconds,
        } = attempt;
        let rate = offsets as f64 / seconds;
        tracing::info!(
            "{what}: {seconds:.0} s, {} offsets/s, {peak_memory_mb:.1} MB",
            thousands(rate)
        );
        report.table.row(vec![
            what.to_owned(),
            format!("{seconds:.1}"),
            thousands(offsets as f64),
            thousands(rate),
            format!("{:.2}", cpu_seconds * 1e6 / offsets.max(1) as f64),
            format!("{peak_memory_mb:.1}"),
        ]);
        report.runs.push(json!({
            "init": what, "seconds": seconds, "offsets": offsets, "cpu_seconds": cpu_seconds, "peak_memory_mb": peak_memory_mb,
        }));
    };
    let half = asked.rows / 2;
    row("killed (-9) at half of it", attempt(&init, &topic, Some(half)).await?);
    row("the next one, to the end", attempt(&init, &topic, None).await?);
    check_exactly_once(&client, topic.event_ids().await?).await?;
    pipeline.stop().await?;
    Ok(report)
}

/// Writes the rows. The key's index is made afterwards: random ids in a large one take longer than all the rest.
async fn fill(client: &Client, rows: u64) -> anyhow::Result<()> {
    client
        .batch_execute("set synchronous_commit = off; alter table outbox drop constraint outbox_pkey")
        .await?;
    let mut written = 0;
    while written < rows {
        let count = FILL_ROWS.min(rows - written);
        client
            .batch_execute(&format!(
                "insert into outbox (aggregatetype, aggregateid, type, payload)
                 select 'bench', (n % 100000)::text, 'BENCHED', jsonb_build_object('n', n) from generate_series({}, {}) as n",
                written + 1,
                written + count
            ))
            .await?;
        written += count;
        if written % (5 * FILL_ROWS) == 0 {
            tracing::info!("{} rows are written", thousands(written as f64));
        }
    }
    for statement in [
        "alter table outbox add constraint outbox_pkey primary key (id, created_at)",
        "vacuum analyze outbox",
        "checkpoint",
    ] {
        client.batch_execute(statement).await.context(statement)?;
    }
    Ok(())
}

/// Runs `init` until it ends, or kills it once the topic has this many offsets more.
async fn attempt(init: &Program, topic: &Topic, killed_after: Option<u64>) -> anyhow::Result<Attempt> {
    let before = topic.offsets()?;
    let start = Instant::now();
    init.start()?;
    let process = init.process().context("no init")?;
    let (mut peak_memory_mb, mut cpu_seconds) = (0.0_f64, 0.0_f64);
    let is_killed = loop {
        tokio::time::sleep(POLL).await;
        if process.exit_status().is_some() {
            break false;
        }
        // It may end in between.
        peak_memory_mb = usage::peak_memory_mb(&process)
            .unwrap_or(peak_memory_mb)
            .max(peak_memory_mb);
        cpu_seconds = usage::cpu_seconds(&process).unwrap_or(cpu_seconds).max(cpu_seconds);
        if let Some(enough) = killed_after
            && topic.offsets()? - before >= enough
        {
            init.kill_hard().await;
            break true;
        }
        ensure!(
            start.elapsed() < RUN_DEADLINE,
            "init does not end:\n{}",
            init.log_tail(15)
        );
    };
    let seconds = start.elapsed().as_secs_f64();
    ensure!(
        is_killed || process.exited().await.success(),
        "init failed:\n{}",
        init.log_tail(15)
    );
    ensure!(
        is_killed == killed_after.is_some(),
        "init ended before it could be killed; ask for more rows"
    );
    Ok(Attempt {
        seconds,
        offsets: topic.offsets()? - before,
        peak_memory_mb,
        cpu_seconds,
    })
}
