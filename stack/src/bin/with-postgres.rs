//! Runs a command with a throw-away PostgreSQL: `with-postgres 18 cargo test`.
//!
//! The command finds a superuser's URL in `TEST_DATABASE_URL`. When the command ends, the server and its data are removed.

use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use rustix::process::Signal;
use stack::process::{Ending, Process};
use stack::{Postgres, PostgresOptions};
use tokio::signal::unix::{SignalKind, signal};

/// Run a command with a throw-away PostgreSQL, whose superuser URL it finds in TEST_DATABASE_URL.
#[derive(Debug, Parser)]
struct Arguments {
    /// Major version of PostgreSQL: 15 to 18.
    version: u32,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let options = PostgresOptions {
        version: Some(arguments.version),
        ..PostgresOptions::default()
    };
    // A test may kill a process, but not the machine. So what the kernel has got is safe without fsync.
    let postgres = Postgres::start(options.setting("fsync", "off")).await?;
    let (program, rest) = arguments.command.split_first().context("no command given")?;
    let mut command = Command::new(program);
    command
        .args(rest)
        .env("TEST_DATABASE_URL", postgres.url("postgres", "postgres"))
        .stdout(Stdio::inherit())
        .stderr(Stdio::inherit());
    let process = Process::spawn_with_stdout(program, &mut command, &postgres.log(), Ending::Kill)?;
    let status = tokio::select! {
        status = process.exited() => status,
        _ = terminate.recv() => process.stop(Signal::TERM, Duration::from_secs(5)).await?,
        _ = interrupt.recv() => process.stop(Signal::INT, Duration::from_secs(5)).await?,
    };
    postgres.stop_fast().await?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}
