//! What each kind of event makes of `user_view`.

use super::support::{TestDatabase, deletion, user};

/// Name and version of user 7, or nothing.
async fn seven(database: &TestDatabase) -> Vec<Vec<String>> {
    database
        .rows("select name, version from user_view where user_id = 7")
        .await
}

#[tokio::test]
async fn a_row_says_what_the_event_says_in_the_replaced_systems_columns() {
    let (database, mut builder) = TestDatabase::with_builder().await;
    let mut event: serde_json::Value =
        serde_json::from_str(&user(7, 3, "홍길동 😀\n\"q\"", None, "suspended")).unwrap();
    event["user"]["createdAt"] = "2025-01-01T00:00:00.123456789".into();
    event["user"]["updatedAt"] = "2025-01-01T00:00:00.9999999".into();
    builder.put(event.to_string()).await;
    assert_eq!(
        database
            .rows("select user_id, name, email, department, status, created_at, updated_at, version from user_view")
            .await,
        [[
            "7",
            "홍길동 😀\n\"q\"",
            "e7@x",
            "∅",
            "suspended",
            "2025-01-01 00:00:00.123457",
            "2025-01-01 00:00:01",
            "3"
        ]]
    );
    assert_eq!(
        database
            .value(
                "select string_agg(column_name || ' ' || data_type || coalesce('(' || character_maximum_length || ')', '')
                    || case is_nullable when 'NO' then ' not null' else '' end, ', ' order by ordinal_position)
                 from information_schema.columns where table_name = 'user_view'"
            )
            .await,
        "user_id bigint not null, name character varying(255) not null, email character varying(255) not null, \
         department character varying(255), status character varying(50) not null, created_at timestamp without time zone not null, \
         updated_at timestamp without time zone not null, version bigint not null, last_processed_at timestamp without time zone not null"
    );
    for index in ["department", "email", "last_processed", "name", "status"] {
        let name = format!("select count(*) from pg_indexes where indexname = 'idx_user_view_{index}'");
        assert_eq!(database.value(&name).await, "1", "{index}");
    }
}

#[tokio::test]
async fn dates_with_a_zone_become_utc() {
    let (database, mut builder) = TestDatabase::with_builder().await;
    let event = user(7, 1, "n", None, "ACTIVE");
    let event = event.replacen("2025-01-01T00:00:00\"", "2025-01-01T00:00:00+09:00\"", 1);
    let at = event.rfind("2025-01-01T00:00:00\"").unwrap();
    let event = format!("{}2025-01-01T00:00:00.5Z{}", &event[..at], &event[at + 19..]);
    builder.put(event).await;
    let dates = database.rows("select created_at, updated_at from user_view").await;
    let known = ["2024-12-31 15:00:00", "2025-01-01 00:00:00", "2025-01-01 00:00:00.5"];
    assert!(dates[0].iter().all(|date| known.contains(&date.as_str())), "{dates:?}");
}

#[tokio::test]
async fn the_time_of_processing_is_utc_whatever_the_servers_zone() {
    let (database, mut builder) = TestDatabase::with_builder().await;
    builder.put(user(7, 1, "n", None, "ACTIVE")).await;
    database
        .sql
        .batch_execute(
            "set time zone 'Asia/Seoul';
             insert into user_view (user_id, name, email, status, created_at, updated_at) values (8, '', '', '', now(), now())",
        )
        .await
        .unwrap();
    let recent = "select bool_and(last_processed_at between (now() at time zone 'UTC') - interval '1 minute' and (now() at time zone 'UTC') + interval '1 minute') from user_view";
    assert_eq!(database.value(recent).await, "t");
}

#[tokio::test]
async fn an_update_without_a_create_before_makes_the_row() {
    let (database, mut builder) = TestDatabase::with_builder().await;
    builder.put(user(7, 4, "four", None, "ACTIVE")).await;
    assert_eq!(seven(&database).await, [["four", "4"]]);
}

#[tokio::test]
async fn an_older_event_changes_nothing_and_the_rows_own_is_applied_again() {
    let (database, mut builder) = TestDatabase::with_builder().await;
    builder.put(user(7, 7, "seven", None, "ACTIVE")).await;
    builder.put(user(7, 3, "three", None, "ACTIVE")).await;
    builder.put(user(7, 1, "one", None, "ACTIVE")).await;
    builder.put(deletion(7, 6)).await;
    assert_eq!(seven(&database).await, [["seven", "7"]]);
    database
        .sql
        .batch_execute("update user_view set name = 'edited by hand', last_processed_at = 'epoch'")
        .await
        .unwrap();
    builder.put(user(7, 7, "seven", None, "ACTIVE")).await;
    assert_eq!(seven(&database).await, [["seven", "7"]]);
    assert_eq!(
        database
            .value("select last_processed_at > '2000-01-01' from user_view")
            .await,
        "t"
    );
}

#[tokio::test]
async fn a_deleted_user_comes_back_by_no_older_event() {
    let (database, mut builder) = TestDatabase::with_builder().await;
    builder.put(user(7, 1, "one", None, "ACTIVE")).await;
    builder.put(deletion(7, 3)).await;
    builder.put(user(7, 2, "two", None, "ACTIVE")).await;
    builder.put(user(7, 3, "three", None, "ACTIVE")).await;
    assert!(seven(&database).await.is_empty());
    assert_eq!(database.rows("select * from user_view_deleted").await, [["7", "3"]]);
    builder.put(user(7, 4, "four", None, "ACTIVE")).await;
    assert_eq!(seven(&database).await, [["four", "4"]]);
}

#[tokio::test]
async fn a_deletion_of_an_unknown_user_is_remembered() {
    let (database, mut builder) = TestDatabase::with_builder().await;
    builder.put(deletion(7, 5)).await;
    builder.put(deletion(7, 4)).await;
    builder.put(user(7, 4, "late", None, "ACTIVE")).await;
    assert!(seven(&database).await.is_empty());
    assert_eq!(database.rows("select * from user_view_deleted").await, [["7", "5"]]);
}

#[tokio::test]
async fn a_row_deleted_by_hand_comes_back_by_a_replay() {
    let (database, mut builder) = TestDatabase::with_builder().await;
    builder.put(user(7, 2, "two", None, "ACTIVE")).await;
    database.sql.batch_execute("delete from user_view").await.unwrap();
    builder.put(user(7, 1, "one", None, "ACTIVE")).await;
    builder.put(user(7, 2, "two", None, "ACTIVE")).await;
    assert_eq!(seven(&database).await, [["two", "2"]]);
    database.assert_stats_are_right("after the replay").await;
}

#[tokio::test]
async fn a_batch_with_a_whole_life_ends_with_its_last_event() {
    let (database, mut builder) = TestDatabase::with_builder().await;
    let life = [
        user(7, 1, "one", Some("a"), "ACTIVE"),
        user(8, 1, "one", Some("a"), "ACTIVE"),
        user(7, 2, "two", Some("b"), "ACTIVE"),
        deletion(8, 2),
        user(-5, 1, "negative", Some("b"), "ACTIVE"),
    ];
    let applied = builder.apply(1, &life).await;
    assert_eq!(applied.reached, [(super::support::place(1), 5)]);
    assert_eq!(
        database.rows("select user_id, name from user_view order by 1").await,
        [["-5", "negative"], ["7", "two"]]
    );
    database.assert_stats_are_right("after the batch").await;
}
