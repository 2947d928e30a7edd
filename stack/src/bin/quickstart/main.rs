//! Starts the whole pipeline on one machine, by one command.

mod arguments;
mod load;
mod people;
mod progress;
mod report;
mod view;

use std::fs::File;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Parser;
use stack::{KafkaOptions, Pipeline, PipelineBuilder, PostgresOptions};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::arguments::Arguments;

/// The exit status that a shell gives to a command that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    stack::narration::start(&["quickstart"]);
    let ended = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
        .and_then(|runtime| runtime.block_on(run(&arguments)));
    match ended {
        Ok(code) => code,
        Err(err) => {
            tracing::error!("\nquickstart: {err:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new()?;
    arguments.check_ports()?;
    let _lock = arguments.data.as_deref().map(lock).transpose()?;
    tracing::info!("starting PostgreSQL and Kafka on this machine's loopback interface");
    let starting = builder(arguments).start();
    let pipeline = tokio::select! {
        started = starting => started?,
        () = signals.received() => {
            tracing::info!("\nstopped before everything was up");
            return Ok(ExitCode::from(INTERRUPTED));
        }
    };
    report::ready(&pipeline)?;
    let ended = tokio::select! {
        ended = work(&pipeline, arguments) => ended,
        () = signals.received() => Ok(ExitCode::SUCCESS),
        ended = pipeline.unexpected_end() => Err(anyhow::anyhow!(
            "{} ended by itself ({}), so everything ends; its last log lines:\n{}",
            ended.name, ended.status, ended.log_tail
        )),
    };
    tracing::info!("\nending the programs, then Kafka, then PostgreSQL");
    let stopped = tokio::select! {
        stopped = pipeline.stop() => stopped,
        // A second Ctrl-C kills what still runs.
        () = signals.received() => Ok(()),
    };
    if arguments.postgres.is_some() {
        tracing::info!(
            "the replication slots users_relay and posts_relay stay in your PostgreSQL, which keeps all WAL for them; to give it up: \
             select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name in ('users_relay', 'posts_relay')"
        );
    }
    // The reason for the end matters more than an error while stopping.
    let code = ended?;
    stopped.map(|()| code)
}

/// Creates users if `--users` asks for them. Then waits until somebody ends us, unless `--exit` is set.
async fn work(pipeline: &Pipeline, arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    if arguments.users > 0 {
        tracing::info!(
            "creating {} users over {} connections",
            arguments.users,
            arguments.connections
        );
        let start = Instant::now();
        let outcome = load::create_users(&pipeline.user_api.url("/api/users"), arguments).await?;
        let Some(ids) = outcome.ids else {
            bail!("no user could be created: {:?}", outcome.failures);
        };
        let view = view::wait(pipeline, ids, outcome.created, start).await?;
        report::load(&outcome, &view);
        if outcome.failed() > 0 || view.rows < outcome.created {
            code = ExitCode::FAILURE;
        }
    }
    if !arguments.exit {
        std::future::pending::<()>().await;
    }
    Ok(code)
}

fn builder(arguments: &Arguments) -> PipelineBuilder {
    let mut builder = Pipeline::builder().ports(arguments.ports());
    let data = |name: &str| arguments.data.as_ref().map(|data| data.join(name));
    if let Some(logs) = data("logs") {
        builder = builder.logs(&logs);
    }
    builder = builder.console(data("console").as_deref());
    builder = match &arguments.postgres {
        Some(url) => builder.postgres_url(url),
        None => {
            let options = PostgresOptions {
                port: arguments.postgres_port,
                data: data("postgres"),
                ..PostgresOptions::default()
            };
            // The report's latencies need the time of each commit.
            builder.postgres(options.setting("track_commit_timestamp", "on"))
        }
    };
    match &arguments.kafka {
        Some(address) => builder.bootstrap_servers(address),
        None => builder.kafka(KafkaOptions {
            port: arguments.kafka_port,
            data: data("kafka"),
            ..KafkaOptions::default()
        }),
    }
}

/// Takes the lock of the data directory, because two quick starts must not write the same data.
fn lock(data: &Path) -> anyhow::Result<File> {
    std::fs::create_dir_all(data).with_context(|| format!("cannot make {}", data.display()))?;
    let file = stack::process::append(&data.join("lock"))?;
    if file.try_lock().is_err() {
        bail!(
            "another quick start uses {}: choose another directory with --data",
            data.display()
        );
    }
    Ok(file)
}

/// Ctrl-C, SIGTERM, and the end of the terminal.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn received(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
