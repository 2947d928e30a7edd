//! `view-builder rebuild`: fills a new generation of a view from offset 0, beside the live one. Meanwhile people read the live one, and builders
//! keep it up to date.
//!
//! 1. The view's `table.sql` runs in a schema of its own, and [`fill`] applies the topics' events to it, as far as the live view has ever been and
//!    never further.
//! 2. Indexes and constraints that people have added to the live tables are made on the new ones, see [`carried`].
//! 3. The rebuild looks for rows that the topics cannot give again, see [`compaction`].
//! 4. The rebuild waits for transactions that began before the generation was complete. In their snapshots it would look half empty.
//! 5. [`swap`]: one transaction puts the generation in the live one's place.
//!
//! Everything that has to survive a kill is in Postgres: the generation, its positions, and the SQL that it was made by. After a kill the same
//! command goes on from there. An advisory lock of the session lets only one rebuild of a view run.

mod accepted;
mod applying;
mod carried;
mod compaction;
mod dropping;
mod feature_statement;
mod features;
mod fill;
mod filled;
mod generation;
mod letters;
mod limits;
mod patience;
mod progress;
mod reached;
mod reading;
mod session;
mod swap;
mod trouble;

use std::time::{Duration, Instant};

use tokio_postgres::{Client, Error};

use crate::postgres::connection::unanswered;
use crate::postgres::refusal;
use crate::process::failure::Failure;
use crate::process::faults;
use crate::settings::RebuildConfig;
use crate::views::catalog;
use crate::views::database::Session;
use crate::views::view::{self, View};
use compaction::Compaction;
pub use dropping::drop_view;
use fill::Fill;
use generation::{Begun, Generation, Stage, begin_or_resume, discard};
use patience::Patience;
use progress::Progress;
pub(crate) use session::become_owner;
use session::{open_as_owner, take_rebuild_lock};
use swap::Attempt;
use trouble::Trouble;

/// Pause before a rebuild that cannot go on now tries again.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// If applying the events up to the limits took less than this, the generation is as near to the live view as it gets while new events come.
const CATCH_UP_MAX: Duration = Duration::from_secs(1);
/// How often the log says what the swap waits for.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// Longest name of a view. Postgres would cut off the names of its schemas if it were longer.
const NAME_CHARACTERS_MAX: usize = 48;

/// Fills a new generation of the view and swaps it in. A view that the database does not have yet is added.
///
/// # Errors
/// There is no such view, or its SQL is wrong; another rebuild of it is under way; something depends on it that cannot be carried over.
pub async fn rebuild(config: &RebuildConfig) -> Result<String, Failure> {
    let view = load_view(config)?;
    let mut begun: Option<Begun> = None;
    let progress = Progress::new(&view.name);
    let mut patience = Patience::default();
    loop {
        match run_to_the_end(config, &view, &mut begun, &progress, &mut patience).await {
            Ok(()) => {
                progress.finish();
                return Ok(format!("{} is rebuilt: the new generation is live\n", view.name));
            }
            Err(Trouble::Final(failure)) => return Err(failure),
            // The next round opens a session of its own. Its lock is free only when Postgres has ended the session of this round.
            Err(Trouble::NotInTime | Trouble::MustLeaveOut(..)) => tokio::time::sleep(RETRY_INTERVAL).await,
            // The next round begins with a look at which events are gone (`Fill::resume`).
            Err(Trouble::Removed(topic)) => {
                patience.count_missing_events(&topic)?;
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
            Err(Trouble::Database(err)) if begun.is_none() => return Err(unanswered(err)),
            Err(Trouble::Database(err)) => {
                patience.count_database_error(&err)?;
                tracing::warn!(
                    reason = refusal::line(&err),
                    "postgres does not answer: the rebuild goes on when it does"
                );
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        }
    }
}

/// Drops what an unfinished rebuild has left. The live view is not touched.
///
/// # Errors
/// A rebuild is under way, or Postgres does not answer.
pub async fn abandon(config: &RebuildConfig) -> Result<String, Failure> {
    let view: &str = &config.view;
    let client = open_as_owner(&config.servers.database.0)
        .await
        .map_err(Trouble::into_failure)?;
    take_rebuild_lock(&client, view).await.map_err(Trouble::into_failure)?;
    let row = client
        .query_opt("select generation from view_rebuilds where view = $1", &[&view])
        .await
        .map_err(unanswered)?;
    let Some(row) = row else {
        return Ok(format!("no rebuild of {view} was begun\n"));
    };
    discard(&client, view, row.get(0)).await.map_err(unanswered)?;
    Ok(format!(
        "the unfinished rebuild of {view} is dropped; the live view is as it was\n"
    ))
}

fn load_view(config: &RebuildConfig) -> Result<View, Failure> {
    let views = view::load_all(&config.folder.views)?;
    let names: Vec<&str> = views.iter().map(|view| view.name.as_str()).collect();
    let Some(view) = views.iter().find(|view| view.name == *config.view) else {
        return Err(Failure::Setting(format!(
            "{} has no view {}: there are {} (VIEWS)",
            config.folder.views.display(),
            config.view,
            names.join(", ")
        )));
    };
    if view.name.chars().count() > NAME_CHARACTERS_MAX {
        return Err(Failure::Setting(format!(
            "the view's name has more than {NAME_CHARACTERS_MAX} characters: its generation's schema cannot be named after it"
        )));
    }
    Ok(view.clone())
}

/// Runs the rebuild from wherever it is to its end. `begun`: what this command has begun or resumed in an earlier call.
async fn run_to_the_end(
    config: &RebuildConfig,
    view: &View,
    begun: &mut Option<Begun>,
    progress: &Progress,
    patience: &mut Patience,
) -> Result<(), Trouble> {
    let client = open_as_owner(&config.servers.database.0).await?;
    take_rebuild_lock(&client, &view.name).await?;
    let generation = Generation::of(&client, view).await?;
    match begin_or_resume(&client, &generation, begun.as_ref()).await? {
        Stage::Filling => *begun = Some(Begun::read(&client, &generation).await?),
        Stage::Swapped => return Ok(()),
    }
    let accepted = accepted::add_acceptance(&client, config, &view.name).await?;
    refuse_obstacles(&client, &generation).await?;
    let session = Session::prepare(client, std::slice::from_ref(view)).await?;
    let mut fill = Fill::new(&config.servers.kafka, view)?;
    if fill.resume(&session.client, view, accepted.truncated).await? {
        patience.forget_missing_events();
    }
    progress.set_total(fill.events_left());
    fill.apply_up_to_limits(&session, view, None, |events_left| progress.show_left(events_left))
        .await?;
    faults::point("rebuild.filled").await?;
    carry_over(&session.client, &generation).await?;
    analyze(&session.client, &generation).await?;
    let mut compaction = Compaction::of(&config.servers.kafka, view, accepted.compacted).await;
    let swapper = open_as_owner(&config.servers.database.0).await?;
    swap_once_caught_up(&swapper, &session, &generation, &mut fill, &mut compaction).await
}

/// Lets Postgres gather statistics of the new tables. It has none yet, and without them it would plan queries badly.
async fn analyze(client: &Client, generation: &Generation) -> Result<(), Error> {
    for table in swap::list_tables(client, &generation.schema).await? {
        let analyze = format!("analyze \"{}\".\"{table}\"", generation.schema);
        client.batch_execute(&analyze).await?;
    }
    Ok(())
}

async fn refuse_obstacles(client: &Client, generation: &Generation) -> Result<(), Trouble> {
    let obstacles = carried::find_obstacles(client, &generation.schema, &generation.own_features).await?;
    if obstacles.is_empty() {
        return Ok(());
    }
    // The view was new when this round began, and meanwhile a builder has added it. Then these tables are the view's own, and the next round sees
    // them so.
    let kept = catalog::load_views(client).await?;
    if generation.live_tables.is_empty() && kept.iter().any(|kept| kept.name == generation.view.name) {
        return Err(Trouble::NotInTime);
    }
    Err(Failure::Setting(format!(
        "{} cannot be swapped, since this cannot be carried over: {}; take it away and run rebuild again, then make it anew",
        generation.view.name,
        obstacles.join(", ")
    ))
    .into())
}

/// Makes the indexes and constraints that people have added to the live tables and the generation does not have yet.
async fn carry_over(client: &Client, generation: &Generation) -> Result<(), Trouble> {
    let carried = carried::collect(client, &generation.schema, &generation.own_features).await?;
    for what in &carried.not_kept {
        tracing::warn!(what, "not carried over");
    }
    for statement in &carried.before_swap {
        tracing::info!(statement, "carried over");
        client.batch_execute(statement).await.map_err(|err| {
            let reason = format!(
                "the new generation does not take `{statement}`: {}",
                refusal::line(&err)
            );
            if refusal::is_wrong_sql(&err) {
                Failure::Setting(reason).into()
            } else {
                Trouble::from(err)
            }
        })?;
    }
    Ok(())
}

/// Keeps up with the live view until the swap succeeds.
async fn swap_once_caught_up(
    swapper: &Client,
    session: &Session,
    generation: &Generation,
    fill: &mut Fill,
    compaction: &mut Compaction,
) -> Result<(), Trouble> {
    let client = &session.client;
    let mut older = swap::running_transactions(client).await?;
    let mut last_logged: Option<Instant> = None;
    loop {
        let began = Instant::now();
        if fill.update_limits_and_letters(client, &generation.view).await? {
            tracing::info!("dead letters have changed: what was left out is read again");
        }
        fill.apply_up_to_limits(session, &generation.view, None, |_| ()).await?;
        if began.elapsed() > CATCH_UP_MAX {
            continue;
        }
        compaction.ensure_keys_are_safe(client, fill, &generation.view).await?;
        let running = swap::running_transactions(client).await?;
        older.retain(|transaction| running.contains(transaction));
        let mut why = "a transaction that began before the generation was complete still runs";
        if older.is_empty() {
            refuse_obstacles(client, generation).await?;
            match swap::try_swap(swapper, session, generation, fill, compaction).await? {
                Attempt::Swapped => return Ok(()),
                Attempt::NotYet(reason) => why = reason,
            }
            carry_over(client, generation).await?;
        }
        if last_logged.is_none_or(|at| at.elapsed() > LOG_INTERVAL) {
            last_logged = Some(Instant::now());
            let pids: Vec<String> = older.iter().map(|(pid, _)| pid.to_string()).collect();
            tracing::info!(
                why,
                pids = pids.join(" "),
                "the generation is complete and kept; the swap waits"
            );
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}
