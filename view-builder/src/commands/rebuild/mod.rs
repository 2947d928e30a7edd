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
use crate::views::database::Session;
use crate::views::view::{self, View};
use crate::views::{catalog, install};
use compaction::Compaction;
pub use dropping::drop_view;
use features::Features;
use fill::Fill;
use patience::Patience;
use progress::Progress;
pub(crate) use session::take_the_role;
use session::{open, own};
use swap::Attempt;
use trouble::Trouble;

const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// A round that took less than this has brought the generation as far as it gets while events come.
const CAUGHT_UP: Duration = Duration::from_secs(1);
/// How often somebody who is waited for is named.
const SAY_INTERVAL: Duration = Duration::from_secs(10);
/// Longest view name: Postgres cuts off the schemas' names otherwise.
const NAME_CHARACTERS_MAX: usize = 48;

/// A generation that is filled.
struct Generation {
    view: View,
    schema: String,
    /// The tables as the live view's `table.sql` alone makes them; none for a view that is new.
    own: Features,
    /// The live view's tables.
    own_tables: Vec<String>,
}

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
        match go_on(config, &view, &mut begun, &progress, &mut patience).await {
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

/// From wherever the rebuild is to its end; `begun` tells that an earlier call has begun it.
async fn go_on(
    config: &RebuildConfig,
    view: &View,
    begun: &mut bool,
    progress: &Progress,
    patience: &mut Patience,
) -> Result<(), Trouble> {
    let client = open(&config.servers.database.0).await?;
    own(&client, &view.name).await?;
    let live = catalog::load(&client).await?;
    let live = live.iter().find(|live| live.name == view.name);
    let generation = Generation {
        view: view.clone(),
        schema: format!("{}_rebuild", view.name),
        own: match live {
            Some(live) => carried::own(&client, &view.name, &live.table.text).await?,
            None => Features::default(),
        },
        own_tables: live.map_or_else(Vec::new, |live| live.tables().into_iter().map(str::to_owned).collect()),
    };
    let known = client
        .query_opt(
            "select table_sql = $2 and apply_sql = $3, generation from view_rebuilds where view = $1",
            &[&view.name, &view.table.text, &view.apply.text],
        )
        .await?;
    match known {
        // The answer to the swap's commit was lost: it did happen.
        None if *begun => return Ok(()),
        Some(row) if row.get(0) => {
            client.batch_execute(&search_path(&generation)).await?;
            tracing::info!(view = view.name, "an unfinished rebuild goes on");
        }
        other => {
            if let Some(row) = other {
                tracing::info!(view = view.name, "an unfinished rebuild by other SQL is dropped");
                discard(&client, &view.name, row.get(1)).await?;
            }
            begin(&client, &generation).await?;
        }
    }
    *begun = true;
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
    for table in swap::tables(&session.client, &generation.schema).await? {
        let analyze = format!("analyze \"{}\".\"{table}\"", generation.schema);
        session.client.batch_execute(&analyze).await?;
    }
    let mut compaction = Compaction::of(&config.servers.kafka, view, accepted.compacted).await;
    let swapper = open(&config.servers.database.0).await?;
    finish(&swapper, &session, &generation, &mut fill, &mut compaction).await
}

fn search_path(generation: &Generation) -> String {
    format!("set search_path = \"{}\", public, pg_temp", generation.schema)
}

/// Makes the generation's empty tables, with the note that the rebuild has begun.
async fn begin(client: &Client, generation: &Generation) -> Result<(), Trouble> {
    let (view, schema) = (&generation.view, &generation.schema);
    client.batch_execute("begin").await?;
    client
        .batch_execute(&format!("create schema \"{schema}\""))
        .await
        .map_err(|err| {
            if err.code() == Some(&tokio_postgres::error::SqlState::INSUFFICIENT_PRIVILEGE) {
                let reason =
                    "the views' role may not create schemas: grant create on this database to it, as the migrations do";
                return Trouble::Final(Failure::Setting(reason.to_owned()));
            }
            err.into()
        })?;
    client.batch_execute(&search_path(generation)).await?;
    install::run(client, view).await?;
    client
        .execute(
            "insert into view_rebuilds (view, generation, table_sql, apply_sql) values ($1, $2, $3, $4)",
            &[&view.name, schema, &view.table.text, &view.apply.text],
        )
        .await?;
    faults::around("rebuild.made", client.batch_execute("commit"), "rebuild.begun").await?;
    tracing::info!(
        view = view.name,
        schema,
        "the new generation is filled beside the live one"
    );
    Ok(())
}

async fn discard(client: &Client, view: &str, schema: &str) -> Result<(), Error> {
    client.batch_execute("begin").await?;
    client
        .batch_execute(&format!("drop schema if exists \"{schema}\" cascade"))
        .await?;
    client
        .execute("delete from view_rebuilds where view = $1", &[&view])
        .await?;
    client.batch_execute("commit").await
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
async fn finish(
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
