//! Connections to Postgres, with the settings that views rest on.

use std::time::Duration;

use pg_replication::Target;
use service::Secret;
use tokio_postgres::Client;

use super::refusal;
use crate::process::failure::Failure;

/// Settings of every session. UTC, because a date-time without zone is UTC. One plan for all batches, because planning
/// costs more than applying a single event, and because these plans read by index whatever the size of a table.
const SESSION: &str = "
    set time zone 'UTC';
    set search_path = public, pg_temp;
    set plan_cache_mode = force_generic_plan;
    set jit = off;
    set client_min_messages = warning;
    set idle_in_transaction_session_timeout = '10s'";

/// The server and how to log in there, from the setting `name`.
///
/// # Errors
/// It is no connection URL of Postgres.
pub(crate) fn target_of(name: &str, url: &Secret) -> Result<Target, Failure> {
    Target::parse(url.reveal()).map_err(|err| Failure::Setting(format!("{name}: {err}")))
}

/// A connection for an operator's command, which waits for a lock for 10 s at most.
///
/// # Errors
/// Postgres does not answer, or refuses.
pub(crate) async fn connect_for_command(target: &Target) -> Result<Client, Failure> {
    let client = connect(target).await.map_err(unanswered)?;
    client
        .batch_execute("set lock_timeout = '10s'")
        .await
        .map_err(unanswered)?;
    Ok(client)
}

/// An error of Postgres that ends an operator's command.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub(crate) fn unanswered(err: tokio_postgres::Error) -> Failure {
    anyhow::anyhow!("postgres does not do it, nothing is changed: {}", refusal::line(&err)).into()
}

/// One connection, served by a task of its own. The files of password and certificates are read for it.
///
/// # Errors
/// Postgres does not answer, or refuses.
pub async fn connect(target: &Target) -> Result<Client, tokio_postgres::Error> {
    let opened = target.open_tokio_postgres(|config| {
        config
            .tcp_user_timeout(Duration::from_secs(10))
            .keepalives_idle(Duration::from_secs(5))
            .keepalives_interval(Duration::from_secs(2))
            .keepalives_retries(3);
        if config.get_application_name().is_none() {
            config.application_name("view-builder");
        }
    });
    let (client, connection) = Box::pin(opened).await?;
    tokio::spawn(async move {
        if let Err(err) = connection.await {
            tracing::debug!(error = %err, "a connection to postgres ended");
        }
    });
    client.batch_execute(SESSION).await?;
    Ok(client)
}
