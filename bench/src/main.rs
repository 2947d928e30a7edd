//! Measures the built programs on real PostgreSQL and real Apache Kafka. docs/benchmarks.md says how and what came of it.

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
mod usage;
mod verify;
mod view_cost;
mod view_drain;
mod view_scale;

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

/// Ctrl-C just ends this process: what it started is ended then by the shell that `stack` keeps for that.
async fn run(cli: &Cli) -> anyhow::Result<()> {
    let builder = pipeline(&cli.common);
    let report = match &cli.measurement {
        Measurement::RelayDrain(asked) => relay_drain::measure(asked, builder).await?,
        Measurement::Latency(asked) => latency::measure(asked, builder).await?,
        Measurement::Rest(asked) => rest_rate::measure(asked, builder).await?,
        Measurement::ViewDrain(asked) => view_drain::measure(asked, builder).await?,
        Measurement::ViewScale(asked) => view_scale::measure(asked, builder).await?,
        Measurement::DeadLetters(asked) => dead_letters::measure(asked, builder).await?,
        Measurement::Init(asked) => init::measure(asked, builder).await?,
        Measurement::Restart(asked) => restart::measure(asked, builder).await?,
        Measurement::Verify(asked) => verify::measure(asked, builder).await?,
        Measurement::ViewCost(asked) => view_cost::measure(asked, builder).await?,
    };
    report.print();
    match &cli.common.json {
        Some(file) => report.write(file),
        None => Ok(()),
    }
}

/// The servers as the quick start has them, on free ports.
fn pipeline(common: &Common) -> PipelineBuilder {
    let options = PostgresOptions {
        version: Some(common.postgres),
        ..PostgresOptions::default()
    };
    // The quick start's too: it tells when each row was committed.
    let builder = Pipeline::builder().postgres(options.setting("track_commit_timestamp", "on"));
    match &common.logs {
        Some(directory) => builder.logs(directory),
        None => builder,
    }
}
