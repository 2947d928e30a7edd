//! Bodies that are refused.

use reqwest::Method;
use serde_json::json;

use crate::{post, ready};

#[tokio::test]
async fn every_wrong_field_is_named_in_one_answer() {
    let program = ready().await;
    let empty = program.post("/api/posts", &json!({})).await;
    assert_eq!(empty.wrong_fields(), ["title", "content", "authorId"]);
    for (field, value) in [
        ("title", json!("")),
        ("title", json!(["t"])),
        ("title", json!(5)),
        ("title", json!("가".repeat(256))),
        ("content", json!(6.5)),
        ("content", json!(null)),
        ("content", json!("\0")),
        ("authorId", json!("2")),
        ("authorId", json!("")),
        ("authorId", json!(2.9)),
        ("authorId", json!(0)),
        ("authorId", json!(9_223_372_036_854_775_808_u64)),
        ("authorId", json!({"id": 1})),
        ("authorId", json!(null)),
    ] {
        let mut body = post(2);
        body[field] = value.clone();
        let created = program.post("/api/posts", &body).await;
        assert_eq!(created.wrong_fields(), [field], "{field} = {value}");
    }
    program.post("/api/posts", &post(2)).await;
    let partial = program.put("/api/posts/1", &json!({"title": "t"})).await;
    assert_eq!(partial.wrong_fields(), ["content", "authorId"]);
}

#[tokio::test]
async fn a_body_is_one_json_object_of_limited_size() {
    let program = ready().await;
    program
        .send(Method::POST, "/api/posts", "{\"title\"")
        .await
        .problem(400);
    let mut large = post(2);
    large["content"] = json!("x".repeat(500_000));
    let created = program.post("/api/posts", &large).await;
    assert_eq!(created.status, 201);
    assert_eq!(created.json()["content"], large["content"]);
    large["content"] = json!("x".repeat(1_100_000));
    program.post("/api/posts", &large).await.problem(413);
}
