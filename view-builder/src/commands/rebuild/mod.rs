//! `view-builder rebuild`: a new generation of a view, made from offset 0 beside the live one, which is read and kept meanwhile.
//!
//! 1. The view's `table.sql` runs in a schema of its own, and [`fill`] applies the topics' events to it, as far as the live view has ever been and
//!    never further.
//! 2. Indexes and constraints that people have added to the live tables are made on the new ones, see [`carried`].
//! 3. What the topics cannot give again is looked for, see [`compaction`].
//! 4. Transactions that began before the generation was complete are waited for: to their snapshots it would look half empty.
//! 5. [`swap`]: one transaction puts the generation in the live one's place.
//!
//! Everything that has to survive a kill is in Postgres: the generation, its positions, the texts. The same command goes on from there.
//! A session's advisory lock lets only one rebuild of a view run.

mod accepted;
mod aim;
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
use generation::{Generation, Stage, begin_or_take_up, discard};
use patience::Patience;
use progress::Progress;
pub(crate) use session::take_the_role;
use session::{open, own};
use swap::Attempt;
use trouble::Trouble;

/// Pause before a rebuild that cannot go on now tries again.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// A round that took less than this has brought the generation as far as it gets while events come.
const CAUGHT_UP: Duration = Duration::from_secs(1);
/// How often somebody who is waited for is named.
const SAY_INTERVAL: Duration = Duration::from_secs(10);
/// Longest view name: Postgres cuts off the schemas' names otherwise.
const NAME_CHARACTERS_MAX: usize = 48;

/// Makes the view anew and swaps it in; or adds it, where the database does not have it yet.
///
/// # Errors
/// There is no such view, or its SQL is wrong; another rebuild of it is under way; something hangs on it that cannot be carried over.
pub async fn rebuild(config: &RebuildConfig) -> Result<String, Failure> {
    let view = find(config)?;
    let mut begun = false;
    let progress = Progress::of(&view.name);
    let mut patience = Patience::default();
    loop {
        match carry_to_the_end(config, &view, &mut begun, &progress, &mut patience).await {
            Ok(()) => {
                progress.finish();
                return Ok(format!("{} is rebuilt: the new generation is live\n", view.name));
            }
            Err(Trouble::Final(failure)) => return Err(failure),
            // The session of before has to be gone with its advisory lock.
            Err(Trouble::NotInTime | Trouble::Stands(..)) => tokio::time::sleep(RETRY_INTERVAL).await,
            // Where it goes on, it looks at what is gone.
            Err(Trouble::Removed(topic)) => {
                patience.misses(&topic)?;
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
            Err(Trouble::Database(err)) if !begun => return Err(unanswered(err)),
            Err(Trouble::Database(err)) => {
                patience.meets(&err)?;
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
    let client = open(&config.servers.database.0).await.map_err(Trouble::into_failure)?;
    own(&client, view).await.map_err(Trouble::into_failure)?;
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

fn find(config: &RebuildConfig) -> Result<View, Failure> {
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

/// Carries the rebuild from wherever it is to its end. `begun`: an earlier call has begun it.
async fn carry_to_the_end(
    config: &RebuildConfig,
    view: &View,
    begun: &mut bool,
    progress: &Progress,
    patience: &mut Patience,
) -> Result<(), Trouble> {
    let client = open(&config.servers.database.0).await?;
    own(&client, &view.name).await?;
    let generation = Generation::of(&client, view).await?;
    match begin_or_take_up(&client, &generation, *begun).await? {
        Stage::Filling => *begun = true,
        Stage::Swapped => return Ok(()),
    }
    let accepted = accepted::accept(&client, config, &view.name).await?;
    refuse_obstacles(&client, &generation).await?;
    let session = Session::prepare(client, std::slice::from_ref(view)).await?;
    let mut fill = Fill::new(&config.servers.kafka, view)?;
    if fill.resume(&session.client, view, accepted.truncated).await? {
        patience.passed_over();
    }
    progress.set_total(fill.left());
    fill.round(&session, view, None, |left| progress.show_left(left))
        .await?;
    faults::point("rebuild.filled").await?;
    carry_over(&session.client, &generation).await?;
    analyze(&session.client, &generation).await?;
    let mut compaction = Compaction::of(&config.servers.kafka, view, accepted.compacted).await;
    let swapper = open(&config.servers.database.0).await?;
    swap_once_caught_up(&swapper, &session, &generation, &mut fill, &mut compaction).await
}

/// Has Postgres count what the fill has written: it has no statistics of new tables.
async fn analyze(client: &Client, generation: &Generation) -> Result<(), Error> {
    for table in swap::tables(client, &generation.schema).await? {
        let analyze = format!("analyze \"{}\".\"{table}\"", generation.schema);
        client.batch_execute(&analyze).await?;
    }
    Ok(())
}

async fn refuse_obstacles(client: &Client, generation: &Generation) -> Result<(), Trouble> {
    let obstacles = carried::obstacles(client, &generation.schema, &generation.own).await?;
    if obstacles.is_empty() {
        return Ok(());
    }
    // A builder has added the view since: its tables are no strangers.
    let kept = catalog::load(client).await?;
    if generation.own_tables.is_empty() && kept.iter().any(|kept| kept.name == generation.view.name) {
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
    let carried = carried::collect(client, &generation.schema, &generation.own).await?;
    for what in &carried.not_kept {
        tracing::warn!(what, "not carried over");
    }
    for statement in &carried.before {
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
    let mut older = swap::transactions(client).await?;
    let (mut said, mut tried) = (Instant::now(), false);
    loop {
        let began = Instant::now();
        if fill.aim(client, &generation.view).await? {
            tracing::info!("dead letters have changed: what was left out is read again");
        }
        fill.round(session, &generation.view, None, |_| ()).await?;
        if began.elapsed() > CAUGHT_UP {
            continue;
        }
        compaction.check(client, fill, &generation.view).await?;
        let now = swap::transactions(client).await?;
        older.retain(|transaction| now.contains(transaction));
        let mut why = "a transaction that began before the generation was complete still runs";
        if older.is_empty() {
            refuse_obstacles(client, generation).await?;
            match swap::attempt(swapper, session, generation, fill, compaction).await? {
                Attempt::Done => return Ok(()),
                Attempt::NotYet(reason) => why = reason,
            }
            carry_over(client, generation).await?;
        }
        if !tried || said.elapsed() > SAY_INTERVAL {
            (said, tried) = (Instant::now(), true);
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
