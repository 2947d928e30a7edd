//! How long `outbox-relay init` takes to publish an outbox that has been filled for years, and whether a second `init` goes on where a killed one ended.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use stack::pipeline::USERS_DATABASE;
use stack::{Pipeline, PipelineBuilder, Program, postgres};
use tokio_postgres::Client;

use crate::arguments::Init;
use crate::backlog::check_exactly_once;
use crate::report::Report;
use crate::statistics::thousands;
use crate::topic::Topic;
use crate::usage;

/// The topic of an aggregate type of its own, because view-builder would try to apply events of users.
const TOPIC: &str = "bench-events";
/// One statement writes so many rows.
const FILL_ROWS: u64 = 1_000_000;
const POLL: Duration = Duration::from_millis(200);
const RUN_DEADLINE: Duration = Duration::from_secs(4 * 3600);

/// One `init`, until it ended or was killed.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    seconds: f64,
    /// Offsets that the topic has got: records, and the ends of transactions.
    offsets: u64,
    peak_memory_mb: f64,
    cpu_seconds: f64,
}

const HEADINGS: [&str; 6] = ["init", "s", "offsets", "offsets/s", "CPU us/offset", "peak RSS MB"];

/// # Errors
/// A part failed, or the topic does not have every row exactly once.
pub(crate) async fn measure(options: &Init, builder: PipelineBuilder) -> anyhow::Result<Report> {
    let pipeline = builder.prepare().await?;
    let client = postgres::connect(&pipeline.database_url(USERS_DATABASE)?).await?;
    fill(&client, options.rows).await?;
    create_topic(&pipeline).await?;
    let topic = Topic::new(pipeline.bootstrap_servers(), TOPIC);
    let init = init_command(&pipeline)?;
    let mut report = Report::begin(&pipeline, &HEADINGS).await?;
    let half = options.rows / 2;
    let (killed, next) = ("killed (-9) at half of it", "the next one, to the end");
    let attempts = [
        (killed, attempt(killed, &init, &topic, Some(half)).await?),
        (next, attempt(next, &init, &topic, None).await?),
    ];
    check_exactly_once(&client, topic.event_ids().await?).await?;
    pipeline.stop().await?;
    report.notes = vec![format!(
        "{} rows; afterwards every outbox id was in the topic exactly once.",
        thousands(options.rows as f64)
    )];
    for (what, attempt) in attempts {
        report.table.add_row(attempt.table_row(what));
        report.runs.push(attempt.json(what));
    }
    Ok(report)
}

async fn create_topic(pipeline: &Pipeline) -> anyhow::Result<()> {
    let partitions = events::PARTITIONS.to_string();
    let create = ["--create", "--topic", TOPIC, "--partitions", &partitions];
    pipeline.kafka()?.topic_tool(&create).await?;
    Ok(())
}

/// The command has another slot and another topic of checkpoints than the pipeline's own relay, which is initialised already.
fn init_command(pipeline: &Pipeline) -> anyhow::Result<Program> {
    let command = pipeline.users_relay.command_of("init", &["init"]);
    Ok(command
        .env("DATABASE_URL", &pipeline.database_url(USERS_DATABASE)?)
        .env("OUTBOX_SLOT", "bench_init")
        .env("CHECKPOINT_TOPIC", "bench-checkpoints")
        .env("ROUTER_OPTIONS", &format!("route.topic.replacement={TOPIC}")))
}

impl Attempt {
    fn offsets_per_second(&self) -> f64 {
        self.offsets as f64 / self.seconds
    }

    fn table_row(&self, what: &str) -> Vec<String> {
        vec![
            what.to_owned(),
            format!("{:.1}", self.seconds),
            thousands(self.offsets as f64),
            thousands(self.offsets_per_second()),
            format!("{:.2}", self.cpu_seconds * 1e6 / self.offsets.max(1) as f64),
            format!("{:.1}", self.peak_memory_mb),
        ]
    }

    fn json(&self, what: &str) -> Value {
        json!({
            "init": what, "seconds": self.seconds, "offsets": self.offsets, "cpu_seconds": self.cpu_seconds,
            "peak_memory_mb": self.peak_memory_mb,
        })
    }
}

/// Writes the rows. The index of the primary key is made afterwards, because random ids in a large index take longer than all the rest.
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

/// Runs `init` until it ends, or kills it once the topic has `killed_after` more offsets than before.
async fn attempt(what: &str, init: &Program, topic: &Topic, killed_after: Option<u64>) -> anyhow::Result<Attempt> {
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
        // The process may have ended since the line above; then the last values stay.
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
    let attempt = Attempt {
        seconds,
        offsets: topic.offsets()? - before,
        peak_memory_mb,
        cpu_seconds,
    };
    tracing::info!(
        "{what}: {seconds:.0} s, {} offsets/s, {peak_memory_mb:.1} MB",
        thousands(attempt.offsets_per_second())
    );
    Ok(attempt)
}
