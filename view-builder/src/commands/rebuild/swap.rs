//! The swap: one transaction in which the new generation takes the live one's place.
//!
//! The steps, in this order:
//! 1. The catalog's lock keeps every builder out, so no batch is under way from now on.
//! 2. Another session applies the last events up to the live positions, and commits them. Beside the swap, since the swap may still be rolled back.
//! 3. The swap waits for all transactions that began before these events were committed. Otherwise their snapshots would show the new tables
//!    without the last events.
//! 4. The tables change schemas. The functions of `public` stay where they are, so grants on them and their callers stay too. They get their new
//!    bodies because `table.sql` runs in `public`, which also makes the triggers call them.
//! 5. The old tables are dropped without `cascade`. If something depends on them that was not carried over, Postgres refuses, and everything is as
//!    before.

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
use crate::views::catalog::{self, NewTopics};
use crate::views::database::Session;
use crate::views::epochs;
use crate::views::pauses;

/// How long the swap waits for a lock that somebody else holds. Builders wait as long.
const LOCK_TIMEOUT: &str = "set local lock_timeout = '1s'";
/// How long applying the last events may take, with the wait for older transactions.
const LAST_EVENTS_MAX: Duration = Duration::from_secs(3);
/// Pause between two looks whether older transactions have ended. It is short, since builders wait meanwhile.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// How an attempt ended.
pub(super) enum Attempt {
    Swapped,
    /// The swap has to be tried again, for this reason.
    NotYet(&'static str),
}

/// Tries to swap in a transaction of `client`, while `session` applies the last events. If it does not succeed, the transaction is rolled back.
pub(super) async fn try_swap(
    client: &Client,
    session: &Session,
    generation: &Generation,
    fill: &mut Fill,
    compaction: &Compaction,
) -> Result<Attempt, Trouble> {
    client.batch_execute("begin").await?;
    client.batch_execute(LOCK_TIMEOUT).await?;
    let swapped = swap_without_commit(client, session, generation, fill, compaction).await;
    let reason = match swapped {
        Ok(Attempt::Swapped) => {
            faults::around("swap.made", client.batch_execute("commit"), "swap.committed").await?;
            return Ok(Attempt::Swapped);
        }
        Ok(Attempt::NotYet(reason)) => reason,
        Err(Trouble::NotInTime) => "there is still much to apply",
        Err(Trouble::Database(err)) if refusal::is_lock_timeout(&err) => {
            "somebody holds a lock on the view or on its positions"
        }
        Err(other) => return Err(other),
    };
    client.batch_execute("rollback").await?;
    Ok(Attempt::NotYet(reason))
}

/// Does all steps of the swap but the commit.
async fn swap_without_commit(
    client: &Client,
    session: &Session,
    generation: &Generation,
    fill: &mut Fill,
    compaction: &Compaction,
) -> Result<Attempt, Trouble> {
    let view = &generation.view;
    client.batch_execute(epochs::LOCK).await?;
    faults::point("swap.locked").await?;
    let deadline = Instant::now() + LAST_EVENTS_MAX;
    if !fill.try_update_limits(&session.client, view).await? {
        return Ok(Attempt::NotYet("dead letters have changed"));
    }
    fill.apply_up_to_limits(session, view, Some(deadline), |_| ()).await?;
    fill.refuse_other_topics(&session.client, view).await?;
    if compaction.has_unproven_keys(&session.client, fill).await? {
        return Ok(Attempt::NotYet("there are new dead letters"));
    }
    // An older snapshot would show the new tables without the last events. Its reader would see a row in an older state than before.
    let mut older = running_transactions(client).await?;
    while !older.is_empty() {
        if deadline <= Instant::now() {
            return Ok(Attempt::NotYet(
                "a transaction that began before the last events came still runs",
            ));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
        let running = running_transactions(client).await?;
        older.retain(|transaction| running.contains(transaction));
    }
    faults::point("swap.last-events").await?;
    let carried = carried::collect(client, &generation.schema, &generation.own_features).await?;
    if !carried.before_swap.is_empty() {
        return Ok(Attempt::NotYet("a new index or constraint is there"));
    }
    exchange_tables(client, generation, &carried)
        .await
        .map_err(|err| explain_refusal(generation, err))?;
    catalog::put(client, view, NewTopics::AreFilled).await?;
    // The generation has every event before the live positions.
    pauses::end_pause(client, &view.name).await?;
    client
        .execute("delete from view_rebuilds where view = $1", &[&view.name])
        .await?;
    Ok(Attempt::Swapped)
}

/// The running transactions of other sessions in this database, as pid and virtual transaction id. Two kinds are left out:
/// - those of autovacuum. It is recognised by having no user, since only a privileged role may read what kind of backend a session of another role
///   is;
/// - those that wait for this session, such as a builder's. When it goes on, it takes a new snapshot, which is later than the swap.
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

/// Moves the live tables out of `public` and the generation's tables into it, makes there what was carried over, and drops the live tables.
async fn exchange_tables(client: &Client, generation: &Generation, carried: &Carried) -> Result<(), Error> {
    let schema = &generation.schema;
    let replaced_schema = format!("{}_replaced", generation.view.name);
    client
        .batch_execute(&format!("create schema \"{replaced_schema}\""))
        .await?;
    let owner = client.query_one("select current_user::text", &[]).await?;
    let owner = escape_identifier(owner.get(0));
    lock_others_views(client, carried, &owner).await?;
    lock_plain_views(client, &generation.live_tables).await?;
    let tables = list_tables(client, schema).await?;
    let mut replaced_tables = Vec::new();
    for table in tables.iter().chain(&generation.live_tables) {
        let live_table = client
            .query_opt(
                "select from pg_class where relnamespace = 'public'::regnamespace and relname = $1 and relkind in ('r', 'p')",
                &[table],
            )
            .await?;
        if live_table.is_some() && !replaced_tables.contains(table) {
            move_table(client, table, "public", &replaced_schema).await?;
            replaced_tables.push(table.clone());
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
    if !replaced_tables.is_empty() {
        let names: Vec<String> = replaced_tables
            .iter()
            .map(|table| format!("\"{replaced_schema}\".\"{table}\""))
            .collect();
        client
            .batch_execute(&format!("drop table {}", names.join(", ")))
            .await?;
    }
    client
        .batch_execute(&format!("drop schema \"{replaced_schema}\""))
        .await?;
    drop_views_and_functions(client, schema).await?;
    client.batch_execute(&format!("drop schema \"{schema}\"")).await
}

/// Moves a table to another schema, and its extended statistics too, which Postgres would leave behind.
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

/// Locks the SQL views that others have made, each before the tables that it shows, for the reason that [`lock_plain_views`] gives. Only its owner
/// may lock a view. `lock table` would also need privileges on the tables, which the owner may not have. So an `alter` that changes nothing takes
/// the lock.
async fn lock_others_views(client: &Client, carried: &Carried, owner: &str) -> Result<(), Error> {
    for view in carried.views.iter().rev() {
        let owner_of_view = escape_identifier(&view.owner);
        client
            .batch_execute(&format!(
                "set local role {owner_of_view}; alter view {} owner to {owner_of_view}; set local role {owner}",
                view.name
            ))
            .await?;
    }
    Ok(())
}

/// Locks the live view's own SQL views, and with each of them the tables that it shows. A reader locks them in this order too. In another order the
/// swap and a reader could wait for each other, and Postgres would end the reader's query.
async fn lock_plain_views(client: &Client, live_tables: &[String]) -> Result<(), Error> {
    let row = client
        .query_one(
            "select string_agg(oid::regclass::text, ', ' order by oid) from pg_class
             where relnamespace = 'public'::regnamespace and relname = any($1) and relkind = 'v'",
            &[&live_tables],
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

/// Drops the generation's SQL views and functions. Nobody needs them any more, since those of `public` are in use.
async fn drop_views_and_functions(client: &Client, schema: &str) -> Result<(), Error> {
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

/// Turns a refusal by Postgres into a failure that says what stands in the way. Any other error may pass, so it is left as it is.
fn explain_refusal(generation: &Generation, err: Error) -> Trouble {
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
