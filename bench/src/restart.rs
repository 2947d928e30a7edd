//! How soon the relay publishes again after it has ended.

use std::time::Duration;

use anyhow::ensure;
use serde_json::json;
use stack::pipeline::USERS_DATABASE;
use stack::{PipelineBuilder, postgres};

use crate::arguments::Restart;
use crate::counter::Counter;
use crate::report::Report;
use crate::statistics::{latencies, quantile_ms};
use crate::topic::{Topic, now_us};

/// An aggregate type of its own, since the view-builder would try to apply a user's event.
const TOPIC: &str = "bench-events";
const INSERT: &str =
    "insert into outbox (aggregatetype, aggregateid, type, payload) values ('bench', $1, 'BENCHED', '{}')";
const POLL: Duration = Duration::from_millis(5);
const DEADLINE: Duration = Duration::from_secs(60);

/// # Errors
/// A part failed, or a record did not arrive.
pub(crate) async fn measure(asked: &Restart, builder: PipelineBuilder) -> anyhow::Result<Report> {
    let pipeline = builder.prepare().await?;
    let relay = &pipeline.users_relay;
    let topic = format!("{TOPIC}:{}", events::PARTITIONS);
    pipeline.init_relay(relay, USERS_DATABASE, &topic).await?;
    relay.start()?;
    relay.wait_ready(DEADLINE).await?;
    let client = postgres::connect(&pipeline.database_url(USERS_DATABASE)?).await?;
    let mut report = Report::begin(&pipeline, &["after", "restarts", "p50 s", "p99 s", "max s"]).await?;
    report.notes = vec![
        "From the start of the relay's process until a read_committed consumer has the row that was committed just before."
            .to_owned(),
    ];
    for (after, is_killed) in [("a clean stop", false), ("kill -9", true)] {
        let consumer = Topic::new(pipeline.bootstrap_servers(), TOPIC).receive()?;
        let mut started_us = Vec::new();
        for number in 0..asked.restarts {
            if is_killed {
                relay.kill_hard().await;
            } else {
                relay.stop().await?;
            }
            client.execute(INSERT, &[&number.to_string()]).await?;
            started_us.push(now_us());
            relay.start()?;
            let mut published = Counter::new(relay, "relay_published_records_total");
            let waiting = async {
                while published.read().await? == 0 {
                    tokio::time::sleep(POLL).await;
                }
                anyhow::Ok(())
            };
            tokio::time::timeout(DEADLINE, waiting).await??;
        }
        // The counter counts what is committed, and the consumer is at most a fetch behind.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let arrivals = consumer.end()?;
        ensure!(
            arrivals.len() == started_us.len(),
            "{} rows were committed, {} records were received",
            started_us.len(),
            arrivals.len()
        );
        let mut restarts_us = latencies()?;
        for (started, arrival) in started_us.iter().zip(&arrivals) {
            restarts_us.saturating_record(u64::try_from(arrival.received_us - started).unwrap_or(0));
        }
        let seconds = |quantile| quantile_ms(&restarts_us, quantile) / 1e3;
        tracing::info!("after {after}: p50 {:.2} s, max {:.2} s", seconds(0.5), seconds(1.0));
        report.table.row(vec![
            after.to_owned(),
            asked.restarts.to_string(),
            format!("{:.2}", seconds(0.5)),
            format!("{:.2}", seconds(0.99)),
            format!("{:.2}", seconds(1.0)),
        ]);
        report.runs.push(json!({
            "after": after, "restarts": asked.restarts,
            "p50_s": seconds(0.5), "p99_s": seconds(0.99), "max_s": seconds(1.0),
        }));
    }
    relay.stop().await?;
    pipeline.stop().await?;
    Ok(report)
}
