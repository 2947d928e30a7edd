//! `outbox-relay`: the rows of a Postgres outbox table into Kafka, exactly once, in commit order.
//!
//! The relay reads no payload and queries no business table. It creates no slot and sets no checkpoint unless an operator's
//! `init` says so, and it confirms no position before everything at or below it is in a committed Kafka transaction.
//! [`relay::startup::start`] says why the order of its first steps is right, [`continuity::progress`] keeps its positions, [`relay::streaming`] is its loop.

#![allow(
    rustdoc::private_intra_doc_links,
    reason = "a program: whoever reads its pages makes them with --document-private-items"
)]

pub mod cli;
pub mod commands;
pub mod continuity;
pub mod findings;
pub mod guard;
pub mod intake;
pub mod kafka;
pub mod outbox;
pub mod parking;
pub mod process;
pub mod relay;
pub mod settings;
pub mod topics;
pub mod upkeep;

use std::time::Duration;

use service::{Exporter, Readiness, Shutdown, admin};

use crate::commands::init::Initialised;
use crate::commands::{accept, check, init, park, recover, replay, status};
use crate::findings::Finding;
use crate::process::answer::Answer;
use crate::process::stop::{RelayError, Stop};
use crate::process::{faults, panics};
use crate::relay::pause;
use crate::relay::unpublished;
use crate::settings::{Command, Config, InitOptions, RunArgs};

/// Carries out a command. Returns what it prints, and its exit code.
///
/// # Errors
/// A [`Stop`] with its exit code, or an error that only reports.
pub async fn run(command: Command, shutdown: Shutdown) -> Result<Answer, RelayError> {
    let text = match command {
        Command::Check(settings) => {
            let findings = check::check(&settings.check()?).await;
            let report = check::report(&findings);
            if findings.iter().any(|finding| matches!(finding, Finding::Problem(_))) {
                return Err(anyhow::anyhow!("{report}there are problems").into());
            }
            report
        }
        Command::Status(args) => return status::status(&args.settings.check()?, &args.options, shutdown).await,
        Command::Init(args) => {
            let mut config = args.settings.check()?;
            config.poison = args.poison;
            let accepted = args.accept.accepted();
            let done = if accepted.is_empty() {
                init_patiently(&config, &args.init, &shutdown).await?
            } else {
                Box::pin(accept::accept(&config, &args.init, &accepted, &shutdown)).await?
            };
            describe(&config, &done)
        }
        Command::Recover(args) => {
            let mut config = args.settings.check()?;
            config.poison = args.poison;
            recover::recover(&config, &args.recover, &shutdown).await?
        }
        Command::Replay(args) => replay::replay(&args.settings.check()?, &args.replay, &shutdown).await?,
        Command::Pause(args) => pause::pause(&args.settings.check()?, &args.reason).await?,
        Command::Resume(settings) => pause::resume(&settings.check()?).await?,
        Command::Park(args) => Box::pin(park::park(&args.settings.check()?, &args, &shutdown)).await?,
        Command::Parked(command) => Box::pin(park::parked(command, &shutdown)).await?,
        Command::Health(args) => service::health::ask(args.admin_listen)?,
        Command::Run(args) => {
            serve(args, shutdown).await?;
            String::new()
        }
    };
    Ok(Answer::from(text))
}

fn describe(config: &Config, done: &Initialised) -> String {
    match done {
        Initialised::Already { checkpoint } => format!(
            "slot {} was initialised before; its checkpoint is {checkpoint}\n",
            config.source.slot
        ),
        Initialised::Created { checkpoint, rows } => {
            format!(
                "slot {} is made; {rows} existing rows are published; the checkpoint is {checkpoint}\n",
                config.source.slot
            )
        }
        Initialised::Adopted { checkpoint } => format!("slot {} is adopted at {checkpoint}\n", config.source.slot),
        Initialised::Accepted { checkpoint, what } => {
            format!(
                "accepted {what}: slot {} goes on from {checkpoint}\n",
                config.source.slot
            )
        }
    }
}

/// `init`, until Postgres and Kafka are there.
async fn init_patiently(
    config: &Config,
    options: &InitOptions,
    shutdown: &Shutdown,
) -> Result<Initialised, RelayError> {
    loop {
        match init::init(config, options, shutdown).await {
            // A server that answers with an error, or refuses us, will do the same again; one that is not there may come.
            Err(RelayError::Transient(err))
                if pg_replication::PgError::code_of(&err).is_none_or(|code| code.starts_with("57P"))
                    && !kafka::Refused::is_cause_of(&err)
                    && !shutdown.is_triggered() =>
            {
                tracing::warn!(error = format!("{err:#}"), "init waits and tries again");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            outcome => return outcome,
        }
    }
}

async fn serve(args: RunArgs, shutdown: Shutdown) -> Result<(), RelayError> {
    let mut config = args.settings.check()?;
    config.maintenance = Some(args.maintenance.check(&config.source.target)?);
    config.poison = args.poison;
    let readiness = Readiness::waiting_for("relay");
    panics::report_to(&readiness);
    let metrics = Exporter::from(admin::install_metrics()?).with(unpublished::render);
    // A thread of its own: the relay's must not be shared, and an answer about its health must not wait for it.
    let (admin_readiness, admin_shutdown) = (readiness.clone(), shutdown.clone());
    let listener = std::net::TcpListener::bind(args.admin_listen).map_err(|err| Stop::Config {
        what: format!("ADMIN_LISTEN: cannot listen on {}: {err}", args.admin_listen),
    })?;
    std::thread::Builder::new().name("admin".to_owned()).spawn(move || {
        let outcome = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(anyhow::Error::from)
            .and_then(|runtime| {
                faults::point("admin")?;
                runtime.block_on(admin::serve_on(listener, admin_readiness, metrics, admin_shutdown))
            });
        if let Err(err) = outcome {
            tracing::error!(error = format!("{err:#}"), "the admin port failed");
        }
    })?;
    if args.init {
        let done = init_patiently(&config, &args.init_options, &shutdown).await?;
        tracing::info!("{}", describe(&config, &done).trim_end());
    }
    let outcome = relay::relay(&config, args.transaction_bytes, &readiness, shutdown.clone()).await;
    if let Err(stop) = &outcome
        && args.linger_stopped > 0
    {
        linger(stop, Duration::from_secs(args.linger_stopped), shutdown).await;
    }
    Ok(outcome?)
}

/// A process that has ended cannot be scraped: the admin port goes on answering for a while, and says why the relay stopped.
async fn linger(stop: &Stop, time: Duration, mut shutdown: Shutdown) {
    tracing::error!(
        exit_code = stop.exit_code(),
        linger_s = time.as_secs(),
        "stopped for good: {stop}; the admin port answers until the process ends"
    );
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        () = shutdown.triggered() => {}
    }
}
