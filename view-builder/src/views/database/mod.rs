//! The connection to the views' database: one, with its statements prepared once, and made again whenever it is lost.

mod pausing;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use pg_replication::Target;
use service::Readiness;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Statement};

use crate::contract::{self, Contracts};
use crate::letters::store;
use crate::postgres::connection::connect;
use crate::postgres::outage::Outage;
use crate::postgres::refusal;
use crate::process::faults;
use crate::process::measure::Trouble;
use crate::views::catalog::KeptViews;
use crate::views::pauses::Cause;
use crate::views::view::{self, View};

/// Time between two attempts to connect.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// The views' database.
pub struct Database {
    target: Target,
    /// Before the installation: the views of the folder `VIEWS`. From then on: the views of the catalog that are not paused.
    pub(crate) views: Arc<[View]>,
    pub(crate) contracts: Arc<Contracts>,
    /// The topics to read. Those of paused views are included.
    pub(crate) topics: Vec<String>,
    pub(crate) outage: Outage,
    /// A batch that fails again and again.
    pub(crate) trouble: Outage,
    /// By view: how many events in a row became dead letters though it was not certain that the events are at fault. An event that works sets the
    /// count back.
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
    #[must_use]
    pub fn new(target: &Target, views: Arc<[View]>, readiness: Readiness) -> Self {
        let topics = view::topics(&views);
        Self {
            target: target.clone(),
            contracts: Arc::new(contract::contracts_of(&topics)),
            topics,
            views,
            outage: Outage::of("postgres", Trouble::Postgres, readiness.clone()),
            trouble: Outage::of("batch-refused", Trouble::Batch, readiness),
            refused_in_a_row: HashMap::new(),
            owner: String::new(),
            session: None,
        }
    }

    /// The session. Opens a new one if there is none, and waits for as long as Postgres is away.
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

    /// Pauses a view whose statement Postgres refuses. It would refuse it until somebody mends the view, and meanwhile no other view could go on.
    pub(crate) async fn pause_unprepared(&mut self, view: &View, err: &tokio_postgres::Error) {
        let cause = Cause {
            reason: &format!("its statement cannot be prepared: {}", refusal::line(err)),
            sqlstate: Some(&refusal::state(err)),
            by: "the view-builder",
        };
        self.pause(view, &cause).await;
    }

    /// Keeps these views from now on. Returns whether they are other views, or views with other SQL, than before.
    pub(crate) fn keep(&mut self, kept: KeptViews) -> bool {
        let KeptViews { views, topics } = kept;
        let is_same = topics == self.topics
            && views.len() == self.views.len()
            && views
                .iter()
                .zip(&*self.views)
                .all(|(new, old)| new.has_sql_of(old) && new.topics == old.topics);
        if !is_same {
            let names: Vec<&str> = views.iter().map(|view| view.name.as_str()).collect();
            tracing::info!(views = names.join(", "), "these views are kept from now on");
            self.contracts = Arc::new(contract::contracts_of(&topics));
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
        connect(&self.target).await
    }

    /// A connection that was lost may have been so for as long as the views have changed. Whoever holds partitions under an epoch of
    /// before cannot apply anything to the new ones.
    async fn prepare(&mut self) -> Result<Session, Unprepared> {
        let client = self.connect().await?;
        let kept = KeptViews::load(&client).await?;
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
                faults::moving("select advance_view_positions($1, $2, $3, $4, $5, $6, $7, $8)"),
                &[
                    Type::TEXT_ARRAY,
                    Type::INT4_ARRAY,
                    Type::INT8_ARRAY,
                    Type::INT8_ARRAY,
                    Type::INT8_ARRAY,
                    Type::INT8_ARRAY,
                    Type::INT4_ARRAY,
                    Type::INT8_ARRAY,
                ],
            )
            .await?;
        let keep_letters = client
            .prepare_typed(faults::keeping(store::STORE_LETTERS), &store::STORE_LETTERS_PARAMETERS)
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
