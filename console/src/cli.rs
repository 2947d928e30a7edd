//! The command line: reads the settings, serves until SIGTERM, ends with a documented exit code.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Parser as _;
use service::{Readiness, Shutdown, admin, logging};
use tokio::net::TcpListener;

use crate::actions::audit;
use crate::app::App;
use crate::settings::{Cli, Command, Settings, TokenArgs};
use crate::web::access::{Access, tokens};
use crate::{pages, snapshot};

/// A setting is wrong.
const WRONG_SETTING: u8 = 2;

/// How long answers that are under way may take once the program is to stop.
const PARTING: Duration = Duration::from_secs(2);

/// How long commands that run, and the ends of changes in the audit, are waited for once the program is to stop.
const JOBS_PARTING: Duration = Duration::from_secs(4);

/// Runs the program from its command line to its exit code.
#[must_use]
#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what a command prints is for a person"
)]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let serve = match cli.command {
        Some(Command::Token(args)) => {
            let token = new_token(&args);
            eprintln!("{}", token.for_person);
            println!("{}", token.line);
            return ExitCode::SUCCESS;
        }
        Some(Command::Health(args)) => {
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
        None => cli.serve,
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
    snapshot::begin(&app.settings, &app.store)?;
    tokio::spawn(prepare_audit(app.clone()));
    let pages = pages::router(app.clone());
    let (mut stop, mut end, mut over) = (shutdown.clone(), shutdown.clone(), shutdown);
    tracing::info!(listen = %address, "the console is open");
    let serving = axum::serve(listener, pages).with_graceful_shutdown(async move { stop.triggered().await });
    let served = async {
        tokio::select! {
            served = serving => served.context("the pages cannot be served"),
            // Pages that are open listen for new figures, and would hold the program up for ever.
            () = async { end.triggered().await; tokio::time::sleep(PARTING).await } => Ok(()),
        }
    };
    let jobs_end = async {
        over.triggered().await;
        app.jobs.end_all(JOBS_PARTING).await;
        Ok(())
    };
    tokio::try_join!(admin, served, jobs_end)?;
    Ok(())
}

/// Makes the audit's table, as soon as the views' database answers. Pages do not wait for it, and each change looks for the table once more.
async fn prepare_audit(app: App) {
    if !app.access.has_tokens() {
        return;
    }
    let views = &app.settings.pipeline.views;
    let (begun, mut is_told) = (Instant::now(), false);
    let database = views.command_database();
    let prepare = async || {
        audit::prepare(database, &views.database).await?;
        audit::end_left(database, begun.elapsed()).await
    };
    while let Err(err) = prepare().await {
        if !is_told {
            tracing::warn!(
                error = format!("{err:#}"),
                "the audit is not ready, so nothing can be changed; it is tried again"
            );
            is_told = true;
        }
        tokio::time::sleep(snapshot::INTERVAL).await;
    }
}

/// A new token: for the person's eyes, and as the line for the file. Only the line goes to standard output, so that it can be appended to the file.
struct NewToken {
    for_person: String,
    line: String,
}

fn new_token(args: &TokenArgs) -> NewToken {
    let token = tokens::random_text();
    NewToken {
        for_person: format!("token of {} (it is shown this once): {token}", args.name),
        line: tokens::line(&args.name, args.role, &token),
    }
}
