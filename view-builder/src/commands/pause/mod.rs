//! `view-builder pause` and `view-builder resume`.

mod lacking;
mod resume;

pub(crate) use self::resume::resume_changed;

use pg_replication::Target;
use tokio_postgres::Client;

use crate::commands::rebuild;
use crate::postgres::connection::connect_for_command;
use crate::postgres::connection::unanswered;
use crate::process::failure::Failure;
use crate::settings::{PauseConfig, ResumeConfig};
use crate::views::pauses::{Cause, pause_view};
use crate::views::view::View;
use crate::views::{catalog, pauses};

/// Pauses a view by hand.
///
/// # Errors
/// There is no such view, or it is paused already; Postgres does not answer.
pub async fn pause(config: &PauseConfig) -> Result<String, Failure> {
    let (client, view) = open(&config.database.0, &config.view).await?;
    let cause = Cause {
        reason: &config.reason.replace('\n', " "),
        sqlstate: None,
        by: "an operator",
    };
    if !pause_view(&client, &view, &cause).await.map_err(unanswered)? {
        return Err(Failure::Setting(format!(
            "{} is paused already: see view-builder status",
            view.name
        )));
    }
    tracing::warn!(view = view.name, "an operator pauses a view");
    Ok(format!(
        "{} is paused: it stays as it is, and all others go on; view-builder resume {} ends it\n",
        view.name, view.name
    ))
}

/// Ends a view's pause.
///
/// # Errors
/// There is no such view, or it is not paused; it still fails; its topics do not have all events since then any more; Postgres or Kafka
/// does not answer.
pub async fn resume(config: &ResumeConfig) -> Result<String, Failure> {
    let (client, view) = open(&config.servers.database.0, &config.view).await?;
    if !pauses::load_paused_names(&client)
        .await
        .map_err(unanswered)?
        .contains(&view.name)
    {
        return Err(Failure::Setting(format!("{} is not paused", view.name)));
    }
    self::resume::resume(client, &config.servers.kafka, &view).await
}

async fn open(target: &Target, name: &str) -> Result<(Client, View), Failure> {
    let client = connect_for_command(target).await?;
    rebuild::become_owner(&client).await?;
    let views = catalog::load_views(&client).await.map_err(unanswered)?;
    let names: Vec<&str> = views.iter().map(|view| view.name.as_str()).collect();
    match views.iter().find(|view| view.name == name) {
        Some(view) => Ok((client, view.clone())),
        None => Err(Failure::Setting(format!(
            "the database keeps no view {name}: there are {}",
            names.join(", ")
        ))),
    }
}
