//! The catalog: the views that the database keeps, with their SQL. Every builder applies these views, whatever its own folder `VIEWS` holds.
//!
//! A builder's start and `rebuild` bring the SQL of their folder `VIEWS` into the catalog. A change of the catalog raises the epochs of all
//! positions in its own transaction. So a batch either commits before the change, with the old catalog, or it fails. Then its builder reads the
//! new catalog when it claims its partitions again. So no builder has to restart when a view changes, and no batch is applied to half of the views.

use tokio_postgres::{Client, Error};

use crate::continuity::start::Lost;
use crate::views::view::{self, View};
use crate::views::{epochs, pauses};

/// The part of the catalog that a running builder needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeptViews {
    /// The views that batches are applied to: all but the paused ones. Sorted by name.
    pub(crate) views: Vec<View>,
    /// The topics of all views. Those of paused views are included, since their positions go on.
    pub(crate) topics: Vec<String>,
}

impl KeptViews {
    pub(crate) async fn load(client: &Client) -> Result<Self, Error> {
        let mut views = load_views(client).await?;
        let topics = view::topics(&views);
        let paused = pauses::load_paused_names(client).await?;
        views.retain(|view| !paused.contains(&view.name));
        Ok(Self { views, topics })
    }
}

/// All views of the catalog, sorted by name.
pub(crate) async fn load_views(client: &Client) -> Result<Vec<View>, Error> {
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

/// Whether the catalog once had this SQL and has replaced it. Then it is an older version, which must not come back when a builder with an old
/// folder starts.
pub(crate) async fn was_replaced(client: &Client, view: &View) -> Result<bool, Error> {
    let row = client
        .query_one(
            "select exists (select from view_definitions where view = $1 and md5($2 || $3) = any(replaced))",
            &[&view.name, &view.table.text, &view.apply.text],
        )
        .await?;
    Ok(row.get(0))
}

/// What happens to the topics that are new to a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NewTopics {
    /// Builders apply them again from their beginning, so that the view gets their events.
    ApplyAgain,
    /// The view has their events already.
    AreFilled,
}

/// Puts the view's SQL into the catalog, which must be locked. If this changes anything, the builders read the catalog again.
///
/// [`NewTopics::ApplyAgain`] leaves out partitions that are paused because the topic begins above the position. Without a position they would be
/// read again in silence, and only an operator can say that the events that are left are enough.
pub(crate) async fn put(client: &Client, view: &View, new_topics: NewTopics) -> Result<(), Error> {
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
    if new_topics == NewTopics::ApplyAgain {
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

/// Removes the view from the catalog, which must be locked.
pub(crate) async fn remove(client: &Client, name: &str) -> Result<(), Error> {
    pauses::end_pause(client, name).await?;
    client
        .execute("delete from view_sources where view = $1", &[&name])
        .await?;
    client
        .execute("delete from view_definitions where view = $1", &[&name])
        .await?;
    client.batch_execute(epochs::RENEW).await
}
