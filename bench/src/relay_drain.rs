//! outbox-relay against pg_recvlogical, on the same backlog.

mod series;

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use stack::pipeline::USERS_DATABASE;
use stack::{Pipeline, PipelineBuilder, Program};

use crate::arguments::RelayDrain;
use crate::backlog::{Backlog, Shape, client_program};
use crate::counter::Counter;
use crate::report::Report;
use crate::topic::Topic;
use crate::usage;
use series::{RelayRun, Run, Series};

const SLOT: &str = "bench_run";
const PUBLISHED: &str = "relay_published_records_total";
const TRANSACTIONS: &str = "relay_transactions_total";
/// How often the relay is asked how far it is. An answer costs it about 0.1 ms.
const POLL: Duration = Duration::from_millis(20);
/// A run that takes longer does not come to an end.
const RUN_DEADLINE: Duration = Duration::from_secs(600);

/// # Errors
/// A part failed, or the relay did not publish every row exactly once.
pub(crate) async fn measure(options: &RelayDrain, builder: PipelineBuilder) -> anyhow::Result<Report> {
    let pg_recvlogical = client_program("pg_recvlogical", "postgresql-client")?;
    let pipeline = builder.prepare().await?;
    let mut drain = Drain {
        pipeline: &pipeline,
        pg_recvlogical,
        topics: 0,
    };
    let mut report = Report::begin(&pipeline, &series::HEADINGS).await?;
    report.notes = vec![
        "Medians; ratio: of the medians, relay to pg_recvlogical. The relay's clock runs from the start of its process until all rows are \
         visible to a read_committed consumer."
            .to_owned(),
    ];
    for (shape, rows) in [(Shape::Singles, options.singles), (Shape::Bulk, options.bulk)] {
        if rows > 0 {
            let series = drain.measure(shape, rows, options.runs).await?;
            series.write_into(&mut report);
        }
    }
    pipeline.stop().await?;
    Ok(report)
}

/// What both programs are run with.
struct Drain<'a> {
    pipeline: &'a Pipeline,
    pg_recvlogical: PathBuf,
    /// Topics made so far. Each of the relay's runs has a topic of its own.
    topics: u32,
}

impl Drain<'_> {
    /// Writes a backlog, and runs both programs on it in turn.
    async fn measure(&mut self, shape: Shape, rows: u64, runs: u32) -> anyhow::Result<Series> {
        tracing::info!("writing a backlog: {}", shape.describe(rows));
        let backlog = Backlog::write(self.pipeline, shape, rows).await?;
        if self.topics == 0 {
            tracing::info!("warming up");
            self.run_relay(&backlog).await?;
        }
        let (mut pg_recvlogical, mut relay) = (Vec::new(), Vec::new());
        for number in 1..=runs {
            let run = self.run_pg_recvlogical(&backlog).await?;
            run.log(number, &backlog);
            pg_recvlogical.push(run);
            let run = self.run_relay(&backlog).await?;
            run.log(number, &backlog);
            relay.push(run);
        }
        Ok(Series {
            backlog,
            pg_recvlogical,
            relay,
        })
    }

    async fn run_pg_recvlogical(&self, backlog: &Backlog) -> anyhow::Result<Run> {
        backlog.copy_slot(SLOT).await?;
        let postgres = self.pipeline.postgres()?.process().context("no postgres")?;
        let mut command = tokio::process::Command::new(&self.pg_recvlogical);
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
        // PostgreSQL counts the time of the walsender once the walsender has ended, which the drop waits for.
        backlog.drop_slot(SLOT).await?;
        Ok(Run {
            seconds,
            postgres_cpu_seconds: usage::cpu_seconds_with_children(&postgres)? - cpu_before,
            relay: None,
        })
    }

    async fn run_relay(&mut self, backlog: &Backlog) -> anyhow::Result<Run> {
        self.topics += 1;
        let name = format!("bench-{}", self.topics);
        backlog.copy_slot(SLOT).await?;
        // Each run has topics of its own, for the rows and for the checkpoints.
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
        // A relay that finds the slot in use waits, as a standby does. That wait is not to be measured.
        backlog.wait_until_free(SLOT).await?;
        let topic = Topic::new(self.pipeline.bootstrap_servers(), &name);
        let run = self.time_relay(&relay, &topic, backlog).await?;
        relay.stop().await?;
        backlog.drop_slot(SLOT).await?;
        backlog.check_exactly_once(topic.event_ids().await?).await?;
        self.pipeline
            .kafka()?
            .topic_tool(&["--delete", "--topic", &name])
            .await?;
        Ok(run)
    }

    /// Starts the relay, and waits until all rows are visible in the topic.
    async fn time_relay(&self, relay: &Program, topic: &Topic, backlog: &Backlog) -> anyhow::Result<Run> {
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
