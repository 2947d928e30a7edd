//! The views' database: positions, views, pauses, rebuilds, dead letters.

use std::collections::BTreeMap;

use time::OffsetDateTime;
use tokio_postgres::Row;

use super::letters::{Letters, LettersAsker};
use crate::postgres::Database;

/// What the database says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ViewsFacts {
    /// A builder has made its tables here.
    pub is_made: bool,
    pub positions: Vec<Position>,
    pub views: Vec<ViewFacts>,
    /// Dead letters that wait, by topic: those that cannot be applied, and those behind them.
    pub letters: BTreeMap<String, Letters>,
    /// Batches that fail again and again, in words for people.
    pub stuck: Vec<String>,
    /// What an operator has to know of partitions, in words for people.
    pub notices: Vec<String>,
}

/// Where the views are in a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    pub topic: String,
    pub partition: i32,
    /// Every event before this offset is in the views.
    pub applied_up_to: i64,
    /// During a replay: the offset that is read next. Events from there on are applied again.
    pub replay_at: Option<i64>,
    pub epoch: i64,
    /// Who claimed it last.
    pub owner: String,
    pub claimed_at: OffsetDateTime,
    /// Why it is not read, and what to type.
    pub paused: Option<String>,
}

/// A view.
#[derive(Clone, Debug, PartialEq)]
pub struct ViewFacts {
    pub name: String,
    pub topics: Vec<String>,
    pub table_sql: String,
    pub apply_sql: String,
    /// How many texts of its SQL there were before this one.
    pub replaced: i32,
    pub pause: Option<Pause>,
    pub rebuild: Option<Rebuild>,
    pub tables: Vec<TableFacts>,
}

/// A table of a view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableFacts {
    pub name: String,
    /// As the server estimates.
    pub rows: i64,
    /// With its indexes.
    pub bytes: i64,
}

/// Why and since when a view is not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pause {
    pub reason: String,
    pub by: String,
    pub since: OffsetDateTime,
}

/// A rebuild that is under way, or was killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebuild {
    /// The schema that is filled.
    pub generation: String,
    pub started_at: OffsetDateTime,
    /// The offset up to which it is filled, by topic and partition.
    pub filled: BTreeMap<(String, i32), i64>,
}

impl ViewsFacts {
    /// Where the views are in a partition.
    #[must_use]
    pub fn position(&self, topic: &str, partition: i32) -> Option<&Position> {
        let mut positions = self.positions.iter();
        positions.find(|position| position.topic == topic && position.partition == partition)
    }

    #[must_use]
    pub fn view(&self, name: &str) -> Option<&ViewFacts> {
        self.views.iter().find(|view| view.name == name)
    }

    /// All dead letters that wait.
    #[must_use]
    pub fn letters_waiting(&self) -> i64 {
        self.letters.values().map(|letters| letters.dead + letters.behind).sum()
    }
}

impl ViewFacts {
    /// What it is: the first line of its statement's head comment.
    #[must_use]
    pub fn summary(&self) -> &str {
        let line = self.apply_sql.lines().next().unwrap_or_default();
        line.strip_prefix("--").unwrap_or_default().trim()
    }

    /// The rows of its first table, as the server estimates.
    #[must_use]
    pub fn rows(&self) -> Option<i64> {
        self.tables.first().map(|table| table.rows)
    }
}

const POSITIONS: &str = "
    select topic, partition, coalesce(greatest(next_offset, group_offset), 0) as applied_up_to,
        case when coalesce(next_offset, 0) < highest_offset then coalesce(next_offset, 0) end as replay_at, epoch, owner, claimed_at, paused
    from public.view_positions order by topic, partition";

const VIEWS: &str = "
    select definition.view, definition.table_sql, definition.apply_sql, cardinality(definition.replaced) as replaced,
        array(select topic from public.view_sources as source where source.view = definition.view order by topic) as topics,
        pause.reason, pause.paused_by, pause.paused_at, rebuild.generation, rebuild.started_at
    from public.view_definitions as definition
    left join public.view_pauses as pause on pause.view = definition.view
    left join public.view_rebuilds as rebuild on rebuild.view = definition.view
    order by definition.view";

const FILLED: &str = "select view, topic, partition, next_offset from public.view_rebuild_positions";

const TABLES: &str = "
    select relname::text as name, coalesce(n_live_tup, 0)::bigint as rows, pg_total_relation_size(relid)::bigint as bytes
    from pg_stat_all_tables where schemaname = 'public' and relname = any ($1::text[])";

const TOLD: &str = "
    select 'stuck' as kind, format('a batch of %s fails again and again for %s s: %s', owner,
        extract(epoch from clock_timestamp() - since)::bigint, reason) as line
    from public.view_stuck_batches where told_at > clock_timestamp() - interval '1 minute'
    union all
    select 'notice', notice from public.view_notices";

/// Asks the database.
///
/// # Errors
/// It does not answer or refuses, in words for people.
pub async fn ask(database: &Database, letters: &mut LettersAsker) -> Result<ViewsFacts, String> {
    let query = async |sql: &str| database.query(sql, &[]).await.map_err(|err| err.to_string());
    let made = query("select to_regclass('public.view_definitions') is not null and to_regclass('public.view_pauses') is not null as made").await?;
    if !made.first().is_some_and(|row| row.get("made")) {
        return Ok(ViewsFacts::default());
    }
    let positions = query(POSITIONS).await?;
    let views = query(VIEWS).await?;
    let filled = query(FILLED).await?;
    let told = query(TOLD).await?;
    let mut views: Vec<ViewFacts> = views.iter().map(ViewFacts::of).collect();
    let names: Vec<String> = views.iter().flat_map(|view| table_names(&view.table_sql)).collect();
    let tables = database.query(TABLES, &[&names]).await.map_err(|err| err.to_string())?;
    let tables: BTreeMap<String, TableFacts> = tables
        .iter()
        .map(|row| (row.get("name"), TableFacts::of(row)))
        .collect();
    for row in &filled {
        let rebuild = views.iter_mut().find(|view| view.name == row.get::<_, &str>("view"));
        if let Some(rebuild) = rebuild.and_then(|view| view.rebuild.as_mut()) {
            let place = (row.get("topic"), row.get("partition"));
            rebuild.filled.insert(place, row.get("next_offset"));
        }
    }
    for view in &mut views {
        view.tables = table_names(&view.table_sql)
            .iter()
            .filter_map(|name| tables.get(name).cloned())
            .collect();
    }
    let lines = |kind: &str| {
        let rows = told.iter().filter(|row| row.get::<_, &str>("kind") == kind);
        rows.map(|row| row.get("line")).collect()
    };
    letters.ask(database).await;
    let mut notices: Vec<String> = lines("notice");
    notices.extend(
        letters
            .failure
            .as_ref()
            .map(|why| format!("the dead letters cannot be counted now: {why}")),
    );
    Ok(ViewsFacts {
        is_made: true,
        positions: positions.iter().map(Position::of).collect(),
        views,
        letters: letters.counted.clone(),
        stuck: lines("stuck"),
        notices,
    })
}

/// The tables that a view's SQL makes, in its order.
fn table_names(table_sql: &str) -> Vec<String> {
    let names = table_sql
        .lines()
        .filter_map(|line| line.strip_prefix("create table if not exists "));
    let names = names.map(|rest| rest.split([' ', '(']).next().unwrap_or_default().to_owned());
    names.filter(|name| !name.is_empty()).collect()
}

impl Position {
    fn of(row: &Row) -> Self {
        Self {
            topic: row.get("topic"),
            partition: row.get("partition"),
            applied_up_to: row.get("applied_up_to"),
            replay_at: row.get("replay_at"),
            epoch: row.get("epoch"),
            owner: row.get("owner"),
            claimed_at: row.get("claimed_at"),
            paused: row.get("paused"),
        }
    }
}

impl ViewFacts {
    fn of(row: &Row) -> Self {
        let pause = row.get::<_, Option<String>>("reason").map(|reason| Pause {
            reason,
            by: row.get("paused_by"),
            since: row.get("paused_at"),
        });
        let rebuild = row.get::<_, Option<String>>("generation").map(|generation| Rebuild {
            generation,
            started_at: row.get("started_at"),
            filled: BTreeMap::new(),
        });
        Self {
            name: row.get("view"),
            topics: row.get("topics"),
            table_sql: row.get("table_sql"),
            apply_sql: row.get("apply_sql"),
            replaced: row.get("replaced"),
            pause,
            rebuild,
            tables: Vec::new(),
        }
    }
}

impl TableFacts {
    fn of(row: &Row) -> Self {
        Self {
            name: row.get("name"),
            rows: row.get("rows"),
            bytes: row.get("bytes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::table_names;

    #[test]
    fn the_tables_of_a_view_are_found_in_its_sql() {
        let sql = "-- text\ncreate table if not exists user_view (\n);\ncreate table if not exists user_view_deleted(\n);\ncreate index x on y (z);";
        assert_eq!(table_names(sql), ["user_view", "user_view_deleted"]);
    }
}
