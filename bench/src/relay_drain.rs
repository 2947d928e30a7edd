//! outbox-relay against pg_recvlogical, on the same backlog.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use stack::pipeline::USERS_DATABASE;
use stack::{Pipeline, PipelineBuilder, Program};

use crate::arguments::RelayDrain;
use crate::backlog::{Backlog, Shape, client_program};
use crate::counter::Counter;
use crate::report::Report;
use crate::statistics::{median, thousands};
use crate::topic::Topic;
use crate::usage;

const SLOT: &str = "bench_run";
const PUBLISHED: &str = "relay_published_records_total";
const TRANSACTIONS: &str = "relay_transactions_total";
/// How often the relay is asked how far it is. An answer costs it about 0.1 ms.
const POLL: Duration = Duration::from_millis(20);
/// A backlog that takes longer is not drained at all.
const RUN_DEADLINE: Duration = Duration::from_secs(600);

/// One run of one of the two.
#[derive(Clone, Copy, Debug)]
struct Run {
    seconds: f64,
    /// CPU of PostgreSQL meanwhile, all its processes.
    postgres_cpu_seconds: f64,
    relay: Option<RelayRun>,
}

/// What only the relay has.
#[derive(Clone, Copy, Debug)]
struct RelayRun {
    /// From the process's start until the first record was counted.
    first_record_seconds: f64,
    /// User and system, its start included.
    cpu_seconds: f64,
    peak_memory_mb: f64,
    kafka_cpu_seconds: f64,
    /// Rows of a Kafka transaction, on average.
    rows_per_transaction: f64,
}

/// # Errors
/// A part failed, or the relay did not publish every row exactly once.
pub(crate) async fn measure(asked: &RelayDrain, builder: PipelineBuilder) -> anyhow::Result<Report> {
    let yardstick = client_program("pg_recvlogical", "postgresql-client")?;
    let pipeline = builder.prepare().await?;
    let mut drain = Drain {
        pipeline: &pipeline,
        yardstick,
        topics: 0,
    };
    let mut report = Report::begin(
        &pipeline,
        &[
            "backlog",
            "program",
            "rows/s",
            "ratio",
            "CPU us/row",
            "peak RSS MB",
            "first record s",
            "rows/transaction",
            "PostgreSQL CPU s",
            "Kafka CPU s",
        ],
    )
    .await?;
    report.notes = vec![
        "Medians; ratio: of the medians, relay to pg_recvlogical. The relay's clock runs from the start of its process until all rows are \
         visible to a read_committed consumer."
            .to_owned(),
    ];
    for (shape, rows) in [(Shape::Singles, asked.singles), (Shape::Bulk, asked.bulk)] {
        if rows == 0 {
            continue;
        }
        tracing::info!("writing a backlog: {}", shape.describe(rows));
        let backlog = Backlog::write(&pipeline, shape, rows).await?;
        if drain.topics == 0 {
            tracing::info!("warming up");
            drain.relay(&backlog).await?;
        }
        let (mut theirs, mut ours) = (Vec::new(), Vec::new());
        for number in 1..=asked.runs {
            let run = drain.pg_recvlogical(&backlog).await?;
            log(number, "pg_recvlogical", &backlog, &run);
            report.runs.push(run.json(&backlog));
            theirs.push(run);
            let run = drain.relay(&backlog).await?;
            log(number, "outbox-relay", &backlog, &run);
            report.runs.push(run.json(&backlog));
            ours.push(run);
        }
        for row in rows_of(&backlog, &theirs, &ours) {
            report.table.row(row);
        }
        report.notes.push(format!(
            "{}: payloads of {:.0} bytes; after each run every outbox id was in the topic exactly once.",
            shape.describe(rows),
            backlog.payload_bytes
        ));
    }
    pipeline.stop().await?;
    Ok(report)
}

struct Drain<'a> {
    pipeline: &'a Pipeline,
    yardstick: std::path::PathBuf,
    /// Topics made so far: each of the relay's runs has its own.
    topics: u32,
}

impl Drain<'_> {
    async fn pg_recvlogical(&self, backlog: &Backlog) -> anyhow::Result<Run> {
        backlog.copy_slot(SLOT).await?;
        let postgres = self.pipeline.postgres()?.process().context("no postgres")?;
        let mut command = tokio::process::Command::new(&self.yardstick);
        command
            .args(["--dbname", &self.pipeline.database_url(USERS_DATABASE)?])
            .args(["--slot", SLOT, "--start", "--no-loop", "--file", "/dev/null"])
            .args(["--endpos", &backlog.end_lsn])
            .args(["--option", "proto_version=1", "--option", "publication_names=outbox"])
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let cpu_before = usage::cpu_seconds_with_children(&postgres)?;
        let start = Instant::now();
        let ended = tokio::time::timeout(RUN_DEADLINE, command.output()).await;
        let seconds = start.elapsed().as_secs_f64();
        let output = ended.context("pg_recvlogical does not come to the end")??;
        ensure!(
            output.status.success(),
            "pg_recvlogical failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        // Its walsender's time counts when that has ended.
        backlog.drop_slot(SLOT).await?;
        Ok(Run {
            seconds,
            postgres_cpu_seconds: usage::cpu_seconds_with_children(&postgres)? - cpu_before,
            relay: None,
        })
    }

    async fn relay(&mut self, backlog: &Backlog) -> anyhow::Result<Run> {
        self.topics += 1;
        let name = format!("bench-{}", self.topics);
        backlog.copy_slot(SLOT).await?;
        // Each run is a lineage of its own: another topic, and another topic of checkpoints.
        let relay = self
            .pipeline
            .users_relay
            .with_env("OUTBOX_SLOT", SLOT)
            .env("CHECKPOINT_TOPIC", &format!("{name}-checkpoints"))
            .env("ROUTER_OPTIONS", &format!("route.topic.replacement={name}"));
        relay
            .with_env("DATABASE_URL", &self.pipeline.database_url(USERS_DATABASE)?)
            .run(&[
                "init",
                "--adopt-slot",
                "--topic",
                &format!("{name}:{}", events::PARTITIONS),
            ])
            .await?;
        // A relay that finds the slot in use waits, as a standby does: that is not what is measured.
        backlog.wait_until_free(SLOT).await?;
        let topic = Topic::new(self.pipeline.bootstrap_servers(), &name);
        let run = self.timed(&relay, &topic, backlog).await?;
        relay.stop().await?;
        backlog.drop_slot(SLOT).await?;
        backlog.check_exactly_once(topic.event_ids().await?).await?;
        self.pipeline
            .kafka()?
            .topic_tool(&["--delete", "--topic", &name])
            .await?;
        Ok(run)
    }

    async fn timed(&self, relay: &Program, topic: &Topic, backlog: &Backlog) -> anyhow::Result<Run> {
        let postgres = self.pipeline.postgres()?.process().context("no postgres")?;
        let kafka = self.pipeline.kafka()?.process().context("no kafka")?;
        let postgres_before = usage::cpu_seconds_with_children(&postgres)?;
        let kafka_before = usage::cpu_seconds(&kafka)?;
        let start = Instant::now();
        relay.start()?;
        let mut counter = Counter::new(relay, PUBLISHED);
        let mut first_record_seconds = None;
        loop {
            let published = counter.read().await?;
            if published > 0 {
                first_record_seconds.get_or_insert_with(|| start.elapsed().as_secs_f64());
            }
            if published >= backlog.rows {
                break;
            }
            ensure!(
                start.elapsed() < RUN_DEADLINE,
                "the relay has published {published} rows only; its last log lines:\n{}",
                relay.log_tail(15)
            );
            tokio::time::sleep(POLL).await;
        }
        topic.wait_until_visible().await?;
        let seconds = start.elapsed().as_secs_f64();
        let process = relay.process().context("no relay")?;
        let transactions = Counter::new(relay, TRANSACTIONS).read().await?;
        Ok(Run {
            seconds,
            postgres_cpu_seconds: usage::cpu_seconds_with_children(&postgres)? - postgres_before,
            relay: Some(RelayRun {
                first_record_seconds: first_record_seconds.unwrap_or(seconds),
                cpu_seconds: usage::cpu_seconds(&process)?,
                peak_memory_mb: usage::peak_memory_mb(&process)?,
                kafka_cpu_seconds: usage::cpu_seconds(&kafka)? - kafka_before,
                rows_per_transaction: backlog.rows as f64 / transactions.max(1) as f64,
            }),
        })
    }
}

impl Run {
    fn rows_per_second(&self, backlog: &Backlog) -> f64 {
        backlog.rows as f64 / self.seconds
    }

    fn json(&self, backlog: &Backlog) -> Value {
        json!({
            "backlog": backlog.shape.describe(backlog.rows),
            "program": if self.relay.is_some() { "outbox-relay" } else { "pg_recvlogical" },
            "rows": backlog.rows,
            "seconds": self.seconds,
            "rows_per_second": self.rows_per_second(backlog),
            "postgres_cpu_seconds": self.postgres_cpu_seconds,
            "relay_cpu_seconds": self.relay.map(|relay| relay.cpu_seconds),
            "relay_peak_memory_mb": self.relay.map(|relay| relay.peak_memory_mb),
            "relay_first_record_seconds": self.relay.map(|relay| relay.first_record_seconds),
            "rows_per_kafka_transaction": self.relay.map(|relay| relay.rows_per_transaction),
            "kafka_cpu_seconds": self.relay.map(|relay| relay.kafka_cpu_seconds),
        })
    }
}

fn log(number: u32, what: &str, backlog: &Backlog, run: &Run) {
    let rate = thousands(run.rows_per_second(backlog));
    let own = run.relay.map_or_else(String::new, |relay| {
        format!(", {:.2} s of CPU, {:.1} MB", relay.cpu_seconds, relay.peak_memory_mb)
    });
    tracing::info!("  run {number}: {what:14} {:.2} s, {rate} rows/s{own}", run.seconds);
}

/// The medians of both.
fn rows_of(backlog: &Backlog, theirs: &[Run], ours: &[Run]) -> [Vec<String>; 2] {
    let of = |runs: &[Run], value: &dyn Fn(&Run) -> f64| median(&runs.iter().map(value).collect::<Vec<_>>());
    let relays: Vec<RelayRun> = ours.iter().filter_map(|run| run.relay).collect();
    let relay = |value: &dyn Fn(&RelayRun) -> f64| median(&relays.iter().map(value).collect::<Vec<_>>());
    let rate = |run: &Run| run.rows_per_second(backlog);
    let none = || "-".to_owned();
    let (their_rate, our_rate) = (of(theirs, &rate), of(ours, &rate));
    let yardstick = vec![
        backlog.shape.describe(backlog.rows),
        "pg_recvlogical".to_owned(),
        thousands(their_rate),
        "1".to_owned(),
        none(),
        none(),
        none(),
        none(),
        format!("{:.2}", of(theirs, &|run| run.postgres_cpu_seconds)),
        none(),
    ];
    let own = vec![
        String::new(),
        "outbox-relay".to_owned(),
        thousands(our_rate),
        format!("{:.2}", our_rate / their_rate),
        format!("{:.2}", relay(&|run| run.cpu_seconds * 1e6 / backlog.rows as f64)),
        format!("{:.1}", relay(&|run| run.peak_memory_mb)),
        format!("{:.2}", relay(&|run| run.first_record_seconds)),
        thousands(relay(&|run| run.rows_per_transaction)),
        format!("{:.2}", of(ours, &|run| run.postgres_cpu_seconds)),
        format!("{:.2}", relay(&|run| run.kafka_cpu_seconds)),
    ];
    [yardstick, own]
}
