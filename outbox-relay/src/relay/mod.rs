//! The relay's life: cycles of starting and streaming, until it is told to stop or must.

pub mod keepalive;
pub mod pause;
pub mod startup;
pub mod streaming;
pub(crate) mod survey;
pub mod topic_watch;
mod trouble;
pub mod unpublished;

use std::time::{Duration, Instant};

use service::{Readiness, Shutdown};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::findings::outbox_check;
use crate::kafka::RefusedRecord;
use crate::process::stop::{RelayError, Stop};
use crate::relay::keepalive::UntilShutdown;
use crate::relay::pause::PauseGate;
use crate::relay::streaming::Streaming;
use crate::settings::Config;
use crate::upkeep;

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A cycle that lasted this long was no failed start.
const GOOD_CYCLE: Duration = Duration::from_secs(10);

/// Publishes until `shutdown`.
///
/// Whatever goes wrong on the way, Kafka's client and the replication connection are thrown away together and the next cycle begins
/// at the checkpoint: there is one way to recover, and each start takes it.
///
/// # Errors
/// The [`Stop`] that a person has to look at.
pub async fn relay(
    config: &Config,
    transaction_bytes: u64,
    readiness: &Readiness,
    mut shutdown: Shutdown,
) -> Result<(), Stop> {
    metrics::describe_gauge!(
        "relay_stopped_exit_code",
        "The exit code with which the relay has stopped for good."
    );
    trouble::describe();
    let mut warning = None;
    let outcome = cycles(config, transaction_bytes, readiness, &mut warning, &mut shutdown).await;
    if let Some(warning) = warning {
        warning.abort();
    }
    outcome
}

async fn cycles(
    config: &Config,
    transaction_bytes: u64,
    readiness: &Readiness,
    warning: &mut Option<JoinHandle<()>>,
    shutdown: &mut Shutdown,
) -> Result<(), Stop> {
    let mut backoff = BACKOFF_MIN;
    let pause = PauseGate::watch(config, readiness, shutdown).map_err(|err| Stop::Config { what: err.to_string() })?;
    while !shutdown.is_triggered() {
        let started = Instant::now();
        match cycle(config, transaction_bytes, &pause, readiness, warning, shutdown).await {
            Ok(()) => break,
            Err(RelayError::Stop(stop)) => {
                trouble::note(trouble::Kind::Stop);
                readiness.not_ready("relay", stop.to_string());
                metrics::gauge!("relay_stopped_exit_code").set(f64::from(stop.exit_code()));
                return Err(stop);
            }
            Err(RelayError::Transient(err)) => {
                // The next cycle knows the row and names it; there is nothing to wait for.
                if started.elapsed() > GOOD_CYCLE || RefusedRecord::cause_of(&err).is_some() {
                    backoff = BACKOFF_MIN;
                }
                trouble::note(trouble::Kind::of(&err));
                let reason = format!("{err:#}");
                readiness.not_ready("relay", reason.clone());
                metrics::counter!("relay_restarts_total").increment(1);
                tracing::warn!(
                    error = reason,
                    retry.in_ms = backoff.as_millis() as u64,
                    "starting again from the checkpoint"
                );
                tokio::select! {
                    () = sleep(backoff) => {}
                    () = shutdown.triggered() => break,
                }
                backoff = (backoff * 2).min(BACKOFF_MAX);
            }
        }
    }
    tracing::info!("stopped");
    Ok(())
}

async fn cycle(
    config: &Config,
    transaction_bytes: u64,
    pause: &PauseGate,
    readiness: &Readiness,
    warning: &mut Option<JoinHandle<()>>,
    shutdown: &mut Shutdown,
) -> Result<(), RelayError> {
    let UntilShutdown::Done(proven) = startup::start(config, readiness, shutdown).await? else {
        return Ok(());
    };
    tracing::info!(
        slot = config.source.slot.as_str(),
        checkpoint.lsn = %proven.checkpoint.published.lsn,
        "streaming from the checkpoint"
    );
    readiness.ready("relay");
    metrics::gauge!("relay_leader").set(1.0);
    // Once a process, of the server that streams, and beside the stream, which does not depend on it.
    warning.get_or_insert_with(|| {
        let config = proven.config_of_server.clone();
        tokio::spawn(async move { outbox_check::log_findings(&config).await })
    });
    let _maintenance = upkeep::start_maintenance(
        &proven.config_of_server,
        &proven.parked.needs_table,
        proven.catalog_xmin(),
    );
    let outcome = Streaming::new(config, transaction_bytes, proven, pause.clone())
        .run(readiness, shutdown)
        .await;
    metrics::gauge!("relay_leader").set(0.0);
    outcome
}
