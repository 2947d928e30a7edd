//! Starting before the other parts.

use rest_rig::{Database, Program, eventually, migrate};
use sqlx::Executor;

use crate::{POST_API, VIEWS, post};

#[tokio::test]
async fn a_schema_and_views_that_are_missing_are_waited_for_and_told() {
    let database = Database::create().await;
    let mut program = Program::start(POST_API, &database.url_as("post_api")).await;
    eventually("readiness says what to do about the schema", async || {
        program.get("/readyz").await.text.contains("post-api migrate")
    })
    .await;
    assert!(migrate(POST_API, &database.url()).await.success());
    eventually("readiness says who makes the views", async || {
        program.get("/readyz").await.text.contains("view-builder")
    })
    .await;
    program.get("/api/posts").await.problem(503);
    let refused = program.post("/api/posts", &post(2)).await;
    refused.problem(503);
    assert_eq!(refused.header("retry-after"), "2");

    database.sql().await.execute(VIEWS).await.unwrap();
    program.wait_until_ready().await;
    assert_eq!(program.get("/api/posts").await.text, "[]", "refused whole");
    assert_eq!(program.post("/api/posts", &post(2)).await.status, 201);
    program.terminate().await;
    assert!(program.ended().await.0.success());
}
