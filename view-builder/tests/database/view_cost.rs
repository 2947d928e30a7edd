//! What a batch costs follows the batch, not the table: the same batch touches as many blocks in a view ten times larger.

use std::collections::BTreeMap;
use std::fs;

use super::support::{TestDatabase, shipped_views};

const BATCH_EVENTS: i64 = 1_000;
const SMALL_ROWS: i64 = 10_000;
const LARGE_ROWS: i64 = 100_000;
/// A table with more rows must not be read as a whole.
const BIG_TABLE_ROWS: i64 = 1_000;
const GROWTH_MAX: f64 = 1.2;
/// Index probes of each event that may meet one more level of their tree.
const PROBES_MAX: i64 = 2;
/// How far ANALYZE samples the columns of the tables that grow; null is the server's default.
const STATISTICS_TARGETS: &str = "select format('%s.%s', attrelid::regclass, attname), nullif(attstattarget, -1)
    from pg_attribute
    where attrelid in ('user_view'::regclass, 'user_view_deleted'::regclass, 'activity'::regclass, 'activity_post'::regclass)
        and attnum > 0 and not attisdropped
    order by 1";

/// Names of the shipped views that read the topic, in the order in which a batch is applied.
fn views(posts: bool) -> Vec<String> {
    let topic = if posts { events::POST_TOPIC } else { events::USER_TOPIC };
    let views = view_builder::views::view::load_all(&shipped_views()).unwrap();
    let reading = views
        .into_iter()
        .filter(|view| view.topics.iter().any(|read| read == topic));
    reading.map(|view| view.name).collect()
}

/// The view's own statement, with its arrays taken from the table `batch`.
fn apply(view: &str) -> String {
    let text = fs::read_to_string(shipped_views().join(view).join("apply.sql")).unwrap();
    (1..=5).fold(text, |text, number| {
        text.replace(&format!("${number}"), &format!("(select a{number} from batch)"))
    })
}

/// `batch` with users or posts of these ids.
fn batch(posts: bool, ids: &str, version: i64) -> String {
    let (topic, entity) = if posts {
        // Each of these versions moves the post to another author, and makes it the first or the last one.
        (
            "post-events",
            format!(
                "jsonb_build_object('id', n, 'title', 't', 'content', 'c', 'authorId', 1 + (n + {version}) % {SMALL_ROWS},
                    'createdAt', '2025-01-01T00:00:00'::timestamp + (n % 1000 - 1000 * ({version} % 2)) * interval '1 minute',
                    'updatedAt', '2025-01-01T00:00:00'::timestamp + (n % 1000) * interval '1 minute')"
            ),
        )
    } else {
        (
            "user-events",
            format!(
                "jsonb_build_object('id', n, 'name', 'n' || n, 'email', 'e' || n, 'department', '부서' || (n + {version}) % 8,
                    'status', case when n % 3 = 0 then 'INACTIVE' else 'ACTIVE' end,
                    'createdAt', '2025-01-01T00:00:00', 'updatedAt', '2025-01-02T00:00:00')"
            ),
        )
    };
    // Every tenth event of a change is a deletion.
    let deleted = if version == 1 { "false" } else { "n % 10 = 0" };
    format!(
        "truncate batch;
         insert into batch
         select array_agg('{topic}'::text), array_agg(n), array_agg({version}::bigint), array_agg(''::text),
            array_agg(case when {deleted} then null else {entity} end order by n)
         from (select n from {ids} as ids(n) order by n) as ordered"
    )
}

/// A database with all views, still empty.
async fn empty() -> TestDatabase {
    let database = TestDatabase::create().await;
    database.builder(&shipped_views()).await;
    database
        .sql
        .batch_execute("create table batch (a1 text[], a2 bigint[], a3 bigint[], a4 text[], a5 jsonb[])")
        .await
        .unwrap();
    database
}

/// Applies users and posts with the ids `first` to `last` to all views.
async fn fill(database: &TestDatabase, first: i64, last: i64) {
    for posts in [false, true] {
        let ids = format!("generate_series({first}::bigint, {last}::bigint)");
        database.sql.batch_execute(&batch(posts, &ids, 1)).await.unwrap();
        for view in views(posts) {
            database.sql.batch_execute(&apply(&view)).await.unwrap();
        }
    }
}

/// A database with all views, filled with `rows` users and posts, and statistics up to date.
async fn filled(rows: i64) -> TestDatabase {
    let database = empty().await;
    for first in (1..=rows).step_by(10_000) {
        fill(&database, first, first + 9_999).await;
    }
    database.sql.batch_execute("vacuum analyze").await.unwrap();
    database
}

/// What vacuum does meanwhile would be counted as well, and its statistics would have plans made anew.
async fn without_autovacuum(database: &TestDatabase) {
    let tables = database
        .rows("select relname from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace")
        .await;
    for table in tables {
        let off = format!("alter table {} set (autovacuum_enabled = off)", table[0]);
        database.sql.batch_execute(&off).await.unwrap();
    }
}

#[derive(Debug)]
struct Cost {
    blocks: i64,
    sequential_scans: Vec<String>,
}

async fn counters(database: &TestDatabase) -> (i64, BTreeMap<String, i64>) {
    let statistics = database.connect().await;
    let blocks = statistics
        .query_one(
            "select sum(heap_blks_read + heap_blks_hit + coalesce(idx_blks_read + idx_blks_hit, 0))::bigint
             from pg_statio_user_tables where relname <> 'batch'",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    let scans = statistics
        .query(
            "select relname::text, seq_scan from pg_stat_user_tables where n_live_tup > $1::bigint",
            &[&BIG_TABLE_ROWS],
        )
        .await
        .unwrap();
    (blocks, scans.iter().map(|row| (row.get(0), row.get(1))).collect())
}

async fn cost(database: &TestDatabase, view: &str) -> Cost {
    let flush = "select pg_stat_force_next_flush()";
    database.sql.batch_execute(flush).await.unwrap();
    let before = counters(database).await;
    database.sql.batch_execute(&apply(view)).await.unwrap();
    database.sql.batch_execute(flush).await.unwrap();
    let after = counters(database).await;
    Cost {
        blocks: after.0 - before.0,
        sequential_scans: after
            .1
            .into_iter()
            .filter(|(table, scans)| before.1.get(table) != Some(scans))
            .map(|(table, _)| table)
            .collect(),
    }
}

#[tokio::test]
async fn a_batch_costs_the_same_in_a_view_ten_times_larger() {
    let (small, large) = (filled(SMALL_ROWS).await, filled(LARGE_ROWS).await);
    for database in [&small, &large] {
        without_autovacuum(database).await;
    }
    for posts in [false, true] {
        for version in 2..=3 {
            // The same batch for both: ids all over the small one, and as many that are new to both.
            let step = 2 * SMALL_ROWS / BATCH_EVENTS;
            let half = BATCH_EVENTS / 2;
            let ids = format!(
                "(select generate_series(1::bigint, {SMALL_ROWS}, {step})
                  union all select {version} * 10000000::bigint + generate_series(1, {half}))"
            );
            for database in [&small, &large] {
                database.sql.batch_execute(&batch(posts, &ids, version)).await.unwrap();
            }
            for view in views(posts) {
                let (in_small, in_large) = (cost(&small, &view).await, cost(&large, &view).await);
                let what = format!("{view}, posts: {posts}, version {version}: {in_small:?} and {in_large:?}");
                println!("{what}");
                assert!(in_large.sequential_scans.is_empty(), "{what}");
                let most = GROWTH_MAX * in_small.blocks as f64 + (PROBES_MAX * BATCH_EVENTS) as f64;
                assert!(in_large.blocks as f64 <= most, "{what}");
            }
        }
    }
}

/// Statistics of a small table make a plan that reads it as a whole the cheapest one. A session keeps its plans until there are
/// new statistics, and a view can grow by millions of rows before.
#[tokio::test]
async fn a_session_that_began_with_small_tables_does_not_read_them_whole_once_they_are_large() {
    let database = empty().await;
    without_autovacuum(&database).await;
    fill(&database, 1, 100).await;
    database.sql.batch_execute("analyze").await.unwrap();
    for first in (101..=SMALL_ROWS).step_by(900) {
        fill(&database, first, first + 899).await;
    }
    for posts in [false, true] {
        let ids = "generate_series(1::bigint, 20::bigint)";
        database.sql.batch_execute(&batch(posts, ids, 2)).await.unwrap();
        for view in views(posts) {
            let cost = cost(&database, &view).await;
            assert!(cost.sequential_scans.is_empty(), "{view}, posts: {posts}: {cost:?}");
        }
    }
}

#[tokio::test]
async fn analyze_takes_a_small_sample_unless_somebody_wants_more() {
    let (database, _builder) = TestDatabase::with_builder().await;
    for column in database.rows(STATISTICS_TARGETS).await {
        assert_eq!(column[1], "10", "{}", column[0]);
    }
    database
        .sql
        .batch_execute("alter table user_view alter department set statistics 500")
        .await
        .unwrap();
    database.builder(&shipped_views()).await;
    let mut targets = database.rows(STATISTICS_TARGETS).await;
    targets.retain(|column| column[1] != "10");
    assert_eq!(targets, [["user_view.department", "500"]]);
}
