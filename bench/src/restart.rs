//! How soon the relay publishes again after it has ended.

use std::time::Duration;

use anyhow::ensure;
use hdrhistogram::Histogram;
use serde_json::json;
use stack::pipeline::USERS_DATABASE;
use stack::{Pipeline, PipelineBuilder, Program, postgres};

use crate::arguments::Restart;
use crate::counter::Counter;
use crate::report::Report;
use crate::statistics::{latency_histogram, quantile_ms, record_latency};
use crate::topic::{Topic, now_us};

/// The topic of an aggregate type of its own, because view-builder would try to apply events of users.
const TOPIC: &str = "bench-events";
const INSERT: &str =
    "insert into outbox (aggregatetype, aggregateid, type, payload) values ('bench', $1, 'BENCHED', '{}')";
const POLL: Duration = Duration::from_millis(5);
const DEADLINE: Duration = Duration::from_secs(60);

/// How the relay is ended before a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    CleanStop,
    Kill,
}

/// All restarts after one kind of ending. Each latency is from the start of the process until the record was received.
struct Restarts {
    after: Ending,
    latencies_us: Histogram<u64>,
}

/// # Errors
/// A part failed, or a record did not arrive.
pub(crate) async fn measure(options: &Restart, builder: PipelineBuilder) -> anyhow::Result<Report> {
    let pipeline = builder.prepare().await?;
    let relay = &pipeline.users_relay;
    let topic = format!("{TOPIC}:{}", events::PARTITIONS);
    pipeline.init_relay(relay, USERS_DATABASE, &topic).await?;
    relay.start()?;
    relay.wait_ready(DEADLINE).await?;
    let mut report = Report::begin(&pipeline, &["after", "restarts", "p50 s", "p99 s", "max s"]).await?;
    let both = [
        measure_restarts(&pipeline, Ending::CleanStop, options.restarts).await?,
        measure_restarts(&pipeline, Ending::Kill, options.restarts).await?,
    ];
    relay.stop().await?;
    pipeline.stop().await?;
    write_into_report(&mut report, &both);
    Ok(report)
}

/// As often as `restarts` says: ends the relay, commits a row, starts the relay, and waits until it has published the row.
async fn measure_restarts(pipeline: &Pipeline, after: Ending, restarts: u32) -> anyhow::Result<Restarts> {
    let relay = &pipeline.users_relay;
    let client = postgres::connect(&pipeline.database_url(USERS_DATABASE)?).await?;
    let consumer = Topic::new(pipeline.bootstrap_servers(), TOPIC).receive()?;
    let mut starts_us = Vec::new();
    for number in 0..restarts {
        match after {
            Ending::CleanStop => relay.stop().await?,
            Ending::Kill => relay.kill_hard().await,
        }
        client.execute(INSERT, &[&number.to_string()]).await?;
        starts_us.push(now_us());
        relay.start()?;
        tokio::time::timeout(DEADLINE, wait_until_published(relay)).await??;
    }
    // The counter counts only what is committed, and the consumer is at most one fetch behind.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let arrivals = consumer.end()?;
    ensure!(
        arrivals.len() == starts_us.len(),
        "{} rows were committed, {} records were received",
        starts_us.len(),
        arrivals.len()
    );
    let mut latencies_us = latency_histogram()?;
    for (start_us, arrival) in starts_us.iter().zip(&arrivals) {
        record_latency(&mut latencies_us, *start_us, arrival.received_us);
    }
    let restarts = Restarts { after, latencies_us };
    tracing::info!(
        "after {}: p50 {:.2} s, max {:.2} s",
        after.in_words(),
        restarts.quantile_s(0.5),
        restarts.quantile_s(1.0)
    );
    Ok(restarts)
}

async fn wait_until_published(relay: &Program) -> anyhow::Result<()> {
    let mut published = Counter::new(relay, "relay_published_records_total");
    while published.read().await? == 0 {
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

fn write_into_report(report: &mut Report, both: &[Restarts]) {
    report.notes = vec![
        "From the start of the relay's process until a read_committed consumer has the row that was committed just before."
            .to_owned(),
    ];
    for restarts in both {
        let count = restarts.latencies_us.len();
        report.table.add_row(vec![
            restarts.after.in_words().to_owned(),
            count.to_string(),
            format!("{:.2}", restarts.quantile_s(0.5)),
            format!("{:.2}", restarts.quantile_s(0.99)),
            format!("{:.2}", restarts.quantile_s(1.0)),
        ]);
        report.runs.push(json!({
            "after": restarts.after.in_words(), "restarts": count,
            "p50_s": restarts.quantile_s(0.5), "p99_s": restarts.quantile_s(0.99), "max_s": restarts.quantile_s(1.0),
        }));
    }
}

impl Restarts {
    fn quantile_s(&self, quantile: f64) -> f64 {
        quantile_ms(&self.latencies_us, quantile) / 1e3
    }
}

impl Ending {
    fn in_words(self) -> &'static str {
        match self {
            Self::CleanStop => "a clean stop",
            Self::Kill => "kill -9",
        }
    }
}
