//! Starting without a database, losing it, stopping.

use std::time::{Duration, Instant};

use reqwest::StatusCode;
use rest_rig::{Database, Gate, Program, eventually, migrate};
use sqlx::Executor;

use crate::{USER_API, ready, user};

#[tokio::test]
async fn a_database_that_is_away_is_waited_for_and_told() {
    let database = Database::create().await;
    let mut gate = Gate::closed(&database.url()).await;
    let program = Program::start(USER_API, &gate.url(&database.url_as("user_api"))).await;
    eventually("the log says what it waits for", async || {
        program.log().contains("waiting for postgres")
    })
    .await;
    let readiness = program.get("/readyz").await;
    assert_eq!(readiness.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(readiness.json()["reasons"]["postgres"].is_string());
    assert_eq!(program.get("/livez").await.status, 200);
    let health = program.get("/actuator/health").await;
    assert_eq!(
        (health.status.as_u16(), health.text.as_str()),
        (503, r#"{"status":"DOWN"}"#)
    );

    let asked = Instant::now();
    let refused = program.get("/api/users").await;
    refused.problem(503);
    assert_eq!(refused.header("retry-after"), "2");
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());

    gate.open().await;
    eventually("readiness says what to do about the schema", async || {
        program.get("/readyz").await.text.contains("user-api migrate")
    })
    .await;
    program.get("/api/users").await.problem(503);
    assert!(migrate(USER_API, &database.url()).await.success());
    program.wait_until_ready().await;
    assert_eq!(program.get("/api/users").await.text, "[]");
    let health = program.get("/actuator/health").await;
    assert_eq!(
        (health.status.as_u16(), health.text.as_str()),
        (200, r#"{"status":"UP"}"#)
    );

    gate.close().await;
    program.get("/api/users").await.problem(503);
    eventually("readiness tells the loss", async || {
        program.get("/readyz").await.status == StatusCode::SERVICE_UNAVAILABLE
    })
    .await;
    gate.open().await;
    program.wait_until_ready().await;
    let created = program.post("/api/users", &user("hong@example.com")).await;
    assert_eq!(created.status, 201);
}

#[tokio::test]
async fn migrate_waits_for_the_database_and_may_run_twice() {
    let database = Database::create().await;
    let mut gate = Gate::closed(&database.url()).await;
    let url = gate.url(&database.url());
    let (first, ()) = tokio::join!(migrate(USER_API, &url), async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        gate.open().await;
    });
    assert!(first.success());
    assert!(migrate(USER_API, &url).await.success());
}

#[tokio::test]
async fn sigterm_lets_a_request_under_way_end() {
    let mut program = ready().await;
    program.post("/api/users", &user("hong@example.com")).await;
    let mut sql = program.database().sql().await;
    sql.execute("begin; select from users for update").await.unwrap();
    let change = user("hong@example.com");
    let update = program.put("/api/users/1", &change);
    let stop = async {
        let mut observer = program.database().sql().await;
        eventually("the update waits for the row", async || {
            sqlx::query_scalar("select exists (select from pg_locks where not granted)")
                .fetch_one(&mut observer)
                .await
                .unwrap()
        })
        .await;
        program.terminate().await;
        eventually("the program takes no new connection", async || {
            program.request(reqwest::Method::GET, "/livez").send().await.is_err()
        })
        .await;
        sql.execute("commit").await.unwrap();
    };
    let (updated, ()) = tokio::join!(update, stop);
    assert_eq!(updated.json()["version"], 2);
    let (status, took) = program.ended().await;
    assert!(status.success(), "{status}");
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test]
async fn sigterm_does_not_wait_for_a_request_that_does_not_end() {
    let mut program = ready().await;
    program.post("/api/users", &user("hong@example.com")).await;
    let mut sql = program.database().sql().await;
    sql.execute("begin; select from users for update").await.unwrap();
    let request = program
        .request(reqwest::Method::DELETE, "/api/users/1")
        .build()
        .unwrap();
    let stuck = tokio::spawn(reqwest::Client::new().execute(request));
    tokio::time::sleep(Duration::from_millis(300)).await;
    program.terminate().await;
    let (status, took) = program.ended().await;
    assert!(status.success(), "{status}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(stuck.await.unwrap().is_err());
}
