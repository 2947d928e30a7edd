//! The command line: reads the settings, runs one command, ends with a documented exit code.

use std::process::ExitCode;

use clap::Parser as _;
use service::{Shutdown, logging};

use crate::commands::{accept, dead_letters, pause, rebuild, replay, run, status, verify, views};
use crate::process::failure::Failure;
use crate::settings::{Cli, Command};

/// Runs the program from its command line to its exit code.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::init();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(err) => {
            tracing::error!(error = %err, "no runtime");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(execute(cli.command));
    // A call of librdkafka may still wait for a broker that is away. The process ends without waiting for that call.
    runtime.shutdown_background();
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            let text = match &failure {
                Failure::Other(err) => format!("{err:#}"),
                other => other.to_string(),
            };
            tracing::error!(error = text, "view-builder ends");
            failure.exit_code()
        }
    }
}

/// Runs the command. Returns its exit code.
#[expect(clippy::print_stdout, reason = "commands print their answers")]
async fn execute(command: Command) -> Result<u8, Failure> {
    let done = match command {
        Command::Run(config) => {
            let shutdown = Shutdown::on_signals().map_err(anyhow::Error::from)?;
            run(*config, shutdown).await
        }
        Command::Status(config) => {
            let answer = status::status(&config).await?;
            print!("{}", answer.text);
            return Ok(answer.exit_code);
        }
        Command::Accept(config) => {
            print!("{}", accept::accept(&config).await?);
            Ok(())
        }
        Command::Replay(config) => match &config.group {
            Some(group) => {
                match replay::reset_group(&config, group).await? {
                    Some(table) => print!("{table}"),
                    None => println!("Operation cancelled."),
                }
                Ok(())
            }
            None => tokio::task::spawn_blocking(move || replay::print(&config))
                .await
                .map_err(anyhow::Error::from)?,
        },
        Command::DeadLetters(command) => {
            let (answer, letters_are_left) = dead_letters::execute(&command).await?;
            print!("{answer}");
            if letters_are_left {
                Err(Failure::DeadLetters)
            } else {
                Ok(())
            }
        }
        Command::Views(config) => {
            print!("{}", views::views(&config)?);
            Ok(())
        }
        Command::Rebuild(config) => {
            let answer = if config.abandon {
                rebuild::abandon(&config).await?
            } else {
                rebuild::rebuild(&config).await?
            };
            print!("{answer}");
            Ok(())
        }
        Command::Drop(config) => {
            print!("{}", rebuild::drop_view(&config).await?);
            Ok(())
        }
        Command::Pause(config) => {
            print!("{}", pause::pause(&config).await?);
            Ok(())
        }
        Command::Resume(config) => {
            print!("{}", pause::resume(&config).await?);
            Ok(())
        }
        Command::Health(config) => {
            print!("{}", service::health::ask(config.admin_listen)?);
            Ok(())
        }
        Command::Verify(config) => {
            let report = verify::verify(&config).await?;
            print!("{report}");
            report.verdict()
        }
    };
    done.map(|()| 0)
}
