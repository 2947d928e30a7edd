//! At start: the positions' tables, the views' own SQL, and the list of the views that are kept.

use std::collections::BTreeSet;

use tokio_postgres::error::ErrorPosition;
use tokio_postgres::{Client, Error};

use crate::database::Database;
use crate::failure::Failure;
use crate::faults;
use crate::refusal;
use crate::view::{self, SqlFile, View};

const POSITIONS: &str = include_str!("positions.sql");

/// Two builders that start at once take turns.
const TURN: &str = "begin; select pg_advisory_xact_lock(hashtext('view-builder'))";

/// A view and a topic that it reads.
type Source = (String, String);

/// Why an installation did not happen.
enum Trouble {
    Database(Error),
    Final(Failure),
}

impl From<Error> for Trouble {
    fn from(err: Error) -> Self {
        Self::Database(err)
    }
}

impl Database {
    /// Makes or completes everything in the database, in one transaction. Waits for as long as Postgres is away or the
    /// rights are missing.
    ///
    /// A view that is new to the database needs all events, so its topics begin again from their first offset; for the other
    /// views that is a replay, which changes nothing.
    ///
    /// # Errors
    /// [`Failure::View`]: Postgres refuses a view's SQL.
    pub async fn install(&mut self) -> Result<(), Failure> {
        loop {
            let done = async {
                let mut client = self.connect().await?;
                install(&mut client, &self.views).await
            };
            match done.await {
                Ok(()) => {
                    self.outage.ends();
                    return Ok(());
                }
                Err(Trouble::Database(err)) => self.wait(&err).await,
                Err(Trouble::Final(failure)) => return Err(failure),
            }
        }
    }
}

async fn install(client: &mut Client, views: &[View]) -> Result<(), Trouble> {
    // A connection that is dropped on an error takes its open transaction with it.
    client.batch_execute(TURN).await?;
    faults::point("install.begun").await?;
    client.batch_execute(POSITIONS).await?;
    for view in views {
        let done = client.batch_execute(&view.table.text).await;
        done.map_err(|err| trouble(&view.table, err))?;
    }
    for view in views {
        let prepared = client.prepare_typed(&view.apply.text, &view::PARAMETERS).await;
        let statement = prepared.map_err(|err| trouble(&view.apply, err))?;
        let count = statement.params().len();
        if count > view::PARAMETERS.len() {
            let reason = format!(
                "takes {count} parameters: there are only $1 to ${}",
                view::PARAMETERS.len()
            );
            return Err(Trouble::Final(view.apply.refused(None, &reason).into()));
        }
    }
    register(client, views).await?;
    faults::point("install.made").await?;
    client.batch_execute("commit").await?;
    faults::point("install.committed").await?;
    Ok(())
}

fn trouble(file: &SqlFile, err: Error) -> Trouble {
    match err.as_db_error() {
        Some(db) if refusal::is_wrong_sql(&err) => {
            let character = match db.position() {
                Some(ErrorPosition::Original(character)) => Some(*character),
                _ => None,
            };
            let mut message = db.message().to_owned();
            for (label, more) in [("detail", db.detail()), ("hint", db.hint()), ("where", db.where_())] {
                if let Some(more) = more {
                    message.push_str(&format!("; {label}: {}", more.replace('\n', ", ")));
                }
            }
            Trouble::Final(file.refused(character, &message).into())
        }
        _ => Trouble::Database(err),
    }
}

/// Sets `view_sources` to these views' sources. Any change bumps the epochs of the topics concerned, so that a builder that
/// runs with other views is thrown out and sees it.
async fn register(client: &Client, views: &[View]) -> Result<(), Error> {
    let installed = sources_installed(client).await?;
    let wanted = sources(views);
    for (view, topic) in installed.difference(&wanted) {
        tracing::warn!(
            view,
            topic,
            "this view is kept no longer from this topic, as VIEWS does not have it"
        );
        client
            .execute(
                "delete from view_sources where view = $1 and topic = $2",
                &[view, topic],
            )
            .await?;
        client
            .execute("update view_positions set epoch = epoch + 1 where topic = $1", &[topic])
            .await?;
    }
    for (view, topic) in wanted.difference(&installed) {
        client
            .execute("insert into view_sources (view, topic) values ($1, $2)", &[view, topic])
            .await?;
        let partitions = client
            .execute(
                "update view_positions set epoch = epoch + 1, next_offset = null, group_offset = null
                 where topic = $1",
                &[topic],
            )
            .await?;
        if partitions == 0 {
            tracing::info!(view, topic, "a view is new");
        } else {
            tracing::info!(
                view,
                topic,
                "a view is new: its topic is applied again from the beginning"
            );
        }
    }
    Ok(())
}

/// Whether the database keeps these views and no others.
pub(crate) async fn check_same(client: &Client, views: &[View]) -> Result<Result<(), Failure>, Error> {
    let (installed, wanted) = (sources_installed(client).await?, sources(views));
    let names = |sources: &BTreeSet<Source>| {
        let names: Vec<_> = sources
            .iter()
            .map(|(view, topic)| format!("{view} of {topic}"))
            .collect();
        names.join(", ")
    };
    if installed == wanted {
        return Ok(Ok(()));
    }
    Ok(Err(Failure::OtherViews {
        installed: names(&installed),
        wanted: names(&wanted),
    }))
}

/// Every (view, topic) of these views.
fn sources(views: &[View]) -> BTreeSet<Source> {
    views
        .iter()
        .flat_map(|view| view.topics.iter().map(|topic| (view.name.clone(), topic.clone())))
        .collect()
}

/// Every (view, topic) that the database keeps.
async fn sources_installed(client: &Client) -> Result<BTreeSet<Source>, Error> {
    let rows = client.query("select view, topic from view_sources", &[]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}
