//! Paused views. A paused view stays in the catalog, but no batch is applied to it until `resume`, `rebuild` or changed SQL ends the pause. All
//! other views go on.
//!
//! A paused view has every event before its pause positions and none from there on. The pause positions are the live positions at the moment of the
//! pause, which is written under the catalog's lock. Then the live positions go on without the view. `resume` sets them back to the pause
//! positions, and this replay changes nothing in the other views. The view's topics stay subscribed, so that a pause moves no partition to another
//! builder.

use std::collections::HashSet;

use tokio_postgres::{Client, Error};

use crate::process::faults::{self, Bug};
use crate::views::epochs;
use crate::views::view::View;

/// Why and by whom a view is paused.
pub(crate) struct Cause<'a> {
    /// One line, without a row's values.
    pub(crate) reason: &'a str,
    /// The SQLSTATE of the refusal. `None`: an operator has paused the view.
    pub(crate) sqlstate: Option<&'a str>,
    pub(crate) by: &'a str,
}

/// A view that is paused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Paused {
    pub(crate) view: String,
    pub(crate) reason: String,
    /// Since when, as Postgres prints it.
    pub(crate) since: String,
    pub(crate) by: String,
}

impl Paused {
    /// One line that tells people of the pause and of the ways out.
    pub(crate) fn for_people(&self) -> String {
        let Self {
            view,
            reason,
            since,
            by,
        } = self;
        format!(
            "view {view} is paused since {since} by {by}: {reason}; mend that, then: `view-builder resume {view}`, or `view-builder rebuild {view}`"
        )
    }
}

/// Pauses the view. Returns false if it is paused already, or if the catalog has other SQL for it.
pub(crate) async fn pause_view(client: &Client, view: &View, cause: &Cause<'_>) -> Result<bool, Error> {
    client.batch_execute("begin; set local lock_timeout = '5s'").await?;
    client.batch_execute(epochs::LOCK).await?;
    faults::point("pause.locked").await?;
    let paused = client
        .execute(
            "insert into view_pauses (view, reason, sqlstate, paused_by, sql_md5)
             select view, $4, $5, $6, md5(table_sql || apply_sql) from view_definitions
             where view = $1 and table_sql = $2 and apply_sql = $3
             on conflict do nothing",
            &[
                &view.name,
                &view.table.text,
                &view.apply.text,
                &cause.reason,
                &cause.sqlstate,
                &cause.by,
            ],
        )
        .await?;
    if paused == 0 {
        client.batch_execute("rollback").await?;
        return Ok(false);
    }
    let pause_offset = pause_offset_column();
    client
        .execute(
            &format!(
                "insert into view_pause_positions (view, topic, partition, next_offset, newest_event_at, newest_applied_at)
                 select $1, topic, partition, {pause_offset}, newest_event_at, newest_applied_at from view_positions
                 where topic in (select topic from view_sources where view = $1)"
            ),
            &[&view.name],
        )
        .await?;
    client.batch_execute(epochs::RENEW).await?;
    client.batch_execute("commit").await?;
    faults::point("pause.committed").await?;
    Ok(true)
}

/// Ends the view's pause, if there is one, and makes the builders read the catalog again. The catalog must be locked, and the view must have
/// every event before the live positions.
pub(crate) async fn end_pause(client: &Client, view: &str) -> Result<(), Error> {
    if !can_read_pauses(client).await? {
        return Ok(());
    }
    let ended = client
        .execute("delete from view_pauses where view = $1", &[&view])
        .await?;
    if ended > 0 {
        client.batch_execute(epochs::RENEW).await?;
    }
    Ok(())
}

/// All paused views, sorted by name.
pub(crate) async fn load_paused(client: &Client) -> Result<Vec<Paused>, Error> {
    if !can_read_pauses(client).await? {
        return Ok(Vec::new());
    }
    let rows = client
        .query(
            "select view, reason, to_char(paused_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') as since, paused_by
             from view_pauses order by view",
            &[],
        )
        .await?;
    let paused = rows.iter().map(|row| Paused {
        view: row.get("view"),
        reason: row.get("reason"),
        since: row.get("since"),
        by: row.get("paused_by"),
    });
    Ok(paused.collect())
}

/// The names of all paused views.
pub(crate) async fn load_paused_names(client: &Client) -> Result<HashSet<String>, Error> {
    Ok(load_paused(client)
        .await?
        .into_iter()
        .map(|paused| paused.view)
        .collect())
}

/// The name of a paused view that reads this topic, if there is one.
pub(crate) async fn find_paused_reader(client: &Client, topic: &str) -> Result<Option<String>, Error> {
    if !can_read_pauses(client).await? {
        return Ok(None);
    }
    let row = client
        .query_one(
            "select min(view) from view_pauses join view_sources using (view) where topic = $1",
            &[&topic],
        )
        .await?;
    Ok(row.get(0))
}

/// Whether the table of pauses exists and this role may read it. The first start of a builder of this version makes the table.
async fn can_read_pauses(client: &Client) -> Result<bool, Error> {
    let row = client
        .query_one(
            "select coalesce(has_table_privilege(to_regclass('public.view_pauses'), 'select'), false)",
            &[],
        )
        .await?;
    Ok(row.get(0))
}

/// The SQL of the offset at which a view is paused. If a replay has set the position back, this is the lower offset, since the replay may be meant
/// to mend this very view. The planted bug takes the highest offset.
fn pause_offset_column() -> &'static str {
    if faults::is_planted(Bug::PauseAtTheHighest) {
        "greatest(next_offset, highest_offset)"
    } else {
        "next_offset"
    }
}
