//! The connection to the database breaks while a change is under way: the program finds out what became of it.

use rest_rig::{Database, Gate, Lost, Program, eventually, migrate};
use serde_json::{Value, json};
use sqlx::{Executor, Row};

use crate::{USER_API, user};

/// A program that is ready, on a database that it reaches through a gate.
async fn through_a_gate() -> (Database, Gate, Program) {
    let database = Database::create().await;
    assert!(migrate(USER_API, &database.url()).await.success());
    let mut gate = Gate::closed(&database.url()).await;
    gate.open().await;
    let program = Program::start(USER_API, &gate.url(&database.url_as("user_api"))).await;
    program.wait_until_ready().await;
    (database, gate, program)
}

/// How many users and how many events there are.
async fn counts(database: &Database) -> (i64, i64) {
    let counts = "select (select count(*) from users), (select count(*) from outbox)";
    let row = database.sql().await.fetch_one(counts).await.unwrap();
    (row.get(0), row.get(1))
}

#[tokio::test]
async fn a_change_whose_answer_was_lost_is_answered_as_if_nothing_had_happened_and_made_once() {
    let (database, gate, program) = through_a_gate().await;
    gate.lose("lost@example.com", Lost::Answer);
    let created = program.post("/api/users", &user("lost@example.com")).await;
    assert_eq!(created.status, 201, "{created:?}");
    assert_eq!(
        (created.header("location"), created.header("etag")),
        ("/api/users/1", "\"1\"")
    );
    assert_eq!(created.text, program.get("/api/users/1").await.text);

    gate.lose("changed@example.com", Lost::Answer);
    let changed = program.put("/api/users/1", &user("changed@example.com")).await;
    assert_eq!((changed.status.as_u16(), changed.header("event-version")), (200, "2"));
    assert_eq!(changed.text, program.get("/api/users/1").await.text);

    let mut nobody = user("nobody@example.com");
    nobody["department"] = Value::Null;
    gate.lose("nobody@example.com", Lost::Answer);
    let created = program.post("/api/users", &nobody).await;
    assert_eq!(created.text, program.get("/api/users/2").await.text);

    // A delete sends no text of its own; its statement has this one.
    gate.lose("USER_DELETED", Lost::Answer);
    let deleted = program.delete("/api/users/1").await;
    assert_eq!((deleted.status.as_u16(), deleted.header("event-version")), (204, "3"));
    assert_eq!(counts(&database).await, (1, 4));
}

/// A pooler stands between the program and the database, and loses the database. It says so by an error, as if the statement were refused.
#[tokio::test]
async fn a_change_whose_answer_a_pooler_has_lost_is_answered_as_if_nothing_had_happened_and_made_once() {
    let (database, gate, program) = through_a_gate().await;
    gate.lose("lost@example.com", Lost::AnswerToPooler);
    let created = program.post("/api/users", &user("lost@example.com")).await;
    assert_eq!(created.status, 201, "{created:?}");
    assert_eq!(created.text, program.get("/api/users/1").await.text);
    assert_eq!(counts(&database).await, (1, 1));
}

#[tokio::test]
async fn a_change_that_never_came_to_the_database_is_told_and_may_be_asked_for_again() {
    let (database, gate, program) = through_a_gate().await;
    gate.lose("lost@example.com", Lost::Question);
    let refused = program.post("/api/users", &user("lost@example.com")).await;
    let problem = refused.problem(503);
    assert!(
        problem["detail"].as_str().unwrap().contains("nothing was changed"),
        "{problem}"
    );
    assert_eq!(refused.header("retry-after"), "2");
    assert_eq!(counts(&database).await, (0, 0));
    assert_eq!(program.post("/api/users", &user("lost@example.com")).await.status, 201);
}

#[tokio::test]
async fn a_change_that_the_database_is_still_at_is_ended_before_anything_is_said_of_it() {
    let (database, gate, program) = through_a_gate().await;
    program.post("/api/users", &user("first@example.com")).await;
    let mut holder = database.sql().await;
    holder.execute("begin").await.unwrap();
    holder.execute("select from users for update").await.unwrap();
    gate.lose("late@example.com", Lost::Connection);
    let refused = program.put("/api/users/1", &user("late@example.com")).await;
    let problem = refused.problem(503);
    assert!(
        problem["detail"].as_str().unwrap().contains("nothing was changed"),
        "{problem}"
    );
    holder.execute("rollback").await.unwrap();
    let read = program.get("/api/users/1").await.json();
    assert_eq!(
        (&read["email"], &read["version"]),
        (&json!("first@example.com"), &json!(1))
    );
    eventually("the change's session is gone", async || {
        let left = "select count(*) from pg_stat_activity where datname = current_database() and query like '%USER_UPDATED%' and state = 'active'
            and pid <> pg_backend_pid()";
        let row = database.sql().await.fetch_one(left).await.unwrap();
        row.get::<i64, _>(0) == 0
    })
    .await;
    assert_eq!(counts(&database).await, (1, 1));
}

#[tokio::test]
async fn where_nobody_can_say_whether_a_change_was_made_no_retry_is_advised() {
    let (database, mut gate, program) = through_a_gate().await;
    let mut holder = database.sql().await;
    holder.execute("begin").await.unwrap();
    holder.execute("lock table users").await.unwrap();
    let change = async { program.post("/api/users", &user("lost@example.com")).await };
    let (answer, ()) = tokio::join!(change, async {
        eventually("the change waits", async || {
            let waiting = "select count(*) from pg_locks where relation = 'users'::regclass and not granted";
            let row = database.sql().await.fetch_one(waiting).await.unwrap();
            row.get::<i64, _>(0) > 0
        })
        .await;
        gate.close().await;
    });
    let problem = answer.problem(503);
    assert_eq!(problem["type"], "urn:problem-type:outcome-unknown");
    assert!(
        problem["detail"].as_str().unwrap().contains("look before you ask"),
        "{problem}"
    );
    assert!(!answer.headers.contains_key("retry-after"), "{answer:?}");
    holder.execute("rollback").await.unwrap();
}
