//! The connection to the database breaks while a change is under way: the program finds out what became of it.

use rest_rig::{Gate, Lost, Program, answer};
use sqlx::{Executor, Row};

use crate::{POST_API, post, ready};

#[tokio::test]
async fn a_post_whose_answer_was_lost_is_made_once_and_answered_with_its_author() {
    // Its database has the views.
    let made = ready().await;
    let database = made.database();
    let mut gate = Gate::closed(&database.url()).await;
    gate.open().await;
    let program = Program::start(POST_API, &gate.url(&database.url_as("post_api"))).await;
    program.wait_until_ready().await;

    gate.lose("POST_CREATED", Lost::Answer);
    let created = program.post("/api/posts", &post(2)).await;
    assert_eq!(created.status, 201, "{created:?}");
    assert_eq!(created.header("location"), "/api/posts/1");
    let read = program.get("/api/posts/1").await;
    assert_eq!(
        (&created.text, created.header("etag")),
        (&read.text, read.header("etag"))
    );
    assert!(created.json()["authorName"].is_string(), "{}", created.text);

    gate.lose("POST_UPDATED", Lost::Answer);
    let changed = program.put("/api/posts/1", &post(1)).await;
    assert_eq!(changed.text, program.get("/api/posts/1").await.text);
    gate.lose("POST_DELETED", Lost::Answer);
    let tag = changed.header("etag").to_owned();
    let delete = program
        .request(reqwest::Method::DELETE, "/api/posts/1")
        .header("if-match", tag);
    let deleted = answer(delete).await;
    assert_eq!((deleted.status.as_u16(), deleted.header("event-version")), (204, "3"));
    let counts = "select (select count(*) from posts), (select count(*) from outbox)";
    let row = database.sql().await.fetch_one(counts).await.unwrap();
    assert_eq!((row.get::<i64, _>(0), row.get::<i64, _>(1)), (0, 3));
}
