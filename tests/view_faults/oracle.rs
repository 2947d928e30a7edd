//! Knows what the views must be: it computes them from `users` and `posts` by plain SQL, row by row. It also knows what must have been applied: each
//! event of the outboxes once, in the order of its key.

use stack::pipeline::{USERS_DATABASE, VIEWS_DATABASE};
use tokio_postgres::Client;

use super::site::Site;

/// The name of each view, and the query that computes it. Its columns are those of the view.
const VIEWS: [(&str, &str); 5] = [
    ("user_view", include_str!("../../sql/reference/user_view.sql")),
    (
        "department_stats",
        include_str!("../../sql/reference/department_stats.sql"),
    ),
    ("post_stats", include_str!("../../sql/reference/post_stats.sql")),
    ("user_activity", include_str!("../../sql/reference/user_activity.sql")),
    (
        "department_performance",
        include_str!("../../sql/reference/department_performance.sql"),
    ),
];

/// The tables with the true data, as temporary tables of one connection.
const REFERENCE: &str = "
    create temp table reference_user (
        id bigint, name varchar, email varchar, department varchar, status varchar, created_at timestamp, updated_at timestamp,
        version bigint);
    create temp table reference_post (
        id bigint, version bigint, author_id bigint, created_at timestamp, updated_at timestamp);
    create temp table published (topic text, key bigint, version bigint)";

/// All events that can be applied. An event that no view can apply has no version.
const EVENTS: &str =
    "select aggregatetype || '-events' as topic, aggregateid::bigint as key, (payload ->> 'version')::bigint as version
    from outbox where payload ->> 'version' is not null";
const BAD_EVENTS: &str = "select 1 from outbox where payload ->> 'version' is null";

/// Events that were applied again although nobody wanted a replay, or that were applied in the wrong order. There must be none at any moment, also
/// during faults.
pub(crate) const DISORDER: &str = "
    select topic, key, version, earlier from (
        select topic, key, version, lag(version) over (partition by topic, key order by id) as earlier from applied_events
    ) as applied
    where version <= earlier
    limit 5";

/// Which events must have been applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Complete {
    /// Each event. The builder applies one event in a transaction.
    EachEvent,
    /// The latest event of each key. The views do not get earlier events of the same batch.
    LatestOfEachKey,
}

/// What is wrong with the views in `database` now. It is empty if everything is right.
///
/// # Errors
/// A server does not answer, or the views are not there.
pub(crate) async fn differences(site: &Site, database: &str, complete: Complete) -> anyhow::Result<Vec<String>> {
    let client = site.pipeline.postgres()?.connect("postgres", database).await?;
    fill_reference_tables(site, &client).await?;
    let mut found = Vec::new();
    for (view, query) in VIEWS {
        let columns = columns(&client, query).await?;
        let sql = format!(
            "with computed as ({query}), kept as (select {columns} from {view})
             (select '{view}: missing ' || missing::text from (table computed except all table kept) as missing)
             union all
             (select '{view}: wrong ' || wrong::text from (table kept except all table computed) as wrong)
             limit 5"
        );
        found.extend(first_column(&client, &sql).await?);
    }
    let wanted = match complete {
        Complete::EachEvent => "select topic, key, version from published",
        Complete::LatestOfEachKey => "select topic, key, max(version) as version from published group by topic, key",
    };
    let missing = format!(
        "select 'not applied: ' || missing::text from (({wanted}) except select topic, key, version from applied_events) as missing limit 5"
    );
    found.extend(first_column(&client, &missing).await?);
    let unknown = "select 'never published: ' || unknown::text
        from (select topic, key, version from applied_events except table published) as unknown limit 5";
    found.extend(first_column(&client, unknown).await?);
    let letters = site.rows_as_json(USERS_DATABASE, BAD_EVENTS).await?;
    let letters = format!(
        "select 'dead letters: ' || count(*) from view_dead_letters
         having count(*) <> jsonb_array_length('{letters}')"
    );
    found.extend(first_column(&client, &letters).await?);
    Ok(found)
}

/// Events that were applied twice or in the wrong order.
///
/// # Errors
/// As [`differences`].
pub(crate) async fn disorder(site: &Site, database: &str) -> anyhow::Result<Vec<String>> {
    let rows = site.query(database, DISORDER).await?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let [topic, key, version, earlier] = [0, 1, 2, 3].map(|at| row[at].as_deref().unwrap_or_default());
            format!("{topic} {key}: version {version} applied after {earlier}")
        })
        .collect())
}

async fn fill_reference_tables(site: &Site, client: &Client) -> anyhow::Result<()> {
    client.batch_execute(REFERENCE).await?;
    let users = site.rows_as_json(USERS_DATABASE, "select * from users").await?;
    let posts = site.rows_as_json(VIEWS_DATABASE, "select * from posts").await?;
    for (table, json) in [
        ("reference_user", users),
        ("reference_post", posts),
        ("published", site.rows_as_json(USERS_DATABASE, EVENTS).await?),
        ("published", site.rows_as_json(VIEWS_DATABASE, EVENTS).await?),
    ] {
        let sql = format!("insert into {table} select * from jsonb_populate_recordset(null::{table}, $1::text::jsonb)");
        client.execute(&sql, &[&json]).await?;
    }
    Ok(())
}

/// The names of the columns that `query` gives, separated by commas.
async fn columns(client: &Client, query: &str) -> anyhow::Result<String> {
    let statement = client.prepare(query).await?;
    let names: Vec<&str> = statement.columns().iter().map(|column| column.name()).collect();
    Ok(names.join(", "))
}

async fn first_column(client: &Client, sql: &str) -> anyhow::Result<Vec<String>> {
    let rows = client.query(sql, &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
