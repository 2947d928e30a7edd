//! Positions and views move together, under one holder.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::support::{TestDatabase, assert_applied, is_fenced, place, shipped_views, user};
use view_builder::Failure;
use view_builder::builder::beginning::Beginning;
use view_builder::builder::claim::Start;
use view_builder::contract::batch::Batch;

fn new_user(id: i64) -> String {
    user(id, 1, "n", Some("a"), "ACTIVE")
}

async fn position(database: &TestDatabase) -> String {
    database
        .value("select next_offset from view_positions where partition = 0")
        .await
}

#[tokio::test]
async fn a_zombie_with_an_old_epoch_changes_nothing() {
    let (database, mut zombie) = TestDatabase::with_builder().await;
    zombie.put(new_user(1)).await;
    let mut owner = database.builder(&shipped_views()).await;
    owner.claim(&[0]).await;
    let applied = zombie.apply(0, &[new_user(2)]).await;
    assert!(is_fenced(&applied) && applied.reached.is_empty(), "{applied:?}");
    assert_eq!(database.value("select count(*) from user_view").await, "1");
    owner.put(new_user(2)).await;
    assert!(is_fenced(&zombie.apply(0, &[new_user(3)]).await));
    assert_eq!(
        (
            position(&database).await,
            database.value("select max(user_id) from user_view").await
        ),
        ("2".into(), "2".into())
    );
}

#[tokio::test]
async fn one_lost_partition_gives_up_the_whole_batch() {
    let (database, mut zombie) = TestDatabase::with_builder().await;
    let mut owner = database.builder(&shipped_views()).await;
    owner.claim(&[1]).await;
    let mut parts = zombie.batch(0, &[new_user(1)]).parts;
    parts.extend(zombie.batch(1, &[new_user(2)]).parts);
    assert!(is_fenced(&zombie.apply_batch(Batch { parts }).await));
    assert_eq!(database.value("select count(*) from user_view").await, "0");
    assert_eq!(position(&database).await, "0");
}

#[tokio::test]
async fn the_same_batch_twice_is_applied_once() {
    let (database, mut builder) = TestDatabase::with_builder().await;
    let batch = builder.batch(0, &[new_user(1)]);
    assert_applied(&builder.apply_batch(batch.clone()).await);
    let processed = database.value("select last_processed_at from user_view").await;
    assert!(is_fenced(&builder.apply_batch(batch).await));
    assert_eq!(
        database.value("select last_processed_at from user_view").await,
        processed
    );
}

#[tokio::test]
async fn a_frozen_builder_does_not_hold_its_partition_for_ever() {
    let (database, _) = TestDatabase::with_builder().await;
    let frozen = database.connect().await;
    frozen
        .batch_execute("begin; update view_positions set next_offset = 99 where partition = 0")
        .await
        .unwrap();
    let mut owner = database.builder(&shipped_views()).await;
    owner.claim(&[0]).await;
    assert_eq!(owner.starts[0].next_offset, 0);
    owner.put(new_user(1)).await;
    assert!(frozen.batch_execute("commit").await.is_err());
    assert_eq!(position(&database).await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_connections_lose_and_repeat_nothing() {
    let (database, mut builder) = TestDatabase::with_builder().await;
    let killer = database.connect().await;
    let kills = tokio::spawn(async move {
        for _ in 0..30 {
            tokio::time::sleep(std::time::Duration::from_millis(23)).await;
            let kill = "select pg_terminate_backend(pid) from pg_stat_activity
                 where application_name = 'view-builder' and datname = current_database()";
            killer.execute(kill, &[]).await.unwrap();
        }
    });
    let mut id = 0;
    while !kills.is_finished() {
        id += 1;
        builder.put(new_user(id)).await;
    }
    assert_eq!(database.value("select count(*) from user_view").await, id.to_string());
    assert_eq!(position(&database).await, id.to_string());
}

#[tokio::test]
async fn an_event_that_postgres_refuses_is_found_and_all_before_and_beside_it_is_applied() {
    let (database, mut builder) = TestDatabase::with_builder().await;
    database
        .sql
        .batch_execute("alter table user_view add constraint no_five check (user_id <> 5)")
        .await
        .unwrap();
    let mut parts = builder.batch(0, &(1..=9).map(new_user).collect::<Vec<_>>()).parts;
    parts.extend(builder.batch(1, &[new_user(20)]).parts);
    let applied = builder.apply_batch(Batch { parts }).await;
    let [refused] = &applied.refused[..] else {
        panic!("{applied:?}");
    };
    assert_eq!((&refused.place, refused.offset), (&place(0), 4));
    assert_eq!(
        refused.reason,
        "refused by Postgres: SQLSTATE 23514, table user_view, constraint no_five"
    );
    assert_eq!(
        database
            .value("select string_agg(user_id::text, ' ' order by user_id) from user_view")
            .await,
        "1 2 3 4 20"
    );
    assert_eq!(position(&database).await, "4");
}

#[tokio::test]
async fn a_new_view_gets_all_events_and_a_running_builder_takes_it_up() {
    let (database, mut old) = TestDatabase::with_builder().await;
    old.put(new_user(1)).await;
    let directory = views_and(
        "names",
        "create table if not exists names (id bigint primary key)",
        NAMES,
    );
    let mut new = database.builder(&directory.0).await;
    assert!(is_fenced(&old.apply(0, &[new_user(2)]).await));
    old.claim(&[0]).await;
    assert_eq!(old.starts[0].next_offset, 0, "the topic begins again");
    old.apply(0, &[new_user(1), new_user(2)]).await;
    assert_eq!(database.value("select count(*) from names").await, "2");
    new.claim(&[0]).await;
    assert_eq!(new.starts[0].next_offset, 2, "a view that is known keeps its position");
}

#[tokio::test]
async fn a_view_that_another_builder_brought_is_kept_by_one_without_its_folder() {
    let database = TestDatabase::create().await;
    let directory = views_and(
        "names",
        "create table if not exists names (id bigint primary key)",
        NAMES,
    );
    database.builder(&directory.0).await;
    let mut without = database.builder(&shipped_views()).await;
    without.claim(&[0]).await;
    without.put(new_user(1)).await;
    assert_eq!(database.value("select count(*) from names").await, "1");
}

#[tokio::test]
async fn changed_sql_is_taken_up_and_an_older_text_does_not_come_back() {
    let database = TestDatabase::create().await;
    let table = "create table if not exists names (id bigint primary key)";
    let first = views_and("names", table, NAMES);
    let mut builder = database.builder(&first.0).await;
    builder.claim(&[0]).await;
    builder.put(new_user(1)).await;

    let second = views_and("names", table, &NAMES.replace("unnest($2)", "-unnest($2)"));
    database.builder(&second.0).await;
    assert!(is_fenced(&builder.apply(0, &[new_user(2)]).await));
    builder.claim(&[0]).await;
    assert_eq!(builder.starts[0].next_offset, 1, "no replay: the view has its rows");
    builder.put(new_user(2)).await;
    let ids = "select string_agg(id::text, ' ' order by id) from names";
    assert_eq!(database.value(ids).await, "-2 1");

    // An older builder that starts again.
    let mut old = database.builder(&first.0).await;
    builder.put(new_user(3)).await;
    old.claim(&[0]).await;
    old.put(new_user(4)).await;
    assert_eq!(database.value(ids).await, "-4 -3 -2 1");
}

#[tokio::test]
async fn wrong_sql_is_refused_with_file_line_and_postgres_message() {
    let database = TestDatabase::create().await;
    for (table, apply, expected) in [
        (
            "create table if not exists names (id bigint);\nselect wrong;",
            NAMES,
            "names/table.sql:2: column \"wrong\" does not exist",
        ),
        (
            "select 1",
            NAMES,
            "names/apply.sql:3: relation \"names\" does not exist",
        ),
        (
            "select 1",
            "-- Names.\n-- topics: user-events\nselect 1; select 2",
            "names/apply.sql: cannot insert multiple commands into a prepared statement",
        ),
        (
            "select 1",
            "-- Names.\n-- topics: user-events\nselect $6::text",
            "names/apply.sql: takes 6 parameters: there are only $1 to $5",
        ),
    ] {
        let directory = views_and("names", table, apply);
        let refused = database.database(&directory.0).install().await.unwrap_err();
        assert!(matches!(refused, Failure::View(_)), "{refused:?}");
        assert!(refused.to_string().ends_with(expected), "{refused}");
    }
    assert_eq!(
        database
            .value("select count(*) from pg_tables where schemaname = 'public'")
            .await,
        "0",
        "nothing is left behind"
    );
}

const NAMES: &str = "-- Names.\n-- topics: user-events\ninsert into names select unnest($2) on conflict do nothing";

/// A directory of views that is removed in the end.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The shipped views and one more.
fn views_and(name: &str, table: &str, apply: &str) -> Directory {
    static COUNTER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = COUNTER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let directory = std::env::temp_dir().join(format!("view-builder-{}-{number}", std::process::id()));
    let write = |view: &str, file: &str, text: &str| {
        fs::create_dir_all(directory.join(view)).unwrap();
        fs::write(directory.join(view).join(file), text).unwrap();
    };
    let shipped = |file: &str| fs::read_to_string(Path::new(&shipped_views()).join("user_view").join(file)).unwrap();
    write("user_view", "table.sql", &shipped("table.sql"));
    write("user_view", "apply.sql", &shipped("apply.sql"));
    write(name, "table.sql", table);
    write(name, "apply.sql", apply);
    Directory(directory)
}

#[tokio::test]
async fn whoever_sets_a_position_back_it_is_known_what_was_applied_before() {
    let (database, mut builder) = TestDatabase::with_builder().await;
    for id in 1..=6 {
        builder.put(new_user(id)).await;
    }
    let mut new_from = Vec::new();
    for back in ["4", "2", "null", "1"] {
        let set = format!("update view_positions set next_offset = {back} where partition = 0");
        database.sql.batch_execute(&set).await.unwrap();
        builder.claim(&[0]).await;
        new_from.push((builder.starts[0].next_offset, builder.starts[0].new_from));
        builder.put(new_user(7)).await;
    }
    assert_eq!(new_from, [(4, 6), (2, 6), (0, 6), (1, 6)]);
    for id in 8..=16 {
        builder.put(new_user(id)).await;
    }
    builder.claim(&[0]).await;
    assert_eq!((builder.starts[0].next_offset, builder.starts[0].new_from), (11, 11));
}

/// What the position of partition 0 knows of its topic: its offsets, ids, how often it has begun anew, letters of this topic and of former ones.
async fn topic_of(database: &TestDatabase) -> String {
    let sql = "select concat_ws(' ', next_offset, coalesce(highest_offset, -1), coalesce(topic_id, '-'), former_topic_ids, breaks,
        letters_version, (select count(*) from only view_dead_letters), (select count(*) from view_former_dead_letters))
        from view_positions where partition = 0";
    database.value(sql).await
}

#[tokio::test]
async fn a_topic_that_was_made_anew_begins_anew_for_its_holder_alone_and_its_letters_are_put_aside() {
    let (database, mut zombie) = TestDatabase::with_builder().await;
    for id in 1..=6 {
        zombie.put(new_user(id)).await;
    }
    let topic = place(0).topic;
    let letter = format!(
        "insert into view_dead_letters (topic, partition, record_offset, key, value, headers) values ('{topic}', 0, 3, '1', '', '[]');
         update view_positions set topic_id = 'former'"
    );
    database.sql.batch_execute(&letter).await.unwrap();
    let mut owner = database.builder(&shipped_views()).await;
    owner.claim(&[0]).await;
    let anew = |start: &Start| Beginning {
        ended_at: None,
        start: Start {
            next_offset: 0,
            ..start.clone()
        },
        topic_id: Some("new".to_owned()),
        is_anew: true,
        notice: None,
    };
    let before = topic_of(&database).await;
    assert_eq!(before, "6 -1 former {} 0 0 1 0");
    zombie.database.begin(&[anew(&zombie.starts[0])]).await;
    assert_eq!(topic_of(&database).await, before, "somebody else has claimed it");
    owner.database.begin(&[anew(&owner.starts[0])]).await;
    assert_eq!(topic_of(&database).await, "0 -1 new {former} 1 1 0 1");
    // The same offset has a letter of its own in the new topic.
    let again = letter.split_once(';').unwrap().0;
    database.sql.batch_execute(again).await.unwrap();
    assert_eq!(database.value("select count(*) from view_dead_letters").await, "1");
}

#[tokio::test]
async fn a_start_takes_letters_of_former_topics_out_of_the_sight_of_older_builders() {
    let (database, _) = TestDatabase::with_builder().await;
    // As earlier versions have made it, with a letter of each kind.
    let earlier = "
        drop table view_former_dead_letters;
        create table view_former_dead_letters (primary key (id)) inherits (view_dead_letters);
        insert into view_dead_letters (topic, partition, record_offset, key, value, headers) values ('user-events', 0, 3, '1', '', '[]');
        select put_dead_letters_aside('user-events', 0, 0, 'former');
        insert into view_dead_letters (topic, partition, record_offset, key, value, headers) values ('user-events', 0, 3, '2', '', '[]')";
    database.sql.batch_execute(earlier).await.unwrap();
    let letters = "select string_agg(convert_from(key, 'UTF8'), ' ' order by key) from view_dead_letters";
    assert_eq!(database.value(letters).await, "1 2");
    database.database(&shipped_views()).install().await.unwrap();
    assert_eq!(database.value(letters).await, "2");
    let former = "select string_agg(convert_from(key, 'UTF8') || ' ' || former_topic_id, ', ' order by key) from view_former_dead_letters";
    assert_eq!(database.value(former).await, "1 former");
    // An older builder starts beside it, and puts the next one aside.
    let older = "
        create table if not exists view_former_dead_letters (primary key (id)) inherits (view_dead_letters);
        select put_dead_letters_aside('user-events', 0, 0, 'later')";
    database.sql.batch_execute(older).await.unwrap();
    assert_eq!(database.value(former).await, "1 former, 2 later");
    assert_eq!(database.value("select count(*) from view_dead_letters").await, "0");
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
