//! `post_stats`, `user_activity` and `department_performance` are what the latest events say, in whatever order they came.

#![allow(clippy::unwrap_used, reason = "a test's helper fails by panicking, as the test does")]

mod support;

use support::reference::Reference;
use support::{Builder, TestDatabase, deletion, place, post, post_deletion, posts_place, second, shipped_views, user};
use view_builder::batch::Batch;

/// A small generator of numbers, the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn id(&mut self, ids: u64) -> i64 {
        1 + i64::try_from(self.roll(ids)).unwrap()
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            let other = usize::try_from(self.roll(at as u64 + 1)).unwrap();
            items.swap(at, other);
        }
    }
}

const DEPARTMENTS: [Option<&str>; 5] = [None, Some(""), Some("개발팀"), Some("Z"), Some("a")];

/// An event of a user, at a second of its own, so that `last_active` has something to find.
fn random_user(dice: &mut Dice, id: i64, version: i64) -> String {
    if dice.roll(5) == 0 {
        return deletion(id, version);
    }
    let department = DEPARTMENTS[usize::try_from(dice.roll(5)).unwrap()];
    let status = ["ACTIVE", "INACTIVE"][usize::try_from(dice.roll(2)).unwrap()];
    let moment = second(dice.roll(500));
    user(id, version, "n", department, status).replace(
        "\"updatedAt\":\"2025-01-01T00:00:00\"",
        &format!("\"updatedAt\":\"{moment}\""),
    )
}

/// Few seconds for many posts: some are created at the same time.
fn random_post(dice: &mut Dice, id: i64, version: i64, authors: u64) -> String {
    if dice.roll(5) == 0 {
        post_deletion(id, version)
    } else {
        post(id, version, dice.id(authors), dice.roll(20), dice.roll(500))
    }
}

/// The lives of `users` users and `posts` posts with ids from `first`, whose authors are `authors` from 1.
fn lives(dice: &mut Dice, first: i64, users: i64, posts: i64, authors: u64) -> (Vec<String>, Vec<String>) {
    let mut of_users = Vec::new();
    for id in first..first + users {
        for version in 1..=dice.id(5) {
            of_users.push(random_user(dice, id, version));
        }
    }
    let mut of_posts = Vec::new();
    for id in first..first + posts {
        for version in 1..=dice.id(5) {
            of_posts.push(random_post(dice, id, version, authors));
        }
    }
    (of_users, of_posts)
}

async fn builder(database: &TestDatabase, partition: i32) -> Builder {
    let mut builder = database.builder(&shipped_views()).await;
    builder.claim_places(&[posts_place(partition), place(partition)]).await;
    builder
}

/// Applies both topics' events as one batch.
async fn apply(builder: &mut Builder, partition: i32, users: &[String], posts: &[String]) {
    let mut parts = vec![
        builder.part(&posts_place(partition), posts),
        builder.part(&place(partition), users),
    ];
    parts.retain(|part| !part.events.is_empty());
    let applied = builder.apply_batch(Batch { parts }).await;
    support::assert_applied(&applied);
}

/// A database, its builder and what they should hold.
struct Views {
    database: TestDatabase,
    builder: Builder,
    reference: Reference,
}

impl Views {
    async fn new() -> Self {
        let database = TestDatabase::create().await;
        let builder = builder(&database, 0).await;
        Self {
            database,
            builder,
            reference: Reference::default(),
        }
    }

    async fn put(&mut self, users: &[String], posts: &[String]) -> usize {
        for value in users.iter().chain(posts) {
            self.reference.take(value);
        }
        apply(&mut self.builder, 0, users, posts).await;
        self.are_right(&format!("after {users:?} {posts:?}")).await
    }

    async fn are_right(&self, when: &str) -> usize {
        self.reference.assert_views_are_right(&self.database, when).await
    }

    async fn rows(&self, query: &str) -> Vec<Vec<String>> {
        self.database.rows(query).await
    }
}

#[tokio::test]
async fn each_kind_of_event_is_told_by_the_three_views() {
    let mut views = Views::new().await;
    // A post before its author: counted for the author, for no user and no department.
    views.put(&[], &[post(1, 1, 7, 10, 10)]).await;
    assert_eq!(
        views.rows("table post_stats").await,
        [["7", "1", "2025-01-02 00:00:10", "2025-01-02 00:00:10", "1", "1"]]
    );
    assert!(views.rows("select 1 from user_activity").await.is_empty());
    assert!(views.rows("select 1 from department_performance").await.is_empty());

    views
        .put(
            &[
                user(7, 1, "n", Some("a"), "ACTIVE"),
                user(8, 1, "n", Some("a"), "INACTIVE"),
                user(9, 1, "n", None, "ACTIVE"),
            ],
            &[post(2, 1, 7, 20, 20), post(3, 1, 8, 30, 30)],
        )
        .await;
    assert_eq!(
        views
            .rows("select user_id, changes, posts, last_active from user_activity order by 1")
            .await,
        [
            ["7", "1", "2", "2025-01-02 00:00:20"],
            ["8", "1", "1", "2025-01-02 00:00:30"],
            ["9", "1", "0", "2025-01-01 00:00:00"],
        ]
    );
    assert_eq!(
        views
            .rows("select department, active_users, authors, posts, round(posts_per_user, 2) from department_performance order by 1")
            .await,
        [["a", "1", "2", "3", "1.50"], ["∅", "1", "0", "0", "0.00"]]
    );

    // The last post moves to another author, then the first one goes.
    views.put(&[], &[post(2, 2, 9, 20, 40)]).await;
    assert_eq!(
        views
            .rows("select posts, last_post_id from post_stats where author_id = 7")
            .await,
        [["1", "1"]]
    );
    views.put(&[], &[post_deletion(1, 2)]).await;
    assert!(
        views
            .rows("select 1 from post_stats where author_id = 7")
            .await
            .is_empty()
    );
    // A user moves, another is deleted and leaves its posts without department.
    views.put(&[user(9, 2, "n", Some("b"), "INACTIVE")], &[]).await;
    views.put(&[deletion(8, 2)], &[]).await;
    views.put(&[deletion(9, 3)], &[]).await;
    assert_eq!(
        views
            .rows("select department, active_users, authors, posts, posts_per_user from department_performance")
            .await,
        [["a", "1", "0", "0", "0.00000000000000000000"]]
    );
    assert_eq!(
        views.rows("select 1 from post_stats").await.len(),
        2,
        "posts of deleted users stay"
    );
    // Older events bring nothing back.
    views
        .put(
            &[
                user(8, 1, "n", Some("a"), "INACTIVE"),
                user(9, 2, "n", Some("b"), "INACTIVE"),
            ],
            &[post(1, 1, 7, 10, 10), post(2, 1, 7, 20, 20)],
        )
        .await;
    // Nor does one that claims the deletion's own version.
    views
        .put(&[user(9, 3, "n", Some("b"), "ACTIVE")], &[post(1, 2, 7, 10, 10)])
        .await;
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

/// A view's own statement with one event.
fn apply_text(view: &str, value: &str) -> String {
    let event: serde_json::Value = serde_json::from_str(value).unwrap();
    let kind = if event["userId"].is_null() { "post" } else { "user" };
    let entity = match &event[kind] {
        serde_json::Value::Null => "null".to_owned(),
        entity => format!("'{entity}'"),
    };
    std::fs::read_to_string(shipped_views().join(view).join("apply.sql"))
        .unwrap()
        .replace("$1::text[]", &format!("array['{kind}-events']"))
        .replace(
            "$2::bigint[]",
            &format!("array[{}]::bigint[]", event[format!("{kind}Id")]),
        )
        .replace("$3::bigint[]", &format!("array[{}]::bigint[]", event["version"]))
        .replace("$4::text[]", "array['']")
        .replace("$5::jsonb[]", &format!("array[{entity}::jsonb]"))
}

/// The positions are left out, as their locks would keep the two apart.
#[tokio::test]
async fn events_that_two_builders_apply_at_once_find_each_other() {
    let (author, written) = (user(7, 1, "n", Some("a"), "ACTIVE"), post(1, 1, 7, 10, 10));
    let posts = [post(1, 1, 7, 10, 10), post(2, 1, 7, 20, 20), post(3, 1, 7, 30, 30)];
    let gone = [post_deletion(1, 2), post_deletion(2, 2), post_deletion(3, 2)];
    let two = [posts[0].clone(), posts[1].clone()];
    for (users, before, first, second) in [
        // A post and its author.
        (None, vec![], &author, &written),
        (None, vec![], &written, &author),
        // The first two of three posts go, in both orders; the last two.
        (None, posts.to_vec(), &gone[0], &gone[1]),
        (None, posts.to_vec(), &gone[1], &gone[0]),
        (None, posts.to_vec(), &gone[1], &gone[2]),
        // An author's first two posts; the last one goes while another comes.
        (Some(&author), vec![], &posts[0], &posts[1]),
        (Some(&author), vec![posts[0].clone()], &gone[0], &posts[1]),
        (Some(&author), two.to_vec(), &gone[0], &gone[1]),
        // The user goes while a post comes, and the other way.
        (Some(&author), vec![], &deletion(7, 2), &written),
        (Some(&author), vec![], &written, &deletion(7, 2)),
    ] {
        let mut kept = Views::new().await;
        let users: Vec<String> = users.into_iter().cloned().collect();
        if !(users.is_empty() && before.is_empty()) {
            kept.put(&users, &before).await;
        }
        kept.reference.take(first);
        kept.reference.take(second);
        let open = kept.database.connect().await;
        let begun = format!("begin; {}", apply_text("activity", first));
        open.batch_execute(&begun).await.unwrap();
        let other = kept.database.connect().await;
        let text = apply_text("activity", second);
        let task = tokio::spawn(async move { other.batch_execute(&text).await });
        let waits = "select count(*) from pg_stat_activity
            where datname = current_database() and wait_event_type = 'Lock'";
        while !task.is_finished() && kept.database.value(waits).await == "0" {}
        open.batch_execute("commit").await.unwrap();
        task.await.unwrap().unwrap();
        kept.are_right(&format!("{first} and {second}")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn builders_with_users_and_posts_of_the_same_authors_agree_in_the_end() {
    let database = TestDatabase::create().await;
    let mut reference = Reference::default();
    let mut tasks = Vec::new();
    for partition in 0..4 {
        let mut builder = builder(&database, partition).await;
        let mut dice = Dice(100 + u64::try_from(partition).unwrap());
        let first = 1 + i64::from(partition) * 100;
        // All write posts for the users of all.
        let (users, posts) = lives(&mut dice, first, 100, 100, 450);
        for value in users.iter().chain(&posts) {
            reference.take(value);
        }
        tasks.push(tokio::spawn(async move {
            // The even ones mix both topics in a batch, the odd ones take them in turns.
            for (of_users, of_posts) in users.chunks(10).zip(posts.chunks(10)) {
                if partition % 2 == 0 {
                    apply(&mut builder, partition, of_users, of_posts).await;
                } else {
                    apply(&mut builder, partition, of_users, &[]).await;
                    apply(&mut builder, partition, &[], of_posts).await;
                }
            }
            let left = |of: &[String], other: &[String]| {
                of.chunks(10).skip(other.chunks(10).len()).flatten().cloned().collect()
            };
            let (of_users, of_posts): (Vec<String>, Vec<String>) = (left(&users, &posts), left(&posts, &users));
            if !(of_users.is_empty() && of_posts.is_empty()) {
                apply(&mut builder, partition, &of_users, &of_posts).await;
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let compared = reference.assert_views_are_right(&database, "after all builders").await;
    assert!(compared > 300, "{compared}");
    let deadlocks = "select deadlocks from pg_stat_database where datname = current_database()";
    assert_eq!(database.value(deadlocks).await, "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn builders_whose_posts_have_the_same_few_authors_do_not_deadlock() {
    let database = TestDatabase::create().await;
    let mut reference = Reference::default();
    let mut tasks = Vec::new();
    for partition in 0..4 {
        let mut builder = builder(&database, partition).await;
        let mut dice = Dice(200 + u64::try_from(partition).unwrap());
        let first = 1 + i64::from(partition) * 10_000;
        let posts: Vec<String> = (first..first + 4_000)
            .map(|id| post(id, 1, dice.id(150), dice.roll(500), dice.roll(500)))
            .collect();
        for value in &posts {
            reference.take(value);
        }
        tasks.push(tokio::spawn(async move {
            for batch in posts.chunks(200) {
                apply(&mut builder, partition, &[], batch).await;
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let compared = reference.assert_views_are_right(&database, "after all builders").await;
    assert_eq!(compared, 150, "all authors have posts");
    let deadlocks = "select deadlocks from pg_stat_database where datname = current_database()";
    assert_eq!(database.value(deadlocks).await, "0");
}
