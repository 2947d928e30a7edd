//! Runs a REST program: it listens, watches the database, answers, and ends.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use metrics_exporter_prometheus::PrometheusHandle;
use service::{Readiness, Secret, Shutdown, admin};
use tokio::net::TcpListener;

use crate::connections::Clients;
use crate::probe::{self, Requirement};
use crate::{Database, database, edge, health};

/// How long the requests under way may go on after the program was asked to stop. It is so short that the whole program ends within 5 s.
const DRAIN_LIMIT: Duration = Duration::from_secs(4);

/// Settings of a program that serves REST from a database.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Config {
    /// Address and port to serve on; port 0 takes a free one and logs it
    #[arg(long, env = "LISTEN")]
    pub(crate) listen: SocketAddr,
    /// The database: postgres://user:password@host:5432/database, or ...?passwordfile=PATH with a file that holds the password alone
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, global = true)]
    pub(crate) database_url: Option<Secret>,
    /// Requests use at most so many connections to the database at once; one more connection watches its health
    #[arg(long, env = "DATABASE_CONNECTIONS", default_value_t = 16, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1000))]
    pub(crate) database_connections: usize,
}

impl Config {
    /// The database's URL.
    ///
    /// # Errors
    /// None was given.
    pub(crate) fn database_url(&self) -> anyhow::Result<&Secret> {
        self.database_url
            .as_ref()
            .context("no database: give --database-url or DATABASE_URL, like postgres://user@host:5432/database")
    }
}

/// Serves the routes that `routes` makes, and `/livez`, `/readyz`, `/metrics`, `/actuator/health`, `/actuator/info`. After `shutdown` it lets
/// requests under way end.
///
/// It listens before the database is there. Until then a request that needs the database is answered 503.
///
/// # Errors
/// A setting is wrong, or the address cannot be listened on.
pub(crate) async fn run(
    program: &str,
    config: &Config,
    requirements: &'static [Requirement],
    routes: fn(Database, Shutdown) -> Router,
    metrics: PrometheusHandle,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let options = database::options(config.database_url()?, program)?;
    let listen = config.listen;
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen} (LISTEN)"))?;
    let address = listener.local_addr().context("no local address")?;

    tracing::info!(http.listen = %address, "listening");

    let readiness = Readiness::waiting_for(probe::PART);
    let database = Database::new(options.clone(), config.database_connections);
    let app = edge::wrap(
        routes(database, shutdown.clone())
            .merge(health::router(readiness.clone()))
            .merge(admin::router(readiness.clone(), metrics)),
    );
    let watch = tokio::spawn(probe::watch(options, requirements, readiness, shutdown.clone()));

    serve(listener, app, shutdown).await?;
    watch.await.context("the database's watch failed")?;
    tracing::info!("stopped");
    Ok(())
}

async fn serve(listener: TcpListener, app: Router, mut shutdown: Shutdown) -> anyhow::Result<()> {
    let mut stop = shutdown.clone();
    let serving = axum::serve(Clients::new(listener), app)
        .with_graceful_shutdown(async move { stop.triggered().await })
        .into_future();
    let time_is_up = async {
        shutdown.triggered().await;
        tokio::time::sleep(DRAIN_LIMIT).await;
    };
    tokio::select! {
        served = serving => served.context("serving failed"),
        () = time_is_up => {
            tracing::warn!(drain.limit_s = DRAIN_LIMIT.as_secs(), "requests under way were broken off");
            Ok(())
        }
    }
}
