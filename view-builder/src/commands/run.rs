//! `view-builder run`: keeps the views, and replaces its Kafka clients when they have to be replaced.

use std::sync::Arc;
use std::time::{Duration, Instant};

use service::{Exporter, Readiness, Shutdown, admin};

use crate::builder::Builder;
use crate::builder::assignment::Limits;
use crate::builder::parting::Parting;
use crate::builder::{lag, topics};
use crate::commands::pause;
use crate::kafka::servers::Kafka;
use crate::kafka::{self, GroupConsumer, Observer};
use crate::process::failure::Failure;
use crate::process::measure;
use crate::settings::Config;
use crate::views::database::Database;
use crate::views::view;

/// A client that has failed for good is replaced, but if the next one fails within this time, the process ends. Otherwise two processes with the
/// same static name would expel each other from the group for ever, each with its next client.
const REPLACEMENT_INTERVAL_MIN: Duration = Duration::from_secs(60);
/// Pause before new clients are tried again, if the files of their secrets do not fit together yet: the certificate is replaced, and its key not
/// yet.
const SECRETS_INTERVAL: Duration = Duration::from_secs(1);

/// The two clients that speak with Kafka.
struct Clients {
    consumer: Arc<GroupConsumer>,
    observer: Arc<Observer>,
}

impl Clients {
    /// # Errors
    /// A property or one of its files cannot be used.
    fn open(config: &Config) -> Result<Self, Failure> {
        let instance = config.group_instance_id.as_deref();
        Ok(Self {
            consumer: Arc::new(kafka::consumer(&config.servers.kafka, instance, config.batch_bytes)?),
            observer: Arc::new(kafka::observer(&config.servers.kafka)?),
        })
    }

    /// Tries [`Clients::open`] again and again until the files can be used. `None`: `shutdown` came first.
    async fn open_once_secrets_are_whole(
        config: &Config,
        readiness: &Readiness,
        shutdown: &mut Shutdown,
    ) -> Option<Self> {
        loop {
            match Self::open(config) {
                Ok(clients) => return Some(clients),
                Err(err) => {
                    tracing::warn!(error = %err, "no kafka client can be made of the replaced secrets yet");
                    readiness.not_ready("kafka", format!("the replaced secrets cannot be used: {err}"));
                }
            }
            tokio::select! {
                () = tokio::time::sleep(SECRETS_INTERVAL) => {}
                () = shutdown.triggered() => return None,
            }
        }
    }
}

/// Keeps the views until `shutdown`. Waits for Postgres, Kafka and the topics, for as long as it takes.
///
/// # Errors
/// See [`Failure`]; a wrong setting and a wrong view are found before anything is changed.
pub async fn run(config: Config, shutdown: Shutdown) -> Result<(), Failure> {
    let views: Arc<[view::View]> = view::load_all(&config.folder.views)?.into();
    let readiness = Readiness::waiting_for("postgres");
    readiness.not_ready("kafka", "starting");
    let database = Database::new(&config.servers.database.0, views.clone(), readiness.clone());
    let clients = Clients::open(&config)?;
    let listener = std::net::TcpListener::bind(config.admin.admin_listen).map_err(|err| {
        Failure::Setting(format!(
            "cannot listen on {} (ADMIN_LISTEN): {err}",
            config.admin.admin_listen
        ))
    })?;
    let metrics = Exporter::from(admin::install_metrics()?).with(lag::render);
    measure::describe();
    let admin = tokio::spawn(admin::serve_on(listener, readiness.clone(), metrics, shutdown.clone()));

    let ended = keep_views(&config, &views, clients, database, &readiness, &shutdown).await;
    admin.abort();
    ended
}

/// Keeps the views. When a Kafka client has failed for good or has outdated secrets, it goes on with new clients.
async fn keep_views(
    config: &Config,
    views: &Arc<[view::View]>,
    mut clients: Clients,
    mut database: Database,
    readiness: &Readiness,
    shutdown: &Shutdown,
) -> Result<(), Failure> {
    let mut replaced_at: Option<Instant> = None;
    loop {
        clients = match keep_views_with_clients(config, views, clients, database, readiness, shutdown.clone()).await {
            Err(Failure::Client(code)) if replaced_at.is_none_or(|at| at.elapsed() > REPLACEMENT_INTERVAL_MIN) => {
                tracing::warn!(error = %code, "the kafka client has failed for good: another one takes its place");
                replaced_at = Some(Instant::now());
                Clients::open(config)?
            }
            Err(outdated @ Failure::OutdatedClient) => {
                tracing::warn!(error = %outdated, "another kafka client takes the place of this one");
                let mut shutdown = shutdown.clone();
                match Clients::open_once_secrets_are_whole(config, readiness, &mut shutdown).await {
                    Some(clients) => clients,
                    None => return Ok(()),
                }
            }
            ended => return ended,
        };
        readiness.not_ready("kafka", "starting again");
        database = Database::new(&config.servers.database.0, views.clone(), readiness.clone());
    }
}

/// Keeps the views for as long as these clients work.
async fn keep_views_with_clients(
    config: &Config,
    views: &Arc<[view::View]>,
    clients: Clients,
    mut database: Database,
    readiness: &Readiness,
    mut shutdown: Shutdown,
) -> Result<(), Failure> {
    let ended = tokio::select! {
        installed = database.install() => installed,
        () = shutdown.triggered() => return Ok(()),
    };
    ended?;
    let names: Vec<&str> = views.iter().map(|view| view.name.as_str()).collect();
    tracing::info!(views = names.join(", "), "the views are installed");
    tokio::select! {
        () = pause::resume_changed(&config.servers) => {}
        () = shutdown.triggered() => return Ok(()),
    }

    let watch = tokio::spawn(topics::watch(
        Arc::downgrade(&clients.consumer),
        view::topics(views),
        readiness.clone(),
    ));
    let limits = Limits {
        rows: config.batch_rows as usize,
        bytes: config.batch_bytes as usize,
    };
    let parting = Parting::new(Kafka::clone(&config.servers.kafka));
    let ended = Builder::new(
        clients.consumer,
        clients.observer,
        parting,
        database,
        limits,
        owner_name(),
        readiness.clone(),
    )
    .run(shutdown)
    .await;
    watch.abort();
    ended
}

/// The name of this process, for people who look at the positions.
fn owner_name() -> String {
    // If the host's name cannot be read, people see only the number of the process.
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}/{}", host.trim(), std::process::id())
}
