//! A change and its event are one: both or neither, and numbered without gaps.

use std::sync::Arc;

use events::{PostEvent, PostEventType};
use reqwest::Method;
use serde_json::json;
use sqlx::Executor;

use crate::{post, ready};

#[tokio::test]
async fn each_change_writes_one_event_that_tells_it() {
    let program = ready().await;
    let created = program.post("/api/posts", &post(2)).await;
    let updated = program.put("/api/posts/1", &post(77)).await;
    let deleted = program.delete("/api/posts/1").await;
    let answers = [&created, &updated, &deleted];
    let answered = answers.map(|answer| answer.header("event-version").parse::<i64>().unwrap());
    let (created, updated) = (created.json(), updated.json());
    program.delete("/api/posts/1").await.problem(404);
    program.post("/api/posts", &json!({})).await.problem(422);

    let rows = program.database().outbox::<PostEvent>().await;
    assert_eq!(rows.len(), 3);
    for (row, (event_type, name, answered)) in rows.iter().zip([
        (PostEventType::PostCreated, "POST_CREATED", Some(&created)),
        (PostEventType::PostUpdated, "POST_UPDATED", Some(&updated)),
        (PostEventType::PostDeleted, "POST_DELETED", None),
    ]) {
        assert_eq!(row.aggregate_type, events::POST_AGGREGATE);
        assert_eq!((row.aggregate_id.as_str(), row.event_type.as_str()), ("1", name));
        let event = &row.event;
        assert_eq!((event.event_type, event.post_id), (event_type, 1));
        let told = event.post.as_ref().map(|post| serde_json::to_value(post).unwrap());
        let answered = answered.cloned().map(|mut post| {
            let fields = post.as_object_mut().unwrap();
            for field in ["version", "authorName", "authorEmail", "authorDepartment"] {
                fields.remove(field);
            }
            post
        });
        assert_eq!(told, answered);
    }
    let versions: Vec<_> = rows.iter().map(|row| row.event.version).collect();
    assert_eq!(versions, [1, 2, 3]);
    assert_eq!(versions, answered, "every answer tells its event's version");
}

#[tokio::test]
async fn the_outbox_is_not_sampled_and_the_posts_little() {
    ready().await.database().assert_samples_are_small("posts").await;
}

#[tokio::test]
async fn a_change_whose_event_fails_is_not_made() {
    let program = ready().await;
    let before = program.post("/api/posts", &post(2)).await.json();
    let mut sql = program.database().sql().await;
    sql.execute("alter table outbox add constraint refuse check (created_at is null) not valid")
        .await
        .unwrap();
    program.post("/api/posts", &post(1)).await.problem(500);
    program.put("/api/posts/1", &post(1)).await.problem(500);
    program.delete("/api/posts/1").await.problem(500);
    assert_eq!(program.get("/api/posts").await.json(), json!([before]));
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_updates_of_one_post_are_numbered_without_gaps() {
    let program = Arc::new(ready().await);
    program.post("/api/posts", &post(2)).await;
    let mut tasks = tokio::task::JoinSet::new();
    for author in 1..=32 {
        let program = Arc::clone(&program);
        tasks.spawn(async move {
            let body = post(author).to_string();
            let updated = program.send(Method::PUT, "/api/posts/1", body).await.json();
            assert_eq!(updated["authorId"], author);
            updated["version"].as_i64().unwrap()
        });
    }
    let mut answered = tasks.join_all().await;
    answered.sort_unstable();
    assert_eq!(answered, (2..=33).collect::<Vec<_>>());
    let rows = program.database().outbox::<PostEvent>().await;
    let mut told: Vec<_> = rows.iter().map(|row| row.event.version).collect();
    told.sort_unstable();
    assert_eq!(told, (1..=33).collect::<Vec<_>>());
}
