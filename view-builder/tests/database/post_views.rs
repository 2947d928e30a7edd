//! `post_stats`, `user_activity` and `department_performance` are what the latest events say, in whatever order they came.

use super::support::lives::{Dice, Views, apply, builder, lives};
use super::support::reference::Reference;
use super::support::{TestDatabase, deletion, post, post_deletion, shipped_views, user};

const POST_STATS_OF_7: &str = "select posts, last_post_id from post_stats where author_id = 7";
const USERS: &str = "select user_id, changes, posts, last_active from user_activity order by 1";
const DEPARTMENTS: &str =
    "select department, active_users, authors, posts, round(posts_per_user, 2) from department_performance order by 1";

/// Users 7 and 8 of department a, user 9 of none; 7 has the posts 1 and 2, and 8 has post 3.
async fn three_users_and_three_posts() -> Views {
    let mut views = Views::new().await;
    views.put(&[], &[post(1, 1, 7, 10, 10)]).await;
    let users = [
        user(7, 1, "n", Some("a"), "ACTIVE"),
        user(8, 1, "n", Some("a"), "INACTIVE"),
        user(9, 1, "n", None, "ACTIVE"),
    ];
    views.put(&users, &[post(2, 1, 7, 20, 20), post(3, 1, 8, 30, 30)]).await;
    views
}

#[tokio::test]
async fn a_post_before_its_author_counts_for_the_author_alone() {
    let mut views = Views::new().await;
    views.put(&[], &[post(1, 1, 7, 10, 10)]).await;
    assert_eq!(
        views.rows("table post_stats").await,
        [["7", "1", "2025-01-02 00:00:10", "2025-01-02 00:00:10", "1", "1"]]
    );
    assert!(views.rows("select 1 from user_activity").await.is_empty());
    assert!(views.rows("select 1 from department_performance").await.is_empty());
}

#[tokio::test]
async fn a_post_counts_for_its_author_and_for_the_authors_department() {
    let views = three_users_and_three_posts().await;
    assert_eq!(
        views.rows(USERS).await,
        [
            ["7", "1", "2", "2025-01-02 00:00:20"],
            ["8", "1", "1", "2025-01-02 00:00:30"],
            ["9", "1", "0", "2025-01-01 00:00:00"],
        ]
    );
    assert_eq!(
        views.rows(DEPARTMENTS).await,
        [["a", "1", "2", "3", "1.50"], ["∅", "1", "0", "0", "0.00"]]
    );
}

#[tokio::test]
async fn a_post_that_changes_its_author_counts_for_the_new_one() {
    let mut views = three_users_and_three_posts().await;
    views.put(&[], &[post(2, 2, 9, 20, 40)]).await;
    assert_eq!(views.rows(POST_STATS_OF_7).await, [["1", "1"]]);
}

#[tokio::test]
async fn an_author_whose_last_post_is_deleted_has_no_row() {
    let mut views = three_users_and_three_posts().await;
    views.put(&[], &[post_deletion(1, 2), post_deletion(2, 2)]).await;
    assert!(views.rows(POST_STATS_OF_7).await.is_empty());
}

#[tokio::test]
async fn the_posts_of_a_deleted_user_stay_and_count_for_no_department() {
    let mut views = three_users_and_three_posts().await;
    views.put(&[deletion(7, 2)], &[]).await;
    assert_eq!(views.rows(POST_STATS_OF_7).await, [["2", "2"]]);
    assert_eq!(
        views.rows(DEPARTMENTS).await,
        [["a", "0", "1", "1", "1.00"], ["∅", "1", "0", "0", "0.00"]]
    );
}

#[tokio::test]
async fn an_older_event_or_one_of_the_deletions_own_version_brings_nothing_back() {
    let mut views = three_users_and_three_posts().await;
    views.put(&[], &[post(2, 2, 9, 20, 40)]).await;
    views.put(&[], &[post_deletion(1, 2)]).await;
    views.put(&[user(9, 2, "n", Some("b"), "INACTIVE")], &[]).await;
    views.put(&[deletion(8, 2)], &[]).await;
    views.put(&[deletion(9, 3)], &[]).await;
    let all = views.rows(ALL_ROWS).await;
    let older_users = [
        user(8, 1, "n", Some("a"), "INACTIVE"),
        user(9, 2, "n", Some("b"), "INACTIVE"),
    ];
    views
        .put(&older_users, &[post(1, 1, 7, 10, 10), post(2, 1, 7, 20, 20)])
        .await;
    views
        .put(&[user(9, 3, "n", Some("b"), "ACTIVE")], &[post(1, 2, 7, 10, 10)])
        .await;
    assert_eq!(views.rows(ALL_ROWS).await, all);
}

#[tokio::test]
async fn any_order_of_users_and_posts_gives_the_same_views() {
    for seed in 1..=6 {
        let mut views = Views::new().await;
        let mut dice = Dice(seed);
        // Fewer users than authors: some authors never exist.
        let (mut users, mut posts) = lives(&mut dice, 1, 25, 80, 32);
        for events in [&mut users, &mut posts] {
            let repeated: Vec<String> = events.iter().filter(|_| dice.roll(3) == 0).cloned().collect();
            events.extend(repeated);
            dice.shuffle(events);
        }
        let mut compared = 0;
        while !(users.is_empty() && posts.is_empty()) {
            let mut take = |events: &mut Vec<String>| {
                let count = usize::try_from(dice.roll(30)).unwrap().min(events.len());
                let mut batch: Vec<String> = events.drain(..count).collect();
                // A topic has each key's events in order; a replay begins anew, in another batch.
                batch
                    .sort_by_key(|value| serde_json::from_str::<serde_json::Value>(value).unwrap()["version"].as_i64());
                batch
            };
            let (of_users, of_posts) = (take(&mut users), take(&mut posts));
            if !(of_users.is_empty() && of_posts.is_empty()) {
                compared += views.put(&of_users, &of_posts).await;
            }
        }
        assert!(compared > 100, "seed {seed} had rows to compare: {compared}");
    }
}

/// Everything that people query of the three views.
const ALL_ROWS: &str =
    "select 'u', user_activity::text from user_activity union all select 'p', post_stats::text from post_stats
    union all select 'd', department_performance::text from department_performance order by 1, 2";

#[tokio::test]
async fn a_replay_changes_nothing_and_mends_what_was_changed_by_hand() {
    let mut views = Views::new().await;
    let mut dice = Dice(11);
    let (users, posts) = lives(&mut dice, 1, 20, 60, 24);
    views.put(&users, &posts).await;
    let before = views.rows(ALL_ROWS).await;
    assert!(before.len() > 20, "there is something to lose: {}", before.len());
    views.put(&users, &posts).await;
    assert_eq!(views.rows(ALL_ROWS).await, before, "unchanged by replay");
    for edit in [
        "delete from activity where user_id % 2 = 0",
        "delete from user_activity where user_id % 2 = 0",
        "delete from activity_post where post_id % 3 = 0",
        "truncate activity_post",
        "truncate activity",
        "truncate activity, activity_post, department_performance",
        "update activity set department = 'moved', active = not active, updated_at = '2001-01-01' where updated_at is not null",
        "update activity_post set author_id = 1, created_at = '2001-01-01', updated_at = '2031-01-01' where post_id % 3 = 0",
    ] {
        views.database.sql.batch_execute(edit).await.unwrap();
        assert_ne!(views.rows(ALL_ROWS).await, before, "{edit}");
        // Users and posts on their own, as their partitions are replayed.
        apply(&mut views.builder, 0, &[], &posts).await;
        apply(&mut views.builder, 0, &users, &[]).await;
        views.are_right(&format!("replayed after `{edit}`")).await;
        assert_eq!(views.rows(ALL_ROWS).await, before, "replayed after `{edit}`");
    }
}

#[tokio::test]
async fn what_is_derived_is_counted_anew_when_somebody_edits_it() {
    let mut views = Views::new().await;
    let (users, posts) = lives(&mut Dice(12), 1, 20, 60, 24);
    views.put(&users, &posts).await;
    for edit in [
        "delete from department_performance where department is null or department = 'a'",
        "update department_performance set users = 99",
        "truncate department_performance",
        "update activity set posts = 3, first_post_id = 9, post_updated_at = '2031-01-01'",
    ] {
        views.database.sql.batch_execute(edit).await.unwrap();
        views.are_right(edit).await;
    }
}

#[tokio::test]
async fn a_database_that_kept_each_view_on_its_own_gets_the_new_tables() {
    let database = TestDatabase::create().await;
    let former = include_str!("support/former_views.sql");
    database.sql.batch_execute(former).await.unwrap();
    let (users, posts) = lives(&mut Dice(13), 1, 20, 60, 24);
    let mut reference = Reference::default();
    for value in users.iter().chain(&posts) {
        reference.take(value);
    }
    let mut kept = builder(&database, 0).await;
    apply(&mut kept, 0, &users, &posts).await;
    reference.assert_views_are_right(&database, "from the topics").await;
    let left = "select relname from pg_class where relname ~ '^(post_stats|user_activity|department_performance)_(post|user|deleted)$'
        union all select proname from pg_proc where proname ~ '(post_stats|user_activity|department_performance)'";
    assert!(database.rows(left).await.is_empty(), "{:?}", database.rows(left).await);
    // Another start keeps all rows.
    let before = database.rows(ALL_ROWS).await;
    database.builder(&shipped_views()).await;
    assert_eq!(database.rows(ALL_ROWS).await, before);
}
