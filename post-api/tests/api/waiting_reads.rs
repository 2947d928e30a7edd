//! The number of reads that wait for a version is limited. A wait ends when its client or the program ends.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rest_rig::{Program, eventually};
use serde_json::Value;
use sqlx::Executor;

use crate::views_behind::{AT_ONCE, behind, execute, until_requests_wait};
use crate::{post, ready};

/// Statements that wait for a lock.
async fn hanging(program: &Program) -> i64 {
    let statement =
        "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    let mut sql = program.database().sql().await;
    sqlx::query_scalar(statement).fetch_one(&mut sql).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_reads_are_bounded_and_do_not_hold_up_the_others() {
    let program = ready().await;
    program.post("/api/posts", &post(2)).await;
    let patient = join_all((0..256).map(|_| program.get("/api/posts/users/9?minVersion=1&wait=10000")));
    let others = async {
        until_requests_wait(&program, 256).await;
        let refused = program.get("/api/posts/users/9?minVersion=1&wait=10000").await;
        assert!(
            refused.json()["detail"].as_str().unwrap().contains("256 requests wait"),
            "{}",
            refused.text
        );
        assert_eq!(behind(&refused)[0]["viewVersion"], Value::Null);
        for _ in 0..50 {
            let started = Instant::now();
            assert_eq!(program.get("/api/posts/1?minVersion=1").await.status, 200);
            assert_eq!(program.get("/api/posts/users").await.status, 200);
            assert_eq!(program.put("/api/posts/1", &post(2)).await.status, 200);
            assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());
        }
        // A locked table makes looks at it hang. They must leave connections for requests that do not read it.
        let mut lock = program.database().sql().await;
        let statement = "begin; lock table user_view_deleted in access exclusive mode";
        lock.execute(statement).await.unwrap();
        eventually("4 looks hang", async || hanging(&program).await == 4).await;
        for _ in 0..50 {
            assert_eq!(program.put("/api/posts/1", &post(2)).await.status, 200);
        }
        assert_eq!(hanging(&program).await, 4);
        lock.execute("commit").await.unwrap();
        execute(
            &program,
            "insert into user_view values (9, '나중', 'e', null, 'ACTIVE', now(), now(), 1, now())",
        )
        .await;
    };
    let (patient, ()) = tokio::join!(patient, others);
    assert!(patient.iter().all(|read| read.status == 200));
    until_requests_wait(&program, 0).await;
}

#[tokio::test]
async fn a_client_that_goes_away_gives_its_place_back() {
    let program = ready().await;
    let request = program.request(reqwest::Method::GET, "/api/posts/users/9?minVersion=1&wait=10000");
    let client = tokio::spawn(request.send());
    until_requests_wait(&program, 1).await;
    client.abort();
    until_requests_wait(&program, 0).await;
    let metrics = program.get("/metrics").await.text;
    assert!(
        metrics.contains("view_wait_seconds_count{outcome=\"left\"} 1"),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_program_that_is_to_stop_lets_nobody_wait() {
    let mut program = ready().await;
    let (read, ()) = tokio::join!(program.get("/api/posts/users/9?minVersion=1&wait=10000"), async {
        until_requests_wait(&program, 1).await;
        program.terminate().await;
    });
    assert_eq!(behind(&read)[0]["userId"], 9);
    assert!(
        read.json()["detail"].as_str().unwrap().contains("stopping"),
        "{}",
        read.text
    );
    let (status, took) = program.ended().await;
    assert!(status.success(), "{status}");
    assert!(took < Duration::from_secs(3), "{took:?}");
}
