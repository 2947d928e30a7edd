//! Posts and their authors.

use reqwest::Method;
use rest_rig::answer;
use serde_json::{Value, json};
use sqlx::Executor;

use crate::{ids, post, ready};

#[tokio::test]
async fn a_created_post_is_answered_whole_with_its_author() {
    let program = ready().await;
    let created = program.post("/api/posts", &post(2)).await;
    assert_eq!(created.status, 201);
    assert_eq!(created.header("location"), "/api/posts/1");
    let body = created.json();
    assert_eq!(
        created.text,
        format!(
            r#"{{"id":1,"title":"안녕하세요","content":"첫 번째 포스트입니다.","authorId":2,"authorName":"장웅","authorEmail":"changwng@example.com","authorDepartment":"개발팀","createdAt":{},"updatedAt":{},"version":1}}"#,
            body["createdAt"], body["updatedAt"]
        ),
        "the fields of the replaced system in its order"
    );
    let read = program.get("/api/posts/1").await;
    assert_eq!((read.status.as_u16(), &read.text), (200, &created.text));
    assert_eq!(read.header("etag"), created.header("etag"));
}

#[tokio::test]
async fn the_author_is_who_the_view_says_now() {
    let program = ready().await;
    let mut sql = program.database().sql().await;
    let forged = json!({
        "title": "t", "content": "", "authorId": 9, "authorName": "forged", "authorEmail": "f@x", "authorDepartment": "f",
    });
    let unknown = program.post("/api/posts", &forged).await;
    assert_eq!(unknown.status, 201);
    let author =
        |post: &Value| [&post["authorName"], &post["authorEmail"], &post["authorDepartment"]].map(Clone::clone);
    assert_eq!(author(&unknown.json()), [Value::Null, Value::Null, Value::Null]);

    sql.execute(
        "insert into user_view values (9, '나중', 'later@example.com', null, 'ACTIVE', now(), now(), 1, now())",
    )
    .await
    .unwrap();
    let known = program.get("/api/posts/1").await;
    assert_eq!(
        author(&known.json()),
        [json!("나중"), json!("later@example.com"), Value::Null]
    );
    assert_ne!(known.header("etag"), unknown.header("etag"));

    sql.execute("update user_view set name = '바뀐', version = 2 where user_id = 9")
        .await
        .unwrap();
    let old_tag = known.header("etag").to_owned();
    let request = program
        .request(Method::GET, "/api/posts/1")
        .header("if-none-match", old_tag);
    let renamed = answer(request).await;
    assert_eq!(renamed.json()["authorName"], "바뀐");

    sql.execute("delete from user_view where user_id = 9").await.unwrap();
    let gone = program.get("/api/posts/1").await;
    assert_eq!(author(&gone.json()), [Value::Null, Value::Null, Value::Null]);
    assert_eq!(gone.json()["authorId"], 9);
}

#[tokio::test]
async fn an_update_replaces_the_three_fields_and_keeps_the_rest() {
    let program = ready().await;
    let created = program.post("/api/posts", &post(2)).await.json();
    let change = json!({"id": 3, "title": "수정", "content": "바뀐 내용", "authorId": 1, "createdAt": "2020"});
    let updated = program.put("/api/posts/1", &change).await;
    assert_eq!(updated.status, 200);
    let updated = updated.json();
    assert_eq!((&updated["id"], &updated["version"]), (&json!(1), &json!(2)));
    assert_eq!(updated["authorName"], "홍길동");
    assert_eq!(updated["createdAt"], created["createdAt"]);
    assert_eq!(program.get("/api/posts/1").await.json(), updated);
}

#[tokio::test]
async fn a_deleted_post_is_gone() {
    let program = ready().await;
    program.post("/api/posts", &post(2)).await;
    assert_eq!(program.delete("/api/posts/1").await.status, 204);
    program.delete("/api/posts/1").await.problem(404);
    program.get("/api/posts/1").await.problem(404);
    program.put("/api/posts/1", &post(2)).await.problem(404);
}

#[tokio::test]
async fn lists_are_whole_and_ordered() {
    let program = ready().await;
    assert_eq!(program.get("/api/posts").await.text, "[]");
    program
        .database()
        .sql()
        .await
        .execute(
            "insert into posts (title, content, author_id) select 't', 'c', 1 + n % 2 from generate_series(1, 250) as n",
        )
        .await
        .unwrap();
    let all = program.get("/api/posts").await.json();
    assert_eq!(ids(&all), (1..=250).collect::<Vec<_>>());
    assert_eq!(all[0], program.get("/api/posts/1").await.json());
    let of_department = program.get("/api/posts/by-department/개발팀").await.json();
    assert_eq!(ids(&of_department), (1..=250).step_by(2).collect::<Vec<_>>());
    let page = program.get("/api/posts/by-department/개발팀?after=100&limit=2").await;
    assert_eq!(ids(&page.json()), [101, 103]);
    assert!(page.header("link").contains("after=103"));
}

#[tokio::test]
async fn a_department_may_come_as_raw_bytes_and_have_a_slash() {
    let program = ready().await;
    program.post("/api/posts", &post(2)).await;
    program.post("/api/posts", &post(3)).await;
    let raw = async |path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        program.raw(request.as_bytes()).await
    };
    let encoded = program
        .get("/api/posts/by-department/%EA%B0%9C%EB%B0%9C%ED%8C%80")
        .await;
    assert_eq!(ids(&encoded.json()), [1]);
    let answer = raw("/api/posts/by-department/개발팀").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.ends_with(&encoded.text), "{answer}");
    let users = raw("/api/posts/users/department/개발팀").await;
    assert!(users.contains(r#""userId":2"#), "{users}");

    let slash = program.get("/api/posts/by-department/R%2FD").await.json();
    assert_eq!(ids(&slash), [2]);
    assert_eq!(program.get("/api/posts/by-department/%25").await.text, "[]");
    for path in ["%00", "a%00", "%FF", "%zz"] {
        let answer = raw(&format!("/api/posts/by-department/{path}")).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{path}: {answer}");
    }
}

#[tokio::test]
async fn a_change_names_the_version_of_the_post_whatever_its_author_has_become_since() {
    let program = ready().await;
    let mut sql = program.database().sql().await;
    let created = program.post("/api/posts", &post(2)).await;
    let tag = created.header("etag").to_owned();
    let change = |method: Method, tag: &str| {
        let request = program
            .request(method, "/api/posts/1")
            .header("content-type", "application/json")
            .header("if-match", tag);
        answer(request.body(post(2).to_string()))
    };
    sql.execute("update user_view set name = '바뀐', version = version + 1 where user_id = 2")
        .await
        .unwrap();
    let changed = change(Method::PUT, &tag).await;
    assert_eq!(changed.status, 200);
    let again = change(Method::PUT, &tag).await;
    assert_eq!(again.problem(412)["version"], 2);
    assert_eq!(again.header("etag"), changed.header("etag"));
    change(Method::DELETE, &tag).await.problem(412);
    assert_eq!(program.get("/api/posts/1").await.text, changed.text);
    assert_eq!(change(Method::DELETE, changed.header("etag")).await.status, 204);
}
