//! Measures the built programs on real PostgreSQL and real Apache Kafka. docs/benchmarks.md says how, and has the results.

mod arguments;
mod backlog;
mod counter;
mod dead_letters;
mod http;
mod init;
mod latency;
mod pace;
mod people;
mod relay_drain;
mod report;
mod rest_rate;
mod restart;
mod statistics;
mod topic;
mod trace;
mod usage;
mod verify;
mod view_cost;
mod view_drain;
mod view_scale;
mod wal_files;

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use stack::{Pipeline, PipelineBuilder, PostgresOptions};

use crate::arguments::{Cli, Common, Measurement};

fn main() -> ExitCode {
    let cli = Cli::parse();
    stack::narration::start(&["bench"]);
    let ended = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
        .and_then(|runtime| runtime.block_on(run(&cli)));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            tracing::error!("\nbench: {err:#}");
            ExitCode::FAILURE
        }
    }
}

/// Ctrl-C ends this process at once. A shell that `stack` keeps for this purpose then ends the servers and programs.
async fn run(cli: &Cli) -> anyhow::Result<()> {
    let builder = pipeline_builder(&cli.common);
    let report = match &cli.measurement {
        Measurement::RelayDrain(options) => relay_drain::measure(options, builder).await?,
        Measurement::Latency(options) => latency::measure(options, builder).await?,
        Measurement::Rest(options) => rest_rate::measure(options, builder).await?,
        Measurement::ViewDrain(options) => view_drain::measure(options, builder).await?,
        Measurement::ViewScale(options) => view_scale::measure(options, builder).await?,
        Measurement::DeadLetters(options) => dead_letters::measure(options, builder).await?,
        Measurement::Init(options) => init::measure(options, builder).await?,
        Measurement::Restart(options) => restart::measure(options, builder).await?,
        Measurement::Verify(options) => verify::measure(options, builder).await?,
        Measurement::ViewCost(options) => view_cost::measure(options, builder).await?,
        Measurement::Trace(options) => trace::measure(options, builder).await?,
    };
    report.print();
    match &cli.common.json {
        Some(file) => report.write(file),
        None => Ok(()),
    }
}

/// A pipeline with the settings of the quick start, on free ports.
fn pipeline_builder(common: &Common) -> PipelineBuilder {
    let options = PostgresOptions {
        version: Some(common.postgres),
        ..PostgresOptions::default()
    };
    // The quick start has this setting, too. It lets PostgreSQL tell when each row was committed.
    let builder = Pipeline::builder().postgres(options.setting("track_commit_timestamp", "on"));
    match &common.logs {
        Some(directory) => builder.logs(directory),
        None => builder,
    }
}
