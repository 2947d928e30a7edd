//! The SQL view `view_lag` says how old what each view shows is.

use clap::Parser as _;
use service::clock::now_us;
use view_builder::builder::beginning::Beginning;
use view_builder::builder::claim::Start;
use view_builder::commands::pause::pause;
use view_builder::contract::batch::Batch;
use view_builder::settings::{Cli, Command};

use super::support::{Builder, TestDatabase, assert_applied, new_user, place, shipped_views};

const SECOND_US: i64 = 1_000_000;

/// What `view_lag` says about partition 0 of `user_view`.
#[derive(Debug)]
struct Lag {
    next_offset: i64,
    /// Microseconds since 1970.
    newest_event_us: Option<i64>,
    lag_seconds: Option<f64>,
    age_seconds: Option<f64>,
    is_replayed: bool,
    is_paused: bool,
}

impl Lag {
    async fn load(database: &TestDatabase) -> Self {
        let row = database
            .sql
            .query_one(
                "select next_offset, (extract(epoch from newest_event_at) * 1000000)::bigint as newest_event_us,
                    lag_seconds, age_seconds, is_replayed, is_paused
                 from view_lag where view = 'user_view' and topic = 'user-events' and partition = 0",
                &[],
            )
            .await
            .unwrap();
        Self {
            next_offset: row.get("next_offset"),
            newest_event_us: row.get("newest_event_us"),
            lag_seconds: row.get("lag_seconds"),
            age_seconds: row.get("age_seconds"),
            is_replayed: row.get("is_replayed"),
            is_paused: row.get("is_paused"),
        }
    }
}

/// Applies one event of user `id` that the source has committed so many seconds ago. Returns the moment, in microseconds since 1970.
async fn put_committed_ago(builder: &mut Builder, id: i64, seconds: i64) -> i64 {
    let committed_us = now_us() - seconds * SECOND_US;
    let mut part = builder.part(&place(0), &[new_user(id)]);
    part.events[0].committed_us = committed_us;
    assert_applied(&builder.apply_batch(Batch { parts: vec![part] }).await);
    committed_us
}

fn is_about(seconds: Option<f64>, wanted: f64) -> bool {
    seconds.is_some_and(|seconds| seconds >= wanted && seconds < wanted + 30.0)
}

#[tokio::test]
async fn a_view_says_how_late_its_newest_event_came_and_how_old_it_is_by_now() {
    let (database, mut builder) = TestDatabase::with_builder().await;
    let lag = Lag::load(&database).await;
    assert_eq!((lag.next_offset, lag.newest_event_us), (0, None), "nothing was applied");
    assert_eq!((lag.lag_seconds, lag.age_seconds), (None, None));
    let committed_us = put_committed_ago(&mut builder, 1, 100).await;
    let lag = Lag::load(&database).await;
    assert_eq!((lag.next_offset, lag.newest_event_us), (1, Some(committed_us)));
    assert!(
        is_about(lag.lag_seconds, 100.0) && is_about(lag.age_seconds, 100.0),
        "{lag:?}"
    );
    assert!(!lag.is_replayed && !lag.is_paused);
    let an_hour_later = "update view_positions set newest_event_at = newest_event_at - interval '1 hour',
        newest_applied_at = newest_applied_at - interval '1 hour'";
    database.sql.batch_execute(an_hour_later).await.unwrap();
    let lag = Lag::load(&database).await;
    assert!(
        is_about(lag.lag_seconds, 100.0) && is_about(lag.age_seconds, 3_700.0),
        "{lag:?}"
    );
}

#[tokio::test]
async fn every_view_has_a_line_for_each_partition_of_its_topics() {
    let (database, _) = TestDatabase::with_builder().await;
    let lines = database
        .rows("select view, topic, partition from view_lag order by view, topic, partition")
        .await;
    let users = |view: &str, partition: &str| vec![view.to_owned(), "user-events".to_owned(), partition.to_owned()];
    let wanted = [
        users("activity", "0"),
        users("activity", "1"),
        users("user_view", "0"),
        users("user_view", "1"),
    ];
    assert_eq!(lines, wanted);
}

#[tokio::test]
async fn a_replay_is_marked_and_does_not_make_the_view_older() {
    let (database, mut builder) = TestDatabase::with_builder().await;
    put_committed_ago(&mut builder, 1, 100).await;
    let newest = put_committed_ago(&mut builder, 2, 50).await;
    let set_back = "update view_positions set next_offset = 0 where partition = 0";
    database.sql.batch_execute(set_back).await.unwrap();
    builder.claim(&[0, 1]).await;
    put_committed_ago(&mut builder, 1, 100).await;
    let lag = Lag::load(&database).await;
    assert_eq!(
        (lag.next_offset, lag.newest_event_us, lag.is_replayed),
        (1, Some(newest), true)
    );
    assert!(is_about(lag.lag_seconds, 50.0), "{lag:?}");
    put_committed_ago(&mut builder, 2, 50).await;
    assert!(!Lag::load(&database).await.is_replayed);
}

#[tokio::test]
async fn an_event_that_claims_to_come_from_the_future_is_not_older_than_its_arrival() {
    let (database, mut builder) = TestDatabase::with_builder().await;
    let mut part = builder.part(&place(0), &[new_user(1)]);
    part.events[0].committed_us = i64::MAX;
    assert_applied(&builder.apply_batch(Batch { parts: vec![part] }).await);
    let lag = Lag::load(&database).await;
    assert!(lag.newest_event_us.is_some_and(|us| us <= now_us()), "{lag:?}");
    assert!(is_about(lag.lag_seconds, 0.0), "{lag:?}");
}

#[tokio::test]
async fn a_paused_view_is_as_old_as_it_was_at_the_pause_and_the_others_go_on() {
    let (database, mut builder) = TestDatabase::with_builder().await;
    let before = put_committed_ago(&mut builder, 1, 100).await;
    let arguments = [
        "view-builder",
        "pause",
        "--database-url",
        database.url.as_str(),
        "user_view",
    ];
    let Command::Pause(config) = Cli::try_parse_from(arguments).unwrap().command else {
        panic!("another command");
    };
    pause(&config).await.unwrap();
    let mut builder = database.builder(&shipped_views()).await;
    builder.claim(&[0, 1]).await;
    let later = put_committed_ago(&mut builder, 2, 50).await;
    let lag = Lag::load(&database).await;
    assert_eq!(
        (lag.next_offset, lag.newest_event_us, lag.is_paused),
        (1, Some(before), true)
    );
    let others = "select (extract(epoch from newest_event_at) * 1000000)::bigint from view_lag
        where view = 'activity' and partition = 0 and not is_paused";
    assert_eq!(database.value(others).await, later.to_string());
}

#[tokio::test]
async fn a_topic_that_was_made_anew_has_no_newest_event_yet() {
    let (database, mut builder) = TestDatabase::with_builder().await;
    put_committed_ago(&mut builder, 1, 100).await;
    builder.claim(&[0]).await;
    let beginning = Beginning {
        ended_at: None,
        start: Start {
            next_offset: 0,
            ..builder.starts[0].clone()
        },
        topic_id: Some("new".to_owned()),
        is_anew: true,
        notice: None,
    };
    builder.database.begin(&[beginning]).await;
    let lag = Lag::load(&database).await;
    assert_eq!(
        (lag.next_offset, lag.newest_event_us, lag.is_replayed),
        (0, None, false)
    );
}

#[tokio::test]
async fn a_database_of_an_earlier_version_gets_the_view() {
    let (database, mut builder) = TestDatabase::with_builder().await;
    put_committed_ago(&mut builder, 1, 100).await;
    database
        .sql
        .batch_execute(
            "drop view view_lag;
             alter table view_positions drop column newest_event_at, drop column newest_applied_at;
             alter table view_pause_positions drop column newest_event_at, drop column newest_applied_at",
        )
        .await
        .unwrap();
    let mut builder = database.builder(&shipped_views()).await;
    assert_eq!(Lag::load(&database).await.newest_event_us, None);
    builder.claim(&[0, 1]).await;
    let committed_us = put_committed_ago(&mut builder, 2, 10).await;
    assert_eq!(Lag::load(&database).await.newest_event_us, Some(committed_us));
}
