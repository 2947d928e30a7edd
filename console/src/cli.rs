//! The command line: reads the settings, serves until SIGTERM, ends with a documented exit code.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser as _};
use service::{Readiness, Shutdown, admin, logging};
use tokio::net::TcpListener;

use crate::app::App;
use crate::pages;
use crate::settings::{Cli, Command, Settings, TokenArgs};
use crate::web::access::{Access, tokens};

/// A setting is wrong.
const WRONG_SETTING: u8 = 2;

/// Runs the program from its command line to its exit code.
#[must_use]
#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what a command prints is for a person"
)]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let serve = match (cli.command, cli.serve) {
        (Some(Command::Token(args)), _) => {
            print!("{}", new_token(&args));
            return ExitCode::SUCCESS;
        }
        (Some(Command::Health(args)), _) => {
            return match service::health::ask(args.admin_listen) {
                Ok(answer) => {
                    print!("{answer}");
                    ExitCode::SUCCESS
                }
                Err(err) => {
                    eprintln!("console: {err:#}");
                    ExitCode::FAILURE
                }
            };
        }
        (None, Some(serve)) => serve,
        (None, None) => Cli::command()
            .error(
                clap::error::ErrorKind::MissingRequiredArgument,
                "--pipeline PATH is needed",
            )
            .exit(),
    };
    logging::init();
    let checked = serve.check().and_then(|settings| {
        let access = Access::new(settings.listen, settings.token_file.clone())?;
        Ok((settings, access))
    });
    let (settings, access) = match checked {
        Ok(checked) => checked,
        Err(reason) => {
            tracing::error!(error = reason, "a setting is wrong");
            return ExitCode::from(WRONG_SETTING);
        }
    };
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
    let outcome = runtime.block_on(async { run(settings, access, Shutdown::on_signals()?).await });
    // A call of librdkafka may still wait for a broker that is away.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            tracing::error!(error = format!("{err:#}"), "console ends");
            ExitCode::FAILURE
        }
    }
}

/// Serves the pages and the admin port until `shutdown`.
///
/// # Errors
/// An address cannot be bound.
pub async fn run(settings: Settings, access: Access, shutdown: Shutdown) -> anyhow::Result<()> {
    let metrics = admin::install_metrics()?;
    let readiness = Readiness::default();
    let listener = TcpListener::bind(settings.listen)
        .await
        .with_context(|| format!("cannot listen on {} (LISTEN)", settings.listen))?;
    let address = listener.local_addr()?;
    let admin = admin::serve(settings.admin_listen, readiness.clone(), metrics, shutdown.clone());
    let app = App::new(settings, access);
    let pages = pages::router(app);
    let mut stop = shutdown.clone();
    tracing::info!(listen = %address, "the console is open");
    let serving = axum::serve(listener, pages).with_graceful_shutdown(async move { stop.triggered().await });
    tokio::try_join!(admin, async { serving.await.context("the pages cannot be served") })?;
    Ok(())
}

/// A new token, and the line for the file.
fn new_token(args: &TokenArgs) -> String {
    let token = tokens::random_text();
    format!(
        "token of {} (it is shown this once): {token}\nline for the file of CONSOLE_TOKENS:\n{}\n",
        args.name,
        tokens::line(&args.name, args.role, &token)
    )
}
