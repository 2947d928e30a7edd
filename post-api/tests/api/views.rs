//! What is answered from the views.

use serde_json::json;
use sqlx::Executor;

use crate::ready;

#[tokio::test]
async fn users_are_answered_as_the_view_has_them() {
    let program = ready().await;
    let user = r#"{"userId":2,"name":"장웅","email":"changwng@example.com","department":"개발팀","status":"ACTIVE","createdAt":"2026-11-22T10:00:00","updatedAt":"2026-11-22T10:00:00.5","version":1,"lastProcessedAt":"2026-11-22T10:00:01"}"#;
    let read = program.get("/api/posts/users/2").await;
    assert_eq!((read.status.as_u16(), read.text.as_str()), (200, user));
    program.get("/api/posts/users/9").await.problem(404);
    program.get("/api/posts/users/x").await.problem(400);

    let all = program.get("/api/posts/users").await.json();
    let ids: Vec<_> = all
        .as_array()
        .unwrap()
        .iter()
        .map(|user| user["userId"].clone())
        .collect();
    assert_eq!(ids, [1, 2, 3]);
    let of_department = program.get("/api/posts/users/department/개발팀").await;
    assert_eq!(of_department.text, format!("[{user}]"));
    assert_eq!(program.get("/api/posts/users/department/none").await.text, "[]");
}

#[tokio::test]
async fn department_stats_are_answered_with_those_of_no_department_first() {
    let program = ready().await;
    assert_eq!(
        program.get("/api/posts/department-stats").await.text,
        r#"[{"department":null,"userCount":1,"activeUsers":1,"inactiveUsers":0,"lastUpdated":"2026-11-22T10:00:02.25"},{"department":"R/D","userCount":1,"activeUsers":0,"inactiveUsers":1,"lastUpdated":"2026-11-22T10:00:03"},{"department":"개발팀","userCount":1,"activeUsers":1,"inactiveUsers":0,"lastUpdated":"2026-11-22T10:00:01"}]"#
    );
    program
        .database()
        .sql()
        .await
        .execute("delete from user_view")
        .await
        .unwrap();
    assert_eq!(program.get("/api/posts/department-stats").await.text, "[]");
}

#[tokio::test]
async fn views_are_only_read() {
    let program = ready().await;
    for path in ["/api/posts/users", "/api/posts/users/1", "/api/posts/department-stats"] {
        program.put(path, &json!({})).await.problem(405);
        program.post(path, &json!({})).await.problem(405);
    }
}

#[tokio::test]
async fn a_rebuilt_view_is_read_from_the_moment_it_is_swapped_in() {
    let program = ready().await;
    program.post("/api/posts", &crate::post(1)).await;
    for round in 0..20 {
        program.get("/api/posts/1").await;
        program.get("/api/posts/users").await;
        let swap = format!(
            "set role view_builder; \
            create table user_view_{round} (like user_view including all); \
            alter table user_view_{round} add column further_{round} int; \
            insert into user_view_{round} select * from user_view; \
            update user_view_{round} set name = 'round {round}'; \
            drop table user_view; \
            alter table user_view_{round} rename to user_view"
        );
        let mut sql = program.database().sql().await;
        sql.execute(sqlx::AssertSqlSafe(swap)).await.unwrap();
        let name = json!(format!("round {round}"));
        assert_eq!(program.get("/api/posts/1").await.json()["authorName"], name);
        assert_eq!(program.get("/api/posts/users").await.json()[0]["name"], name);
    }
}
