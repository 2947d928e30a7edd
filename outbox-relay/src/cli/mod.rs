//! The command line: runs a command, prints what it tells, and turns its outcome into an exit code.

#[cfg(test)]
mod exit_codes_page;

use std::process::ExitCode;

use crate::process::panics;
use crate::process::stop::RelayError;
use crate::settings::Cli;
use clap::Parser;
use service::{Shutdown, logging};

/// The whole program.
#[must_use]
#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what a command prints is for a person"
)]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::init();
    if !planted::survives_panics() {
        panics::end_the_process();
    }
    crate::process::allocator::settle();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(err) => {
            eprintln!("outbox-relay: cannot start: {err}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(async { Box::pin(crate::run(cli.command, Shutdown::on_signals()?)).await });
    // A thread that waits for Kafka must not keep a stopped relay alive.
    runtime.shutdown_background();
    panics::go_first();
    match outcome {
        Ok(answer) => {
            print!("{}", answer.text);
            ExitCode::from(answer.exit_code)
        }
        Err(RelayError::Stop(stop)) => {
            eprintln!("outbox-relay: {stop}");
            ExitCode::from(stop.exit_code())
        }
        Err(RelayError::Transient(err)) => {
            eprintln!("outbox-relay: {err:#}");
            ExitCode::FAILURE
        }
    }
}

/// The planted bugs of this file. Without the feature `faults` none of them is there.
mod planted {
    use crate::process::faults::{self, Bug};

    pub(super) fn survives_panics() -> bool {
        faults::is_planted(Bug::SurvivePanics)
    }
}
