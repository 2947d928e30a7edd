//! From a commit to Kafka, and from a commit to the view, at fixed rates.

mod parts_in_use;
mod run;
mod to_kafka;
mod to_view;

use std::time::Duration;

use stack::pipeline::USERS_DATABASE;
use stack::{Pipeline, PipelineBuilder};

use crate::arguments::Latency;
use crate::report::Report;
use crate::statistics::quantile_ms;
use crate::wal_files;
use run::Run;

/// How long each rate is kept before it is measured.
pub(crate) const WARM_UP_SECONDS: u32 = 5;
/// Before the first rate, both ways are warmed up for longer. A broker's first half minute is several times slower than the rest, and Java goes
/// on compiling it for four minutes: a third of a second at a time, in which it takes a whole processor.
const FIRST_WARM_UP: Latency = Latency {
    rate: Vec::new(),
    seconds: 120,
    connections: 32,
};
pub(crate) const FIRST_WARM_UP_RATE: u32 = 2_000;
/// By then the last change must have arrived.
pub(crate) const ARRIVAL_DEADLINE: Duration = Duration::from_secs(60);

/// # Errors
/// A part failed, or a change did not arrive.
pub(crate) async fn measure(options: &Latency, builder: PipelineBuilder) -> anyhow::Result<Report> {
    let pipeline = builder.prepare().await?;
    let topic = format!("{}:{}", to_kafka::TOPIC, events::PARTITIONS);
    pipeline
        .init_relay(&pipeline.users_relay, USERS_DATABASE, &topic)
        .await?;
    pipeline.start_programs().await?;
    let mut report = Report::begin(&pipeline, &run::HEADINGS).await?;
    warm_up(&pipeline).await?;
    let runs = measure_rates(&pipeline, options).await?;
    pipeline.stop().await?;
    write_into_report(&mut report, &runs);
    Ok(report)
}

async fn warm_up(pipeline: &Pipeline) -> anyhow::Result<()> {
    tracing::info!("warming up");
    wal_files::make_reusable(pipeline).await?;
    to_kafka::measure(pipeline, &FIRST_WARM_UP, FIRST_WARM_UP_RATE).await?;
    to_view::measure(pipeline, &FIRST_WARM_UP, FIRST_WARM_UP_RATE).await?;
    Ok(())
}

/// Measures both ways at each rate.
async fn measure_rates(pipeline: &Pipeline, options: &Latency) -> anyhow::Result<Vec<Run>> {
    let mut runs = Vec::new();
    for &rate in &options.rate {
        let both_ways = [
            to_kafka::measure(pipeline, options, rate).await?,
            to_view::measure(pipeline, options, rate).await?,
        ];
        for run in &both_ways {
            tracing::info!(
                "  commit to {} at {rate}/s ({} s): p50 {:.1} ms, p99 {:.1} ms",
                run.way,
                options.seconds,
                quantile_ms(&run.latencies_us, 0.5),
                quantile_ms(&run.latencies_us, 0.99)
            );
        }
        runs.extend(both_ways);
    }
    Ok(runs)
}

fn write_into_report(report: &mut Report, runs: &[Run]) {
    report.notes = vec![
        "From the transaction's commit record, so the flush of the WAL to disk is included. Kafka: until a read_committed consumer has the \
         record. View: until the commit record of the view's transaction. PostgreSQL has files of its log to use again, as one that \
         has been running for a while."
            .to_owned(),
    ];
    for run in runs {
        report.runs.push(run.json());
        report.table.add_row(run.table_row());
    }
}
