//! Positions and views move together, under one holder.

use std::time::Duration;

use view_builder::contract::batch::{Batch, RefusedEvent};

use super::support::{Builder, TestDatabase, assert_applied, is_fenced, new_user, place, shipped_views};

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
    assert_eq!(position(&database).await, "1");
}

#[tokio::test]
async fn a_zombie_changes_nothing_at_the_position_where_its_owner_is_by_now() {
    let (database, mut zombie) = TestDatabase::with_builder().await;
    let mut owner = database.builder(&shipped_views()).await;
    owner.claim(&[0]).await;
    owner.put(new_user(1)).await;
    zombie.starts[0].next_offset = 1;
    assert!(is_fenced(&zombie.apply(0, &[new_user(2)]).await));
    assert_eq!(database.value("select max(user_id) from user_view").await, "1");
    assert_eq!(position(&database).await, "1");
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

/// A copy of a database has its tables under the same oids.
#[tokio::test]
async fn a_builder_of_another_database_is_left_alone_whatever_it_holds() {
    let (database, builder) = TestDatabase::with_builder().await;
    drop(builder);
    let name = database.value("select current_database()").await;
    let mut url = database.url.clone();
    url.set_path("postgres");
    let (admin, connection) = tokio_postgres::connect(url.as_str(), tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    let end_sessions = format!(
        "select pg_terminate_backend(pid, 10000) from pg_stat_activity where datname = '{name}' and backend_type = 'client backend'"
    );
    admin.batch_execute(&end_sessions).await.unwrap();
    admin
        .batch_execute(&format!("create database {name}_copy template {name}"))
        .await
        .unwrap();
    let [holds, elsewhere] = [name.clone(), format!("{name}_copy")].map(|name| {
        let mut url = database.url.clone();
        url.set_path(&name);
        async move {
            let (client, connection) = tokio_postgres::connect(url.as_str(), tokio_postgres::NoTls)
                .await
                .unwrap();
            tokio::spawn(connection);
            let hold = "begin; update view_positions set owner = 'frozen' where partition = 0";
            client.batch_execute(hold).await.unwrap();
            client
        }
    });
    let (holds, elsewhere) = tokio::join!(holds, elsewhere);
    let mut owner = database.builder(&shipped_views()).await;
    owner.claim(&[0]).await;
    assert!(holds.batch_execute("commit").await.is_err(), "it held the position");
    elsewhere.batch_execute("commit").await.expect("it goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_connections_lose_and_repeat_nothing() {
    let (database, mut builder) = TestDatabase::with_builder().await;
    let killer = database.connect().await;
    let kills = tokio::spawn(async move {
        for _ in 0..30 {
            tokio::time::sleep(Duration::from_millis(23)).await;
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
    assert_eq!(
        applied.refused,
        [RefusedEvent {
            place: place(0),
            offset: 4,
            reason: "refused by Postgres: SQLSTATE 23514, table user_view, constraint no_five".to_owned(),
        }]
    );
    assert_eq!(
        database
            .value("select string_agg(user_id::text, ' ' order by user_id) from user_view")
            .await,
        "1 2 3 4 20"
    );
    assert_eq!(position(&database).await, "4");
}

/// A builder whose view has the events 0 to 5 of partition 0.
async fn builder_with_six_events() -> (TestDatabase, Builder) {
    let (database, mut builder) = TestDatabase::with_builder().await;
    for id in 1..=6 {
        builder.put(new_user(id)).await;
    }
    (database, builder)
}

/// Where a partition begins, and from where on its events are new.
#[derive(Debug, PartialEq, Eq)]
struct Begins {
    at: i64,
    new_from: i64,
}

impl Begins {
    fn of(builder: &Builder) -> Self {
        Self {
            at: builder.starts[0].next_offset,
            new_from: builder.starts[0].new_from,
        }
    }
}

#[tokio::test]
async fn whoever_sets_a_position_back_it_is_known_what_was_applied_before() {
    let (database, mut builder) = builder_with_six_events().await;
    for (set_to, at) in [("4", 4), ("2", 2), ("null", 0), ("1", 1)] {
        let set = format!("update view_positions set next_offset = {set_to} where partition = 0");
        database.sql.batch_execute(&set).await.unwrap();
        builder.claim(&[0]).await;
        assert_eq!(Begins::of(&builder), Begins { at, new_from: 6 });
        builder.put(new_user(7)).await;
    }
}

#[tokio::test]
async fn a_replay_that_has_passed_what_was_applied_before_is_over() {
    let (database, mut builder) = builder_with_six_events().await;
    let set = "update view_positions set next_offset = 1 where partition = 0";
    database.sql.batch_execute(set).await.unwrap();
    builder.claim(&[0]).await;
    for id in 7..=16 {
        builder.put(new_user(id)).await;
    }
    builder.claim(&[0]).await;
    assert_eq!(Begins::of(&builder), Begins { at: 11, new_from: 11 });
}
