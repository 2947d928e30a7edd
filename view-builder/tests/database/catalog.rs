//! Which views are kept, and by which SQL: builders that start bring views, and builders that run take them up.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use view_builder::Failure;

use super::support::{TestDatabase, is_fenced, new_user, shipped_views};

const NAMES_TABLE: &str = "create table if not exists names (id bigint primary key)";
const NAMES: &str = "-- Names.\n-- topics: user-events\ninsert into names select unnest($2) on conflict do nothing";

/// The ids in the table `names`.
const IDS: &str = "select string_agg(id::text, ' ' order by id) from names";

/// A directory of views that is removed in the end.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Directory {
    /// The shipped `user_view`, and a view `names` with this SQL.
    fn with_names(table: &str, apply: &str) -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let directory = Self(std::env::temp_dir().join(format!("view-builder-{}-{number}", std::process::id())));
        let shipped = |file: &str| fs::read_to_string(shipped_views().join("user_view").join(file)).unwrap();
        directory.write("user_view", "table.sql", &shipped("table.sql"));
        directory.write("user_view", "apply.sql", &shipped("apply.sql"));
        directory.write("names", "table.sql", table);
        directory.write("names", "apply.sql", apply);
        directory
    }

    fn write(&self, view: &str, file: &str, text: &str) {
        fs::create_dir_all(self.0.join(view)).unwrap();
        fs::write(self.0.join(view).join(file), text).unwrap();
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

#[tokio::test]
async fn a_view_that_is_new_gets_all_events_from_a_builder_that_runs() {
    let (database, mut running) = TestDatabase::with_builder().await;
    running.put(new_user(1)).await;
    let views = Directory::with_names(NAMES_TABLE, NAMES);
    database.builder(views.path()).await;
    assert!(is_fenced(&running.apply(0, &[new_user(2)]).await));
    running.claim(&[0]).await;
    assert_eq!(running.starts[0].next_offset, 0, "the topic begins again");
    running.apply(0, &[new_user(1), new_user(2)]).await;
    assert_eq!(database.value(IDS).await, "1 2");
}

#[tokio::test]
async fn a_view_that_is_known_keeps_its_position() {
    let database = TestDatabase::create().await;
    let views = Directory::with_names(NAMES_TABLE, NAMES);
    let mut first = database.builder(views.path()).await;
    first.claim(&[0]).await;
    first.put(new_user(1)).await;
    let mut second = database.builder(views.path()).await;
    second.claim(&[0]).await;
    assert_eq!(second.starts[0].next_offset, 1);
}

#[tokio::test]
async fn a_view_that_another_builder_brought_is_kept_by_one_without_its_folder() {
    let database = TestDatabase::create().await;
    let views = Directory::with_names(NAMES_TABLE, NAMES);
    database.builder(views.path()).await;
    let mut without = database.builder(&shipped_views()).await;
    without.claim(&[0]).await;
    without.put(new_user(1)).await;
    assert_eq!(database.value(IDS).await, "1");
}

#[tokio::test]
async fn changed_sql_is_taken_up_by_a_builder_that_runs_and_nothing_is_replayed() {
    let database = TestDatabase::create().await;
    let views = Directory::with_names(NAMES_TABLE, NAMES);
    let mut running = database.builder(views.path()).await;
    running.claim(&[0]).await;
    running.put(new_user(1)).await;

    let changed = Directory::with_names(NAMES_TABLE, &NAMES.replace("unnest($2)", "-unnest($2)"));
    database.builder(changed.path()).await;
    assert!(is_fenced(&running.apply(0, &[new_user(2)]).await));
    running.claim(&[0]).await;
    assert_eq!(running.starts[0].next_offset, 1, "the view has its rows");
    running.put(new_user(2)).await;
    assert_eq!(database.value(IDS).await, "-2 1");
}

#[tokio::test]
async fn sql_that_was_replaced_does_not_come_back_with_an_older_builder() {
    let database = TestDatabase::create().await;
    let older = Directory::with_names(NAMES_TABLE, NAMES);
    database.builder(older.path()).await;
    let newer = Directory::with_names(NAMES_TABLE, &NAMES.replace("unnest($2)", "-unnest($2)"));
    let mut running = database.builder(newer.path()).await;
    running.claim(&[0]).await;

    let mut started_again = database.builder(older.path()).await;
    running.put(new_user(1)).await;
    started_again.claim(&[0]).await;
    started_again.put(new_user(2)).await;
    assert_eq!(database.value(IDS).await, "-2 -1");
}

/// Installs a view that Postgres refuses, and expects this message and nothing else.
async fn assert_refused(table: &str, apply: &str, expected: &str) {
    let database = TestDatabase::create().await;
    let views = Directory::with_names(table, apply);
    let refused = database.database(views.path()).install().await.unwrap_err();
    assert!(matches!(refused, Failure::View(_)), "{refused:?}");
    assert!(refused.to_string().ends_with(expected), "{refused}");
    let tables = "select count(*) from pg_tables where schemaname = 'public'";
    assert_eq!(database.value(tables).await, "0", "nothing is left behind");
}

#[tokio::test]
async fn a_table_that_postgres_refuses_is_told_by_its_line() {
    assert_refused(
        "create table if not exists names (id bigint);\nselect wrong;",
        NAMES,
        "names/table.sql:2: column \"wrong\" does not exist",
    )
    .await;
}

#[tokio::test]
async fn a_statement_that_postgres_refuses_is_told_by_its_line() {
    assert_refused(
        "select 1",
        NAMES,
        "names/apply.sql:3: relation \"names\" does not exist",
    )
    .await;
}

#[tokio::test]
async fn two_statements_in_apply_sql_are_refused() {
    assert_refused(
        "select 1",
        "-- Names.\n-- topics: user-events\nselect 1; select 2",
        "names/apply.sql: cannot insert multiple commands into a prepared statement",
    )
    .await;
}

#[tokio::test]
async fn a_parameter_too_many_is_refused() {
    assert_refused(
        "select 1",
        "-- Names.\n-- topics: user-events\nselect $6::text",
        "names/apply.sql: takes 6 parameters: there are only $1 to $5",
    )
    .await;
}

#[tokio::test]
async fn a_start_waits_for_no_builder_that_is_at_work() {
    let (database, _) = TestDatabase::with_builder().await;
    let at_work = database.connect().await;
    let tables = "begin; lock view_positions, view_dead_letters, view_former_dead_letters, view_notices, view_rebuilds, view_rebuild_positions
        in row exclusive mode";
    at_work.batch_execute(tables).await.unwrap();
    let mut second = database.database(&shipped_views());
    let installed = tokio::time::timeout(Duration::from_secs(10), second.install()).await;
    installed.expect("it waits for a lock").unwrap();
}
