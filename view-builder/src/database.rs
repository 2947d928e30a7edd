//! The connection to the views' database: one, with its statements prepared once, and made again whenever it is lost.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use service::{Readiness, Secret};
use tokio_postgres::config::SslMode;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Config, NoTls, Statement};

use crate::catalog::Kept;
use crate::contract::{self, Contracts};
use crate::failure::Failure;
use crate::faults;
use crate::letters::store;
use crate::outage::Outage;
use crate::pause::Cause;
use crate::refusal;
use crate::view::{self, View};

/// Time between two attempts to connect.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// Settings of every session. UTC, because a date-time without zone is UTC. One plan for all batches, because planning
/// costs more than applying a single event, and because these plans read by index whatever the size of a table.
const SESSION: &str = "
    set time zone 'UTC';
    set search_path = public, pg_temp;
    set plan_cache_mode = force_generic_plan;
    set jit = off;
    set client_min_messages = warning;
    set idle_in_transaction_session_timeout = '10s'";

/// The views' database.
pub struct Database {
    config: Config,
    /// Before the installation what `VIEWS` has, from then on what the database keeps.
    pub(crate) views: Arc<[View]>,
    pub(crate) contracts: Arc<Contracts>,
    /// What is read, for views that are paused too.
    pub(crate) topics: Vec<String>,
    pub(crate) outage: Outage,
    /// A batch that fails again and again.
    pub(crate) trouble: Outage,
    /// How many events of each view went to the dead letters without an event that worked between, where it was not certain that they are
    /// at fault.
    pub(crate) refused_in_a_row: HashMap<String, u32>,
    /// Who claims the partitions, for people.
    pub(crate) owner: String,
    pub(crate) session: Option<Session>,
}

/// One connection with everything that a batch needs.
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) move_positions: Statement,
    pub(crate) keep_letters: Statement,
    /// In the order of the views.
    pub(crate) apply: Vec<Statement>,
}

impl Database {
    /// No connection is made yet.
    ///
    /// # Errors
    /// `url` is no connection string for Postgres.
    pub fn new(url: &Secret, views: Arc<[View]>, readiness: Readiness) -> Result<Self, Failure> {
        let topics = view::topics(&views);
        Ok(Self {
            config: config(url)?,
            contracts: Arc::new(contract::of_all(&topics)),
            topics,
            views,
            outage: Outage::of("postgres", readiness.clone()),
            trouble: Outage::of("batch-refused", readiness),
            refused_in_a_row: HashMap::new(),
            owner: String::new(),
            session: None,
        })
    }

    /// The session, made anew where there is none; waits for as long as Postgres is away.
    pub(crate) async fn session(&mut self) -> &Session {
        loop {
            // Two steps, since a borrow that may be returned would last for the whole loop.
            if self.session.as_ref().is_some_and(|session| !session.client.is_closed()) {
                break;
            }
            match self.prepare().await {
                Ok(session) => {
                    self.session = Some(session);
                    self.outage.ends();
                }
                Err(Unprepared { err, view: Some(view) }) if refusal::is_wrong_sql(&err) => {
                    Box::pin(self.pause_unprepared(&view, &err)).await;
                }
                Err(Unprepared { err, .. }) => self.wait(&err).await,
            }
        }
        match &self.session {
            Some(session) => session,
            None => unreachable!("the loop ends with a session only"),
        }
    }

    /// Pauses a view whose statement Postgres refuses: it would for as long as nobody mends the view, and keep all others from going on.
    pub(crate) async fn pause_unprepared(&mut self, view: &View, err: &tokio_postgres::Error) {
        let cause = Cause {
            reason: &format!("its statement cannot be prepared: {}", refusal::line(err)),
            state: Some(&refusal::state(err)),
            by: "the view-builder",
        };
        self.pause(view, &cause).await;
    }

    /// Keeps these views from now on. Whether they are others than before.
    pub(crate) fn keep(&mut self, kept: Kept) -> bool {
        let Kept { views, topics } = kept;
        let is_same = topics == self.topics
            && views.len() == self.views.len()
            && views
                .iter()
                .zip(&*self.views)
                .all(|(new, old)| new.has_sql_of(old) && new.topics == old.topics);
        if !is_same {
            let names: Vec<&str> = views.iter().map(|view| view.name.as_str()).collect();
            tracing::info!(views = names.join(", "), "these views are kept from now on");
            self.contracts = Arc::new(contract::of_all(&topics));
            self.topics = topics;
            self.views = views.into();
        }
        !is_same
    }

    /// Whether the connection was lost since the last statement.
    pub(crate) fn is_cut_off(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.client.is_closed())
    }

    /// Forgets the session after an error, says so, and waits a moment.
    pub(crate) async fn wait(&mut self, err: &tokio_postgres::Error) {
        self.session = None;
        self.outage.goes_on(refusal::line(err));
        tokio::time::sleep(RETRY_INTERVAL).await;
    }

    /// A new connection with the session's settings.
    pub(crate) async fn connect(&self) -> Result<Client, tokio_postgres::Error> {
        connect(&self.config).await
    }

    /// A connection that was lost may have been so for as long as the views have changed. Whoever holds partitions under an epoch of
    /// before cannot apply anything to the new ones.
    async fn prepare(&mut self) -> Result<Session, Unprepared> {
        let client = self.connect().await?;
        let kept = Kept::load(&client).await?;
        self.keep(kept);
        Session::prepare_each(client, &self.views).await
    }
}

/// Why there is no session.
struct Unprepared {
    err: tokio_postgres::Error,
    /// The view whose statement is to blame.
    view: Option<View>,
}

impl From<tokio_postgres::Error> for Unprepared {
    fn from(err: tokio_postgres::Error) -> Self {
        Self { err, view: None }
    }
}

impl Session {
    /// Prepares everything that a batch of these views needs.
    pub(crate) async fn prepare(client: Client, views: &[View]) -> Result<Self, tokio_postgres::Error> {
        Self::prepare_each(client, views)
            .await
            .map_err(|unprepared| unprepared.err)
    }

    /// As [`Session::prepare`]; an error names the view whose statement Postgres refuses.
    async fn prepare_each(client: Client, views: &[View]) -> Result<Self, Unprepared> {
        let move_positions = client
            .prepare_typed(
                faults::moving("select advance_view_positions($1, $2, $3, $4, $5)"),
                &[
                    Type::TEXT_ARRAY,
                    Type::INT4_ARRAY,
                    Type::INT8_ARRAY,
                    Type::INT8_ARRAY,
                    Type::INT8_ARRAY,
                ],
            )
            .await?;
        let keep_letters = client
            .prepare_typed(faults::keeping(store::KEEP), &store::KEEP_PARAMETERS)
            .await?;
        let mut apply = Vec::with_capacity(views.len());
        for view in views {
            let prepared = client.prepare_typed(&view.apply.text, &view::PARAMETERS).await;
            apply.push(prepared.map_err(|err| Unprepared {
                err,
                view: Some(view.clone()),
            })?);
        }
        Ok(Self {
            client,
            move_positions,
            keep_letters,
            apply,
        })
    }
}

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
