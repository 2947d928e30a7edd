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

/// The tables of the generation that this command has begun or resumed, by their oids. The swap moves the tables, and they keep their oids.
#[derive(Debug)]
pub(super) struct Begun {
    tables: Vec<u32>,
}

impl Begun {
    /// Reads the tables of a generation that is not swapped in.
    pub(super) async fn read(client: &Client, generation: &Generation) -> Result<Self, Error> {
        Ok(Self {
            tables: read_oids_of_tables(client, &generation.schema).await?,
        })
    }

    /// Whether this generation is the live one. If it has no tables, nothing tells, and it counts as swapped in.
    async fn is_live(&self, client: &Client) -> Result<bool, Error> {
        let live = read_oids_of_tables(client, "public").await?;
        Ok(self.tables.is_empty() || self.tables.iter().any(|table| live.contains(table)))
    }
}

async fn read_oids_of_tables(client: &Client, schema: &str) -> Result<Vec<u32>, Error> {
    let sql =
        "select oid from pg_class where relnamespace = to_regnamespace(quote_ident($1)) and relkind in ('r', 'p')";
    let rows = client.query(sql, &[&schema]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// How far a rebuild is.
pub(super) enum Stage {
    /// The generation is there, and is to be filled.
    Filling,
    /// The generation is the live view.
    Swapped,
}

/// Begins the rebuild, or resumes an unfinished one. An unfinished one that was begun with other SQL is dropped first.
/// `begun`: what this command has begun or resumed before, if it has.
pub(super) async fn begin_or_resume(
    client: &Client,
    generation: &Generation,
    begun: Option<&Begun>,
) -> Result<Stage, Trouble> {
    let view = &generation.view;
    let known = client
        .query_opt(
            "select table_sql = $2 and apply_sql = $3 as has_this_sql, generation from view_rebuilds where view = $1",
            &[&view.name, &view.table.text, &view.apply.text],
        )
        .await?;
    match (known, begun) {
        // The swap deletes this row, and so does `rebuild --abandon`. Only after a swap that was committed, and whose answer was lost, are the tables
        // the live ones.
        (None, Some(begun)) if begun.is_live(client).await? => return Ok(Stage::Swapped),
        (None, Some(_)) => {
            return Err(Failure::Setting(format!(
                "the unfinished rebuild of {0} was dropped meanwhile, as by view-builder rebuild {0} --abandon, and its generation is not live",
                view.name
            ))
            .into());
        }
        (None, None) => begin(client, generation).await?,
        (Some(row), _) if row.get("has_this_sql") => {
            client.batch_execute(&search_path(generation)).await?;
            tracing::info!(view = view.name, "an unfinished rebuild goes on");
        }
        (Some(row), _) => {
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
