//! What `status` asks Postgres.

use anyhow::anyhow;
use tokio_postgres::{Client, Error, Row};

use super::figures::{Pause, Rebuild, View};
use crate::continuity::topic_ids::TopicIds;
use crate::contract::place::{self, TopicPartition};
use crate::postgres::{connection, refusal};
use crate::settings::StatusConfig;
use crate::views::pauses::{self, Paused};
use crate::views::stuck;

/// A position, as Postgres has it.
#[derive(Clone)]
pub(super) struct Position {
    pub(super) place: TopicPartition,
    /// None: the partition is read from its beginning.
    pub(super) next_offset: Option<i64>,
    /// Every event before this offset is in the view.
    pub(super) applied_up_to: i64,
    pub(super) epoch: i64,
    pub(super) owner: String,
    /// How many dead letters wait, those of former topics too.
    pub(super) dead_letters: i64,
    /// Why the partition is not read, and what to type.
    pub(super) paused: Option<String>,
    pub(super) ids: TopicIds,
}

const POSITIONS: &str = "
    select topic, partition, next_offset, coalesce(greatest(next_offset, group_offset), 0) as applied_up_to, epoch, owner,
        (select count(*) from (select topic, partition, discarded_at from only view_dead_letters
            union all select topic, partition, discarded_at from view_former_dead_letters) as letter
         where letter.topic = held.topic and letter.partition = held.partition and discarded_at is null) as dead_letters,
        paused, topic_id, former_topic_ids
    from view_positions as held order by topic, partition";

/// The views with their topics, and the generations that are being filled. A process that fills one holds an advisory lock, which `pg_locks` shows as two
/// unsigned numbers.
const VIEWS: &str = "
    select coalesce(kept.view, rebuild.view) as view,
        array(select topic from view_sources as source where source.view = coalesce(kept.view, rebuild.view) order by topic) as topics,
        md5(kept.table_sql || kept.apply_sql) as sql_md5, rebuild.generation,
        to_char(rebuild.started_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') as started_at,
        exists (select from pg_locks
            where locktype = 'advisory' and granted and database = (select oid from pg_database where datname = current_database())
                and classid::bigint = hashtext('view-builder rebuild')::bigint & 4294967295
                and objid::bigint = hashtext(rebuild.view)::bigint & 4294967295) as is_running,
        filled.offsets as filled_offsets, filled.live as live_offsets
    from view_definitions as kept
    full join view_rebuilds as rebuild on rebuild.view = kept.view
    left join lateral (
        select coalesce(sum(least(fill.next_offset, coalesce(held.next_offset, 0))), 0)::bigint as offsets,
            coalesce(sum(coalesce(held.next_offset, 0)), 0)::bigint as live
        from view_rebuild_positions as fill join view_positions as held using (topic, partition)
        where fill.view = rebuild.view
    ) as filled on true
    order by 1";

impl Position {
    fn of(row: &Row) -> Self {
        Self {
            place: place::place(row.get("topic"), row.get("partition")),
            next_offset: row.get("next_offset"),
            applied_up_to: row.get("applied_up_to"),
            epoch: row.get("epoch"),
            owner: row.get("owner"),
            dead_letters: row.get("dead_letters"),
            paused: row.get("paused"),
            ids: TopicIds {
                now: row.get("topic_id"),
                former: row.get("former_topic_ids"),
            },
        }
    }
}

/// What Postgres has told.
#[derive(Default)]
pub(super) struct PostgresLook {
    /// `None`: no builder has run yet, or this role may not read the positions. The text is Postgres' own.
    pub(super) positions: Option<Vec<Position>>,
    pub(super) no_positions_because: Option<String>,
    pub(super) notices: Vec<String>,
    pub(super) paused: Vec<Paused>,
    /// Batches that fail again and again.
    pub(super) stuck: Vec<String>,
    pub(super) views: Vec<View>,
}

/// Asks everything.
///
/// # Errors
/// Postgres does not answer, or refuses the session.
pub(super) async fn look(config: &StatusConfig) -> anyhow::Result<PostgresLook> {
    let away = |err: &Error| anyhow!("postgres does not answer: {}", refusal::line(err));
    let client = connection::connect(&config.servers.database.0)
        .await
        .map_err(|err| away(&err))?;
    let positions = match client.query(POSITIONS, &[]).await {
        Ok(rows) => rows.iter().map(Position::of).collect(),
        // The session goes on, but there is nothing to ask for.
        Err(err) if refusal::goes_on(&err) => {
            return Ok(PostgresLook {
                no_positions_because: Some(refusal::line(&err)),
                ..PostgresLook::default()
            });
        }
        Err(err) => return Err(away(&err)),
    };
    ask_the_rest(&client, positions).await.map_err(|err| away(&err))
}

async fn ask_the_rest(client: &Client, positions: Vec<Position>) -> Result<PostgresLook, Error> {
    let notices = "select notice from view_notices order by topic, partition, kind";
    let notices = client.query(notices, &[]).await?;
    let paused = pauses::load_paused(client).await?;
    let stuck = stuck::lines(client).await?;
    let rows = client.query(VIEWS, &[]).await?;
    Ok(PostgresLook {
        positions: Some(positions),
        no_positions_because: None,
        notices: notices.iter().map(|row| row.get(0)).collect(),
        views: rows.iter().map(|row| view(row, &paused)).collect(),
        paused,
        stuck,
    })
}

fn view(row: &Row, paused: &[Paused]) -> View {
    let name: String = row.get("view");
    let pause = paused.iter().find(|paused| paused.view == name);
    let generation: Option<String> = row.get("generation");
    View {
        topics: row.get("topics"),
        sql_md5: row.get("sql_md5"),
        pause: pause.map(|paused| Pause {
            since: paused.since.clone(),
            by: paused.by.clone(),
            reason: paused.reason.clone(),
        }),
        rebuild: generation.map(|generation| Rebuild {
            generation,
            started_at: row.get("started_at"),
            is_running: row.get("is_running"),
            filled_offsets: row.get("filled_offsets"),
            live_offsets: row.get("live_offsets"),
        }),
        view: name,
    }
}
