//! Connections to Postgres, with the settings that views rest on.

use std::time::Duration;

use service::Secret;
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, Config, NoTls};

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

/// The connection's settings from `DATABASE_URL`.
///
/// # Errors
/// It is no connection string for Postgres.
pub fn config(url: &Secret) -> Result<Config, Failure> {
    config_of("DATABASE_URL", url)
}

/// The connection's settings from the setting `name`.
///
/// # Errors
/// It is no connection string for Postgres.
pub(crate) fn config_of(name: &str, url: &Secret) -> Result<Config, Failure> {
    let url = service::password_file::resolve(url).map_err(|err| Failure::Setting(format!("{name}: {err:#}")))?;
    let mut config: Config = url.reveal().parse().map_err(|err: tokio_postgres::Error| {
        Failure::Setting(format!(
            "{name} is no connection string such as postgres://view_builder@localhost:15432/materialized_view_db: {}",
            refusal::line(&err)
        ))
    })?;
    if config.get_ssl_mode() == SslMode::Require {
        let reason = format!("{name} demands TLS, which this program does not speak: use sslmode=prefer or disable");
        return Err(Failure::Setting(reason));
    }
    config
        .connect_timeout(Duration::from_secs(5))
        .tcp_user_timeout(Duration::from_secs(10))
        .keepalives_idle(Duration::from_secs(5))
        .keepalives_interval(Duration::from_secs(2))
        .keepalives_retries(3);
    if config.get_application_name().is_none() {
        config.application_name("view-builder");
    }
    Ok(config)
}

/// A connection for an operator's command, which waits for a lock for 10 s at most.
///
/// # Errors
/// `url` is no connection string for Postgres, or Postgres does not answer.
pub(crate) async fn connect_for_command(url: &Secret) -> Result<Client, Failure> {
    let client = connect(&config(url)?).await.map_err(unanswered)?;
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

/// One connection, served by a task of its own.
///
/// # Errors
/// Postgres does not answer, or refuses.
pub async fn connect(config: &Config) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(async move {
        if let Err(err) = connection.await {
            tracing::debug!(error = %err, "a connection to postgres ended");
        }
    });
    client.batch_execute(SESSION).await?;
    Ok(client)
}
