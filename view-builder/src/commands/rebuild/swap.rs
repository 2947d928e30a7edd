//! The swap: one transaction in which the new generation takes the live one's place.
//!
//! No batch is under way meanwhile, as the catalog's lock keeps every builder out. The last events up to the live positions are applied and
//! committed beside it, and snapshots of before are waited for, so that whoever sees the new tables sees them whole; then the
//! tables change schemas. The functions of `public` stay where they are and get their new bodies by running `table.sql` there, which
//! also lets the triggers call them, so grants on them and what calls them stay. The old tables are dropped without `cascade`: should
//! something depend on them that is not carried over, Postgres refuses, and everything is as before.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use postgres_protocol::escape::escape_identifier;
use tokio_postgres::{Client, Error};

use super::carried::{self, Carried};
use super::compaction::Compaction;
use super::fill::Fill;
use super::generation::Generation;
use super::trouble::Trouble;
use crate::postgres::refusal;
use crate::process::failure::Failure;
use crate::process::faults;
use crate::views::catalog;
use crate::views::database::Session;
use crate::views::epochs;
use crate::views::pauses;

/// Time that builders may be kept waiting for a lock that somebody else holds.
const LOCK_TIMEOUT: &str = "set local lock_timeout = '1s'";
/// Time that the last events may take.
const LAST_EVENTS_MAX: Duration = Duration::from_secs(3);
/// How often it is looked whether older transactions have ended. Builders wait meanwhile, so it is short.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// How an attempt ended.
pub(super) enum Attempt {
    Done,
    /// Somebody holds a lock, or there was too much left to apply.
    NotYet(&'static str),
}

/// Tries to swap, in a transaction of `client`, while `session` applies the last events. Nothing is changed where it does not succeed.
pub(super) async fn try_swap(
    client: &Client,
    session: &Session,
    generation: &Generation,
    fill: &mut Fill,
    compaction: &Compaction,
) -> Result<Attempt, Trouble> {
    client.batch_execute("begin").await?;
    client.batch_execute(LOCK_TIMEOUT).await?;
    let swapped = swap(client, session, generation, fill, compaction).await;
    let why = match swapped {
        Ok(None) => {
            faults::around("swap.made", client.batch_execute("commit"), "swap.committed").await?;
            return Ok(Attempt::Done);
        }
        Ok(Some(why)) => why,
        Err(Trouble::NotInTime) => "there is still much to apply",
        Err(Trouble::Database(err)) if refusal::is_lock_timeout(&err) => {
            "somebody holds a lock on the view or on its positions"
        }
        Err(other) => return Err(other),
    };
    client.batch_execute("rollback").await?;
    Ok(Attempt::NotYet(why))
}

/// Everything but the commit; a reason where it cannot be done now.
async fn swap(
    client: &Client,
    session: &Session,
    generation: &Generation,
    fill: &mut Fill,
    compaction: &Compaction,
) -> Result<Option<&'static str>, Trouble> {
    let view = &generation.view;
    client.batch_execute(epochs::LOCK).await?;
    faults::point("swap.locked").await?;
    let deadline = Instant::now() + LAST_EVENTS_MAX;
    if !fill.try_update_limits(&session.client, view).await? {
        return Ok(Some("dead letters have changed"));
    }
    fill.apply_up_to_limits(session, view, Some(deadline), |_| ())
        .await?;
    fill.refuse_other_topics(&session.client, view).await?;
    if compaction.has_unproven_keys(&session.client, fill).await? {
        return Ok(Some("there are new dead letters"));
    }
    // A snapshot of before would show the new tables without the last events: a row would go back for its reader.
    let mut older = running_transactions(client).await?;
    while !older.is_empty() {
        if deadline <= Instant::now() {
            return Ok(Some("a transaction that began before the last events came still runs"));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
        let now = running_transactions(client).await?;
        older.retain(|transaction| now.contains(transaction));
    }
    faults::point("swap.last-events").await?;
    let carried = carried::collect(client, &generation.schema, &generation.own_features).await?;
    if !carried.before_swap.is_empty() {
        return Ok(Some("a new index or constraint is there"));
    }
    exchange(client, generation, &carried)
        .await
        .map_err(|err| explain(generation, err))?;
    catalog::put(client, view, false).await?;
    // The generation has every event before the live positions.
    pauses::end(client, &view.name).await?;
    client
        .execute("delete from view_rebuilds where view = $1", &[&view.name])
        .await?;
    Ok(None)
}

/// The transactions of other sessions in this database, as pid and virtual transaction id. Not those of autovacuum, which has no user (what kind of
/// backend another role's is, only a privileged one may know), and not those that wait for this session: what a builder
/// looks at once it may go on is of after the swap.
pub(super) async fn running_transactions(client: &Client) -> Result<HashSet<(i32, String)>, Error> {
    let rows = client
        .query(
            "select locks.pid, locks.virtualxid from pg_locks as locks
             join pg_stat_activity as activity using (pid)
             where locks.locktype = 'virtualxid' and locks.granted
                and activity.datname = current_database() and activity.usesysid is not null
                and locks.pid <> pg_backend_pid() and not pg_backend_pid() = any(pg_blocking_pids(locks.pid))",
            &[],
        )
        .await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

async fn exchange(client: &Client, generation: &Generation, carried: &Carried) -> Result<(), Error> {
    let (schema, replaced) = (&generation.schema, format!("{}_replaced", generation.view.name));
    client.batch_execute(&format!("create schema \"{replaced}\"")).await?;
    let owner = client.query_one("select current_user::text", &[]).await?;
    let owner = escape_identifier(owner.get(0));
    lock_others_views(client, carried, &owner).await?;
    lock_plain_views(client, &generation.live_tables).await?;
    let tables = list_tables(client, schema).await?;
    let mut old = Vec::new();
    for table in tables.iter().chain(&generation.live_tables) {
        let there = client
            .query_opt(
                "select from pg_class where relnamespace = 'public'::regnamespace and relname = $1 and relkind in ('r', 'p')",
                &[table],
            )
            .await?;
        if there.is_some() && !old.contains(table) {
            move_table(client, table, "public", &replaced).await?;
            old.push(table.clone());
        }
    }
    for table in &tables {
        move_table(client, table, schema, "public").await?;
    }
    client.batch_execute("set search_path = public, pg_temp").await?;
    client.batch_execute(&generation.view.table.text).await?;
    for statement in &carried.in_swap {
        client.batch_execute(statement).await?;
    }
    for view in &carried.views {
        client
            .batch_execute(&format!("set local role {}", escape_identifier(&view.owner)))
            .await?;
        client.batch_execute(&view.statement).await?;
    }
    client.batch_execute(&format!("set local role {owner}")).await?;
    if !old.is_empty() {
        let list: Vec<String> = old.iter().map(|table| format!("\"{replaced}\".\"{table}\"")).collect();
        client.batch_execute(&format!("drop table {}", list.join(", "))).await?;
    }
    client.batch_execute(&format!("drop schema \"{replaced}\"")).await?;
    drop_functions(client, schema).await?;
    client.batch_execute(&format!("drop schema \"{schema}\"")).await
}

/// Moves a table to another schema, with its extended statistics, which Postgres leaves behind.
async fn move_table(client: &Client, table: &str, from: &str, to: &str) -> Result<(), Error> {
    client
        .batch_execute(&format!(
            "alter table {from}.{} set schema {to}",
            escape_identifier(table)
        ))
        .await?;
    let statistics = client
        .query(
            "select stxname::text from pg_statistic_ext
             where stxrelid = format('%I.%I', $1::text, $2::text)::regclass and stxnamespace = $3::text::regnamespace",
            &[&to, &table, &from],
        )
        .await?;
    for row in &statistics {
        client
            .batch_execute(&format!(
                "alter statistics {from}.{} set schema {to}",
                escape_identifier(row.get(0))
            ))
            .await?;
    }
    Ok(())
}

/// Locks the views that others have made, each before what it shows, as [`lock_plain_views`]. Only a view's owner may, and `lock table` would
/// want privileges on the tables that he need not have: an `alter` that changes nothing takes the same lock.
async fn lock_others_views(client: &Client, carried: &Carried, owner: &str) -> Result<(), Error> {
    for view in carried.views.iter().rev() {
        let its_owner = escape_identifier(&view.owner);
        client
            .batch_execute(&format!(
                "set local role {its_owner}; alter view {} owner to {its_owner}; set local role {owner}",
                view.name
            ))
            .await?;
    }
    Ok(())
}

/// Locks the live view's plain SQL views, and with each the tables that it shows. A reader locks them in this order too: in another one the
/// two would wait for each other, and Postgres would end the reader's query.
async fn lock_plain_views(client: &Client, names: &[String]) -> Result<(), Error> {
    let row = client
        .query_one(
            "select string_agg(oid::regclass::text, ', ' order by oid) from pg_class
             where relnamespace = 'public'::regnamespace and relname = any($1) and relkind = 'v'",
            &[&names],
        )
        .await?;
    match row.get::<_, Option<&str>>(0) {
        Some(views) => {
            client
                .batch_execute(&format!("lock table {views} in access exclusive mode"))
                .await
        }
        None => Ok(()),
    }
}

/// The generation's tables, in the order in which they were made.
pub(super) async fn list_tables(client: &Client, schema: &str) -> Result<Vec<String>, Error> {
    let rows = client
        .query(
            "select relname::text from pg_class
             where relnamespace = $1::text::regnamespace and relkind in ('r', 'p') and not relispartition order by oid",
            &[&schema],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The generation's views and functions have served: those of `public` are in use.
async fn drop_functions(client: &Client, schema: &str) -> Result<(), Error> {
    let row = client
        .query_one(
            "select
                (select string_agg(oid::regclass::text, ', ') from pg_class
                 where relnamespace = $1::text::regnamespace and relkind = 'v'),
                (select string_agg(oid::regprocedure::text, ', ') from pg_proc where pronamespace = $1::text::regnamespace)",
            &[&schema],
        )
        .await?;
    if let Some(views) = row.get::<_, Option<&str>>(0) {
        client.batch_execute(&format!("drop view {views}")).await?;
    }
    if let Some(functions) = row.get::<_, Option<&str>>(1) {
        client.batch_execute(&format!("drop routine {functions}")).await?;
    }
    Ok(())
}

/// A refusal by Postgres is the end, and says what stands in the way; anything else passes.
fn explain(generation: &Generation, err: Error) -> Trouble {
    if refusal::is_lock_timeout(&err) || !refusal::is_wrong_sql(&err) {
        return err.into();
    }
    let reason = err.as_db_error().map_or_else(String::new, |db| {
        let detail = db.detail().map(|detail| format!(" ({})", detail.replace('\n', ", ")));
        format!("{}{}", db.message(), detail.unwrap_or_default())
    });
    Failure::Setting(format!(
        "{} cannot be swapped, and is as before: {reason}; mend that and run rebuild again: it goes on where it is",
        generation.view.name
    ))
    .into()
}
