//! A read that names a version is answered from a view that has it, or says that the view has not.

use std::time::Instant;

use futures_util::future::join_all;
use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor};

use crate::views_behind::{AT_ONCE, behind, execute, until_requests_wait};
use crate::{ids, post, ready};

/// Reads that wait until the view has user 2 at version 2. The department R/D has only user 3, but a read of its list may wait for user 2, too.
const READS_OF_USER_2: [&str; 8] = [
    "/api/posts/users/2?minVersion=2",
    "/api/posts/1?minVersion=2",
    "/api/posts?minVersion=2:2",
    "/api/posts/by-department/R%2FD?minVersion=2:2",
    "/api/posts/users?minVersion=2:2,1:4",
    "/api/posts/users?limit=1&minVersion=1:4&minVersion=2:2",
    "/api/posts/users/department/R%2FD?minVersion=3%3A1%2C2%3A2",
    "/api/posts/department-stats?minVersion=2:2",
];

#[tokio::test]
async fn a_view_that_has_the_version_answers_at_once() {
    let program = ready().await;
    program.post("/api/posts", &post(2)).await;
    for (asked, plain) in [
        ("/api/posts/users/1?minVersion=4&wait=0", "/api/posts/users/1"),
        ("/api/posts/users/1?minVersion=3&wait=0", "/api/posts/users/1"),
        ("/api/posts/1?minVersion=1&wait=0", "/api/posts/1"),
        ("/api/posts?minVersion=2:1&wait=0", "/api/posts"),
        ("/api/posts/users?minVersion=1:4,2:1,3:1&wait=0", "/api/posts/users"),
        (
            "/api/posts/department-stats?minVersion=1:4&wait=0",
            "/api/posts/department-stats",
        ),
    ] {
        let read = program.get(asked).await;
        assert_eq!(
            (read.status.as_u16(), &read.text),
            (200, &program.get(plain).await.text),
            "{asked}"
        );
    }
    assert!(
        !program.get("/metrics").await.text.contains("view_wait_seconds"),
        "nobody has waited"
    );
}

#[tokio::test]
async fn a_view_that_is_behind_says_so_when_the_wait_is_over() {
    let program = ready().await;
    program.post("/api/posts", &post(2)).await;
    for path in READS_OF_USER_2 {
        let read = program.get(&format!("{path}&wait=0")).await;
        assert_eq!(
            behind(&read),
            json!([{"userId": 2, "minVersion": 2, "viewVersion": 1}]),
            "{path}"
        );
    }
    let unknown = program.get("/api/posts/users/9?minVersion=1&wait=60").await;
    assert_eq!(
        behind(&unknown),
        json!([{"userId": 9, "minVersion": 1, "viewVersion": null}])
    );
    assert!(unknown.json()["waitedMs"].as_u64().unwrap() >= 60, "{}", unknown.text);
    let two = program.get("/api/posts?minVersion=9:1,1:5,2:1&wait=0").await;
    assert_eq!(
        behind(&two),
        json!([
            {"userId": 1, "minVersion": 5, "viewVersion": 4},
            {"userId": 9, "minVersion": 1, "viewVersion": null},
        ])
    );
    let metrics = program.get("/metrics").await.text;
    assert!(
        metrics.contains("view_wait_seconds_count{outcome=\"timed_out\"} 10"),
        "{metrics}"
    );
    program.get("/api/posts/9?minVersion=7&wait=0").await.problem(404);
}

#[tokio::test]
async fn a_waiting_read_is_answered_as_soon_as_the_view_catches_up() {
    let program = ready().await;
    program.post("/api/posts", &post(2)).await;
    let started = Instant::now();
    let reads = join_all(READS_OF_USER_2.map(|path| {
        let program = &program;
        async move { (path, program.get(&format!("{path}&wait=10000")).await) }
    }));
    let change = async {
        until_requests_wait(&program, READS_OF_USER_2.len()).await;
        execute(
            &program,
            "update user_view set name = '바뀐', department = 'R/D', version = 2 where user_id = 2",
        )
        .await;
    };
    let (reads, ()) = tokio::join!(reads, change);
    assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());
    for (path, read) in &reads {
        assert_eq!(read.status, 200, "{path}: {}", read.text);
    }
    let text = |index: usize| reads[index].1.json();
    assert_eq!(text(0)["name"], "바뀐");
    assert_eq!(text(1)["authorName"], "바뀐");
    assert_eq!(ids(&text(3)), [1]);
    assert_eq!(text(6).as_array().unwrap().len(), 2);
    assert_eq!(
        text(7)[1],
        json!({
            "department": "R/D", "userCount": 2, "activeUsers": 1, "inactiveUsers": 1, "lastUpdated": "2026-11-22T10:00:03",
        })
    );
    let metrics = program.get("/metrics").await.text;
    assert!(
        metrics.contains("view_wait_seconds_count{outcome=\"caught_up\"} 8"),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_deletion_that_the_view_has_seen_is_a_version_too() {
    let program = ready().await;
    program.post("/api/posts", &post(2)).await;
    let (gone, ()) = tokio::join!(program.get("/api/posts/users/2?minVersion=2&wait=10000"), async {
        until_requests_wait(&program, 1).await;
        execute(
            &program,
            "begin; delete from user_view where user_id = 2; insert into user_view_deleted values (2, 2); commit",
        )
        .await;
    });
    assert_eq!(gone.problem(404)["type"], "about:blank");
    let authored = program.get("/api/posts/1?minVersion=2&wait=0").await;
    assert_eq!(
        (authored.status.as_u16(), &authored.json()["authorName"]),
        (200, &Value::Null)
    );
    let all = program.get("/api/posts/users?minVersion=2:2&wait=0").await.json();
    assert_eq!(all.as_array().unwrap().len(), 2);
    let later = program.get("/api/posts/users/2?minVersion=3&wait=0").await;
    assert_eq!(
        behind(&later),
        json!([{"userId": 2, "minVersion": 3, "viewVersion": 2}])
    );
    program.get("/api/posts/users/2").await.problem(404);
}

#[tokio::test]
async fn a_user_on_the_way_from_one_table_to_the_other_is_never_missed() {
    let program = ready().await;
    let mut sql = program.database().sql().await;
    let change = async {
        for version in (2..600).step_by(2) {
            let statements = format!(
                "begin; delete from user_view where user_id = 2; delete from user_view_deleted; \
                insert into user_view_deleted values (2, {version}); commit; \
                begin; delete from user_view_deleted; insert into user_view values \
                (2, 'n', 'e', 'd', 'ACTIVE', now(), now(), {version} + 1, now()); commit"
            );
            sql.execute(AssertSqlSafe(statements)).await.unwrap();
        }
    };
    let mut reads = 0;
    let read = async {
        loop {
            let user = program.get("/api/posts/users/2?minVersion=1&wait=0").await;
            assert!(
                matches!(user.status, StatusCode::OK | StatusCode::NOT_FOUND),
                "{user:?}"
            );
            reads += 1;
        }
    };
    tokio::select! {
        () = change => {}
        () = read => {}
    }
    assert!(reads > 20, "{reads}");
}

#[tokio::test]
async fn a_long_list_is_whole_behind_a_version() {
    let program = ready().await;
    execute(
        &program,
        "insert into posts (title, content, author_id) select 't', 'c', 2 from generate_series(1, 250)",
    )
    .await;
    let all = program.get("/api/posts?minVersion=2:1&wait=0").await.json();
    assert_eq!(ids(&all), (1..=250).collect::<Vec<_>>());
    let page = program.get("/api/posts?minVersion=2:1&wait=0&after=100&limit=2").await;
    assert_eq!(ids(&page.json()), [101, 102]);
}

#[tokio::test]
async fn parameters_that_cannot_be_taken_are_named() {
    let program = ready().await;
    let lists = [
        "",
        "/by-department/x",
        "/users",
        "/users/department/x",
        "/department-stats",
    ];
    let singles = ["/1", "/users/1"];
    for (paths, query, named) in [
        (lists.as_slice(), "minVersion=3", "minVersion must be ID:VERSION"),
        (&lists, "minVersion=2:0", "minVersion must be ID:VERSION"),
        (&lists, "minVersion=2:1&wait=10001", "wait must be"),
        (&singles, "minVersion=0", "minVersion must be one whole number from 1"),
        (&singles, "minVersion=2:1", "minVersion must be one whole number from 1"),
        (
            &singles,
            "wait=-1",
            "wait must be one whole number of milliseconds from 0 to 10000",
        ),
    ] {
        for path in paths {
            let problem = program.get(&format!("/api/posts{path}?{query}")).await.problem(400);
            assert!(
                problem["detail"].as_str().unwrap().starts_with(named),
                "{path}?{query}: {problem}"
            );
        }
    }
}
