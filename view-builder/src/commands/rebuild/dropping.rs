//! `view-builder drop`: the builders no longer keep a view, and its tables are dropped.

use super::session::{open_as_owner, take_rebuild_lock};
use super::trouble::Trouble;
use crate::commands::replay;
use crate::postgres::connection::unanswered;
use crate::process::failure::Failure;
use crate::process::faults::{self, Bug};
use crate::settings::DropConfig;
use crate::views::{catalog, epochs, install};

/// Removes a view from the catalog and drops its tables. Asks first, unless `--yes` is given.
///
/// # Errors
/// There is no such view; nobody can be asked; something depends on its tables; Postgres does not answer.
pub async fn drop_view(config: &DropConfig) -> Result<String, Failure> {
    let view: &str = &config.view;
    let client = open_as_owner(&config.database.0).await.map_err(Trouble::into_failure)?;
    take_rebuild_lock(&client, view).await.map_err(Trouble::into_failure)?;
    let kept = catalog::load_views(&client).await.map_err(unanswered)?;
    let Some(kept) = kept.iter().find(|kept| kept.name == *view) else {
        return Err(Failure::Setting(format!("the database keeps no view {view}")));
    };
    let tables = kept.tables().join(", ");
    if !config.yes && !replay::ask_to_confirm(&format!("Keep {view} no longer and drop {tables}?"))? {
        return Ok("Operation cancelled.\n".to_owned());
    }
    let dropped = async {
        client.batch_execute("set lock_timeout = '10s'").await?;
        client.batch_execute(begin_statement()).await?;
        client.batch_execute(epochs::LOCK).await?;
        // A builder that started since the catalog was read above may have changed the view's SQL. The tables to drop are those of its SQL now.
        let views_now = catalog::load_views(&client).await?;
        let view_now = views_now.iter().find(|now| now.name == *view).unwrap_or(kept);
        catalog::remove(&client, view).await?;
        // First the SQL views, then the tables that they show.
        for (what, kinds) in [("view", &["v"][..]), ("table", &["r", "p"])] {
            let row = client
                .query_one(
                    "select string_agg(oid::regclass::text, ', ') from pg_class
                     where relnamespace = 'public'::regnamespace and relname = any($1) and relkind::text = any($2)",
                    &[&view_now.tables(), &kinds],
                )
                .await?;
            if let Some(names) = row.get::<_, Option<&str>>(0) {
                client.batch_execute(&format!("drop {what} {names}")).await?;
            }
        }
        client.batch_execute("commit").await?;
        Ok(view_now.tables().join(", "))
    };
    let tables = dropped.await.map_err(unanswered)?;
    tracing::warn!(view, tables, "an operator has dropped a view");
    Ok(format!("{view} is kept no longer; dropped: {tables}\n"))
}

/// Begins a transaction and waits until no builder is starting. A builder that starts beside a drop would make the dropped tables again. The
/// planted bug does not wait.
fn begin_statement() -> &'static str {
    if faults::is_planted(Bug::DropBesideStarts) {
        "begin"
    } else {
        install::TURN
    }
}
