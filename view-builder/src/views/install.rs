//! At start: the positions' tables, the catalog of the views that are kept, and the SQL of those views that have changed or lack a table.

use std::time::Duration;

use tokio_postgres::error::ErrorPosition;
use tokio_postgres::{Client, Error};

use crate::postgres::refusal;
use crate::process::failure::Failure;
use crate::process::faults::{self, Bug};
use crate::views::catalog::{self, KeptViews, NewTopics};
use crate::views::database::Database;
use crate::views::epochs;
use crate::views::view::{self, SqlFile, View};

const POSITIONS: &str = include_str!("positions.sql");

/// Begins a transaction that makes or drops views. They take turns: of two builders that start at once the second finds all made, and a
/// table that an operator drops beside a start is not made again.
pub(crate) const TURN: &str = "begin; select pg_advisory_xact_lock(hashtext('view-builder'))";

/// Readers queue behind a lock that is waited for, so none is waited for longer than this.
const LOCK_TIMEOUT: &str = "set local lock_timeout = '1s'";

/// Pause before a lock is waited for again: readers go on meanwhile.
const LOCK_PAUSE: Duration = Duration::from_secs(1);

/// Why an installation did not happen.
pub(crate) enum Trouble {
    Database(Error),
    Final(Failure),
}

impl From<Error> for Trouble {
    fn from(err: Error) -> Self {
        Self::Database(err)
    }
}

impl Database {
    /// Makes or completes everything in the database, in one transaction. Waits for as long as Postgres is away, the rights are missing, or
    /// somebody holds a lock. A view that is there as it is wanted is not touched, so that its readers notice nothing; one that was there and
    /// cannot be kept any more is paused.
    ///
    /// A view that is new to the database needs all events, so its topics begin again from their first offset; for the other
    /// views that is a replay, which changes nothing. (`view-builder rebuild` adds one without that.)
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
                Ok(Installed { kept, broken }) => {
                    self.outage.ends();
                    for (view, err) in &broken {
                        self.pause_unprepared(view, err).await;
                    }
                    self.keep(kept);
                    return Ok(());
                }
                Err(Trouble::Database(err)) if refusal::is_lock_timeout(&err) => {
                    self.outage
                        .goes_on("a change of the views waits for a lock on their tables, which another session holds");
                    tokio::time::sleep(LOCK_PAUSE).await;
                }
                Err(Trouble::Database(err)) => self.wait(&err).await,
                Err(Trouble::Final(failure)) => return Err(failure),
            }
        }
    }
}

/// What an installation has found.
struct Installed {
    kept: KeptViews,
    /// Views that were there before, whose statement Postgres refuses now.
    broken: Vec<(View, Error)>,
}

async fn install(client: &mut Client, views: &[View]) -> Result<Installed, Trouble> {
    // A connection that is dropped on an error takes its open transaction with it.
    client.batch_execute(TURN).await?;
    client.batch_execute(LOCK_TIMEOUT).await?;
    faults::point("install.begun").await?;
    client.batch_execute(POSITIONS).await?;
    let known = catalog::load_views(client).await?;
    let mut changed = Vec::new();
    for view in views {
        let same = known
            .iter()
            .any(|known| known.has_sql_of(view) && known.topics == view.topics);
        if same {
            continue;
        }
        if catalog::was_replaced(client, view).await? {
            tracing::warn!(
                view = view.name,
                "VIEWS has an older SQL of this view, which was replaced: the newer one is kept (see view-builder rebuild)"
            );
        } else {
            changed.push(view);
        }
    }
    if !changed.is_empty() {
        client.batch_execute(epochs::LOCK).await?;
        for view in &changed {
            catalog::put(client, view, NewTopics::ApplyAgain).await?;
        }
    }
    forget_unknown(client).await?;
    let kept = KeptViews::load(client).await?;
    faults::point("install.read").await?;
    let mut broken = Vec::new();
    for kept in &kept.views {
        // The text from the directory, which has a path that means something to people.
        let view = views.iter().find(|view| view.has_sql_of(kept)).unwrap_or(kept);
        let is_changed = changed.iter().any(|changed| changed.name == view.name);
        if is_changed || has_to_be_made(client, view).await? {
            run(client, view).await?;
        } else if let Some(err) = refused(client, view).await? {
            broken.push((view.clone(), err));
        }
    }
    // Changed SQL of a paused view is made as well: that may mend it.
    for view in changed
        .into_iter()
        .filter(|view| !kept.views.iter().any(|kept| kept.name == view.name))
    {
        run(client, view).await?;
    }
    faults::around("install.made", client.batch_execute("commit"), "install.committed").await?;
    Ok(Installed { kept, broken })
}

/// Whether a view whose SQL is as it was is made again all the same: its tables are not there, or that bug is planted.
async fn has_to_be_made(client: &Client, view: &View) -> Result<bool, Error> {
    Ok(faults::is_planted(Bug::InstallEverything) || !has_tables(client, view).await?)
}

/// Whether all tables are there that the view's `table.sql` makes.
async fn has_tables(client: &Client, view: &View) -> Result<bool, Error> {
    let row = client
        .query_one(
            "select coalesce(bool_and(to_regclass('public.' || quote_ident(wanted)) is not null), true)
             from unnest($1::text[]) as wanted",
            &[&view.tables()],
        )
        .await?;
    Ok(row.get(0))
}

/// Why Postgres refuses the view's statement, in the transaction that is open; none: it takes it.
async fn refused(client: &Client, view: &View) -> Result<Option<Error>, Error> {
    client.batch_execute("savepoint prepared").await?;
    match client.prepare_typed(&view.apply.text, &view::PARAMETERS).await {
        Ok(_) => Ok(None),
        Err(err) if refusal::is_wrong_sql(&err) => {
            client.batch_execute("rollback to savepoint prepared").await?;
            Ok(Some(err))
        }
        Err(err) => Err(err),
    }
}

/// Makes the view's tables in the schema that the session works in, and has Postgres check its statement.
pub(crate) async fn run(client: &Client, view: &View) -> Result<(), Trouble> {
    let done = client.batch_execute(&view.table.text).await;
    done.map_err(|err| trouble(&view.table, err))?;
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
    Ok(())
}

/// Views of a time before the database kept their SQL, which `VIEWS` does not have any more: nobody can keep them.
async fn forget_unknown(client: &Client) -> Result<(), Error> {
    let forgotten = client
        .query(
            "delete from view_sources as source
             where not exists (select from view_definitions as known where known.view = source.view)
             returning view, topic",
            &[],
        )
        .await?;
    for row in &forgotten {
        let (view, topic): (&str, &str) = (row.get(0), row.get(1));
        tracing::warn!(view, topic, "this view is kept no longer, as VIEWS does not have it");
    }
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
