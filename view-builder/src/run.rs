//! `view-builder run`.

use std::sync::Arc;

use service::{Exporter, Readiness, Shutdown, admin};

use crate::assignment::Limits;
use crate::builder::Builder;
use crate::config::Config;
use crate::database::Database;
use crate::failure::Failure;
use crate::{kafka, lag, measure, topics, view};

/// Keeps the views until `shutdown`. Waits for Postgres, Kafka and the topics, for as long as it takes.
///
/// # Errors
/// See [`Failure`]; a wrong setting and a wrong view are found before anything is changed.
pub async fn run(config: Config, mut shutdown: Shutdown) -> Result<(), Failure> {
    let views: Arc<[view::View]> = view::load_all(&config.views)?.into();
    let readiness = Readiness::waiting_for("postgres");
    readiness.not_ready("kafka", "starting");
    let mut database = Database::new(&config.servers.database_url, views.clone(), readiness.clone())?;
    let instance = config.group_instance_id.as_deref();
    let consumer = Arc::new(kafka::consumer(&config.servers.kafka, instance, config.batch_bytes)?);
    let listener = std::net::TcpListener::bind(config.admin_listen).map_err(|err| {
        Failure::Setting(format!(
            "cannot listen on {} (ADMIN_LISTEN): {err}",
            config.admin_listen
        ))
    })?;
    let metrics = Exporter::from(admin::install_metrics()?).with(lag::render);
    measure::describe();
    let admin = tokio::spawn(admin::serve_on(listener, readiness.clone(), metrics, shutdown.clone()));

    let ended = tokio::select! {
        installed = database.install() => installed,
        () = shutdown.triggered() => return Ok(()),
    };
    ended?;
    let names: Vec<&str> = views.iter().map(|view| view.name.as_str()).collect();
    tracing::info!(views = names.join(", "), "the views are installed");

    let watch = tokio::spawn(topics::watch(
        Arc::downgrade(&consumer),
        view::topics(&views),
        readiness.clone(),
    ));
    let limits = Limits {
        rows: usize::try_from(config.batch_rows).unwrap_or(usize::MAX),
        bytes: usize::try_from(config.batch_bytes).unwrap_or(usize::MAX),
    };
    let ended = Builder::new(consumer, database, limits, owner(), readiness)
        .run(shutdown)
        .await;
    watch.abort();
    admin.abort();
    ended
}

/// Names this process to people who look at the positions.
fn owner() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}/{}", host.trim(), std::process::id())
}
