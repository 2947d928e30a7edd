//! Runs a service as a program, from its command line to its exit code.

use std::process::ExitCode;

use axum::Router;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use service::{Shutdown, admin, logging};
use sqlx::migrate::Migrator;

use crate::probe::Requirement;
use crate::server::Config;
use crate::{Database, database, migrations, server};

/// What is different from service to service. [`run`] turns it into a program.
#[derive(Debug)]
pub struct Program {
    /// The program's name. The sessions in its database show it, too (`application_name`).
    pub name: &'static str,
    /// What `--version` prints behind the name.
    pub version: &'static str,
    /// What the service keeps, as a plural for the sentences of `--help`: `users`.
    pub things: &'static str,
    /// The address and port that it serves on when no other is given.
    pub listen: &'static str,
    /// What must be there before the service can work: its tables, and its rights to them.
    pub requirements: &'static [Requirement],
    /// What the command `migrate` applies.
    pub migrations: Migrator,
    /// Makes the routes. A handler that waits ends its wait when the program is to stop.
    pub routes: fn(Database, Shutdown) -> Router,
}

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    config: Config,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Command {
    /// Apply the migrations that are not applied yet, as the user of DATABASE_URL, and print which
    Migrate,
    /// Ask the program that serves LISTEN whether it is ready: 0 if it is, 1 if not
    Health,
}

/// The second paragraph of `--help`.
const ABOUT_ALL: &str = "Logs go to standard error: LOG is a level (default info) or a list of module=level, LOG_FORMAT is text or \
    json. /livez, /readyz and /metrics are on the same port as the API. Ends with 0 after SIGTERM or SIGINT, with 1 when a setting is \
    wrong or a migration fails.";

/// Does what the command line asks for. A failure is logged, and the exit code is 1.
pub async fn run(program: &Program) -> ExitCode {
    let cli = Cli::read(program);
    logging::init();
    let ended = match cli.command {
        Some(Command::Migrate) => migrate(program, &cli.config).await,
        Some(Command::Health) => health(&cli.config),
        None => serve(program, &cli.config).await,
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            tracing::error!(error = format!("{err:#}"), "ended");
            ExitCode::FAILURE
        }
    }
}

async fn serve(program: &Program, config: &Config) -> anyhow::Result<()> {
    let metrics = admin::install_metrics()?;
    let shutdown = Shutdown::on_signals()?;
    server::run(
        program.name,
        config,
        program.requirements,
        program.routes,
        metrics,
        shutdown,
    )
    .await
}

#[expect(
    clippy::print_stdout,
    reason = "a person runs this command and wants to see what it did"
)]
async fn migrate(program: &Program, config: &Config) -> anyhow::Result<()> {
    let session_name = format!("{} migrate", program.name);
    let options = database::options(config.database_url()?, &session_name)?;
    let applied = migrations::apply(&options, &program.migrations).await?;
    for name in &applied {
        println!("applied {name}");
    }
    if applied.is_empty() {
        println!("nothing to apply");
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the command prints its answer")]
fn health(config: &Config) -> anyhow::Result<()> {
    print!("{}", service::health::ask(config.listen)?);
    Ok(())
}

impl Cli {
    /// Reads the command line and the environment of this process. If help is asked for or a setting is wrong, it prints a text and ends the
    /// process.
    fn read(program: &Program) -> Self {
        let mut matches = command_line(program).get_matches();
        Self::from_arg_matches_mut(&mut matches).unwrap_or_else(|err| err.exit())
    }
}

/// The command line that all services share, with the texts and defaults of this program.
fn command_line(program: &Program) -> clap::Command {
    let about = format!(
        "Serves the {things}' REST API; with `migrate`, brings the {things}' database up to date instead",
        things = program.things
    );
    let long_about = format!("{about}.\n\n{ABOUT_ALL}");
    Cli::command()
        .name(program.name)
        .version(program.version)
        .about(about)
        .long_about(long_about)
        .mut_arg("listen", |listen| listen.required(false).default_value(program.listen))
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use sqlx::migrate::Migrator;

    use super::{Program, command_line};

    const THINGS_API: Program = Program {
        name: "things-api",
        version: "1.2.3",
        things: "things",
        listen: "127.0.0.1:4711",
        requirements: &[],
        migrations: Migrator::DEFAULT,
        routes: |_, _| Router::new(),
    };

    #[test]
    fn the_help_names_what_is_the_programs_own() {
        let mut command_line = command_line(&THINGS_API);
        command_line.build();
        command_line.clone().debug_assert();
        assert_eq!(command_line.render_version(), "things-api 1.2.3\n");
        let help = command_line.render_long_help().to_string();
        assert!(
            help.starts_with(
                "Serves the things' REST API; with `migrate`, brings the things' database up to date instead.\n\n"
            ),
            "{help}"
        );
        assert!(help.contains("[default: 127.0.0.1:4711]"), "{help}");
    }
}
