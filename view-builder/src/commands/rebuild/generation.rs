//! The generation that a rebuild makes: its empty tables, and the row of `view_rebuilds` by which the same command goes on after a kill.

use tokio_postgres::{Client, Error};

use super::carried;
use super::features::Features;
use super::trouble::Trouble;
use crate::process::failure::Failure;
use crate::process::faults;
use crate::views::view::View;
use crate::views::{catalog, install};

/// A generation that is to be filled.
pub(super) struct Generation {
    pub(super) view: View,
    pub(super) schema: String,
    /// The features of the tables as the live view's `table.sql` alone makes them. Empty for a view that is new.
    pub(super) own_features: Features,
    /// The live view's tables.
    pub(super) live_tables: Vec<String>,
}

impl Generation {
    pub(super) async fn of(client: &Client, view: &View) -> Result<Self, Trouble> {
        let kept = catalog::load_views(client).await?;
        let live = kept.iter().find(|kept| kept.name == view.name);
        let own_features = match live {
            Some(live) => carried::read_own_features(client, &view.name, &live.table.text).await?,
            None => Features::default(),
        };
        let live_tables = live.map_or_else(Vec::new, View::tables);
        Ok(Self {
            view: view.clone(),
            schema: format!("{}_rebuild", view.name),
            own_features,
            live_tables: live_tables.into_iter().map(str::to_owned).collect(),
        })
    }
}

/// How far a rebuild is.
pub(super) enum Stage {
    /// The generation is there, and is to be filled.
    Filling,
    /// The generation is the live view.
    Swapped,
}

/// Begins the rebuild, or resumes an unfinished one. An unfinished one that was begun with other SQL is dropped first.
/// `has_begun`: this command has begun or resumed the rebuild before.
pub(super) async fn begin_or_resume(
    client: &Client,
    generation: &Generation,
    has_begun: bool,
) -> Result<Stage, Trouble> {
    let view = &generation.view;
    let known = client
        .query_opt(
            "select table_sql = $2 and apply_sql = $3 as has_this_sql, generation from view_rebuilds where view = $1",
            &[&view.name, &view.table.text, &view.apply.text],
        )
        .await?;
    match known {
        // The swap deletes this row. So the swap was committed, and only its answer was lost.
        None if has_begun => return Ok(Stage::Swapped),
        None => begin(client, generation).await?,
        Some(row) if row.get("has_this_sql") => {
            client.batch_execute(&search_path(generation)).await?;
            tracing::info!(view = view.name, "an unfinished rebuild goes on");
        }
        Some(row) => {
            tracing::info!(view = view.name, "an unfinished rebuild by other SQL is dropped");
            discard(client, &view.name, row.get("generation")).await?;
            begin(client, generation).await?;
        }
    }
    Ok(Stage::Filling)
}

fn search_path(generation: &Generation) -> String {
    format!("set search_path = \"{}\", public, pg_temp", generation.schema)
}

/// Makes the generation's empty tables and the row of `view_rebuilds`, in one transaction.
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

/// Drops an unfinished generation.
pub(super) async fn discard(client: &Client, view: &str, schema: &str) -> Result<(), Error> {
    client.batch_execute("begin").await?;
    client
        .batch_execute(&format!("drop schema if exists \"{schema}\" cascade"))
        .await?;
    client
        .execute("delete from view_rebuilds where view = $1", &[&view])
        .await?;
    client.batch_execute("commit").await
}
