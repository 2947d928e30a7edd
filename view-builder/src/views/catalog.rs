//! The views that the database keeps, with their SQL: what every builder applies, whatever is in its own `VIEWS`.
//!
//! `VIEWS` is what a process brings along when it starts, and what `rebuild` brings in. A change of the catalog raises the epochs of
//! all positions in its own transaction: a batch either commits before it, by the old catalog, or fails, and its builder reads the
//! new one when it claims its partitions again. So no builder is restarted for a view, and no batch is applied to half of the views.

use tokio_postgres::{Client, Error};

use crate::continuity::start::Lost;
use crate::views::view::{self, View};
use crate::views::{epochs, pauses};

/// The views as a builder keeps them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Those that are applied, in the order of their names: all but the paused ones.
    pub(crate) views: Vec<View>,
    /// The topics of all views, paused ones included: their positions go on.
    pub(crate) topics: Vec<String>,
}

impl Kept {
    pub(crate) async fn load(client: &Client) -> Result<Self, Error> {
        let mut views = load(client).await?;
        let topics = view::topics(&views);
        let paused = pauses::names(client).await?;
        views.retain(|view| !paused.contains(&view.name));
        Ok(Self { views, topics })
    }
}

/// All views that are kept, in the order of their names.
pub(crate) async fn load(client: &Client) -> Result<Vec<View>, Error> {
    let rows = client
        .query(
            "select view, table_sql, apply_sql,
                array(select topic from view_sources where view_sources.view = known.view order by topic) as topics
             from view_definitions as known order by view",
            &[],
        )
        .await?;
    let views = rows.iter().map(|row| {
        View::from_database(
            row.get("view"),
            row.get("table_sql"),
            row.get("apply_sql"),
            row.get("topics"),
        )
    });
    Ok(views.collect())
}

/// Whether a later text has replaced this one: then it is an older version, which must not come back by itself.
pub(crate) async fn was_replaced(client: &Client, view: &View) -> Result<bool, Error> {
    let row = client
        .query_one(
            "select exists (select from view_definitions where view = $1 and md5($2 || $3) = any(replaced))",
            &[&view.name, &view.table.text, &view.apply.text],
        )
        .await?;
    Ok(row.get(0))
}

/// Puts the view's texts into the catalog; builders notice where that changes anything. A topic that is new to the view is applied again
/// from its beginning where `from_the_beginning`, all but partitions that are paused since the topic begins above the position: with no position they
/// would be read again in silence, and only an operator can say that what is left is enough. The catalog must be locked.
pub(crate) async fn put(client: &Client, view: &View, from_the_beginning: bool) -> Result<(), Error> {
    let changed = client
        .execute(
            "insert into view_definitions as known (view, table_sql, apply_sql) values ($1, $2, $3)
             on conflict (view) do update set
                table_sql = excluded.table_sql,
                apply_sql = excluded.apply_sql,
                replaced = array_remove(known.replaced, md5(excluded.table_sql || excluded.apply_sql))
                    || md5(known.table_sql || known.apply_sql)
             where (known.table_sql, known.apply_sql) <> (excluded.table_sql, excluded.apply_sql)",
            &[&view.name, &view.table.text, &view.apply.text],
        )
        .await?;
    let removed = client
        .execute(
            "delete from view_sources where view = $1 and topic <> all($2)",
            &[&view.name, &view.topics],
        )
        .await?;
    let added = client
        .query(
            "insert into view_sources (view, topic) select $1, unnest($2::text[]) on conflict do nothing returning topic",
            &[&view.name, &view.topics],
        )
        .await?;
    let added: Vec<String> = added.iter().map(|row| row.get(0)).collect();
    if from_the_beginning {
        let partitions = client
            .execute(
                "update view_positions set next_offset = null, group_offset = null
                 where topic = any($1) and (paused is null or paused_end is not null or paused_reason is not distinct from $2)",
                &[&added, &Lost::FormerTopic.name()],
            )
            .await?;
        for topic in &added {
            tracing::info!(
                view = view.name,
                topic,
                applied.again = partitions > 0,
                "the view is new to this topic"
            );
        }
    }
    if changed + removed > 0 || !added.is_empty() {
        client.batch_execute(epochs::RENEW).await?;
    }
    Ok(())
}

/// Takes the view out of the catalog, which must be locked.
pub(crate) async fn remove(client: &Client, name: &str) -> Result<(), Error> {
    pauses::end(client, name).await?;
    client
        .execute("delete from view_sources where view = $1", &[&name])
        .await?;
    client
        .execute("delete from view_definitions where view = $1", &[&name])
        .await?;
    client.batch_execute(epochs::RENEW).await
}
