//! Several builders that keep `post_stats`, `user_activity` and `department_performance` at once lose nothing and do not deadlock.

use super::support::lives::{Dice, Views, apply, builder, lives};
use super::support::reference::Reference;
use super::support::{TestDatabase, deletion, post, post_deletion, shipped_views, user};

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
