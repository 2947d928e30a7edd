//! What is answered when all is well.

use reqwest::Method;
use rest_rig::answer;
use serde_json::{Value, json};
use sqlx::Executor;

use crate::{ready, user};

#[tokio::test]
async fn a_created_user_is_answered_whole_with_its_location() {
    let program = ready().await;
    let created = program.post("/api/users", &user("hong@example.com")).await;
    assert_eq!(created.status, 201);
    assert_eq!(created.header("location"), "/api/users/1");
    assert_eq!(created.header("content-type"), "application/json");
    assert_eq!(created.header("etag"), "\"1\"");
    let body = created.json();
    assert_eq!(
        created.text,
        format!(
            r#"{{"id":1,"name":"홍길동","email":"hong@example.com","department":"개발팀","status":"ACTIVE","createdAt":{},"updatedAt":{},"version":1}}"#,
            body["createdAt"], body["updatedAt"]
        ),
        "the fields of the replaced system in its order"
    );
    let created_at = body["createdAt"].as_str().unwrap();
    assert_eq!(&created_at[10..11], "T");
    assert!(!created_at.contains(['Z', '+']), "local, without a zone");

    let read = program.get("/api/users/1").await;
    assert_eq!((read.status.as_u16(), &read.text), (200, &created.text));
}

#[tokio::test]
async fn an_update_replaces_the_four_fields_and_keeps_the_rest() {
    let program = ready().await;
    let created = program.post("/api/users", &user("hong@example.com")).await.json();
    let change = json!({
        "id": "not even a number", "createdAt": [2025, 7, 17], "updatedAt": "never", "version": -1,
        "name": "홍길동 수정", "email": "hong@example.com", "status": "INACTIVE", "nickname": {"x": 1},
    });
    let updated = program.put("/api/users/1", &change).await;
    assert_eq!(updated.status, 200);
    assert_eq!(updated.header("etag"), "\"2\"");
    let updated = updated.json();
    assert_eq!(updated["id"], 1);
    assert_eq!(updated["name"], "홍길동 수정");
    assert_eq!(updated["department"], Value::Null);
    assert_eq!(updated["status"], "INACTIVE");
    assert_eq!(updated["version"], 2);
    assert_eq!(updated["createdAt"], created["createdAt"]);
    assert_ne!(updated["updatedAt"], created["updatedAt"]);
    assert_eq!(program.get("/api/users/1").await.json(), updated);
}

#[tokio::test]
async fn a_deleted_user_is_gone() {
    let program = ready().await;
    program.post("/api/users", &user("hong@example.com")).await;
    let deleted = program.delete("/api/users/1").await;
    assert_eq!((deleted.status.as_u16(), deleted.text.as_str()), (204, ""));
    program.delete("/api/users/1").await.problem(404);
    program.get("/api/users/1").await.problem(404);
    program
        .put("/api/users/1", &user("hong@example.com"))
        .await
        .problem(404);
    let again = program.post("/api/users", &user("hong@example.com")).await;
    assert_eq!(again.json()["id"], 2, "no id is given twice");
}

#[tokio::test]
async fn texts_are_kept_as_they_are() {
    let program = ready().await;
    let name = "😀<b>\"q\"</b>\n\\ 'o' é/\t\u{7f}";
    let sent = json!({
        "name": name, "email": "esc@example.com", "department": "가".repeat(255), "status": "ACTIVE",
    });
    let created = program.post("/api/users", &sent).await;
    assert_eq!(created.status, 201);
    let read = program.get("/api/users/1").await.json();
    assert_eq!(read["name"], name);
    assert_eq!(read["department"], "가".repeat(255));
}

#[tokio::test]
async fn a_list_is_whole_and_ordered_or_one_page_of_it() {
    let program = ready().await;
    assert_eq!(program.get("/api/users?x=|").await.text, "[]");
    program
        .database()
        .sql()
        .await
        .execute(
            "insert into users (name, email, status) \
            select 'n', n || '@example.com', 'ACTIVE' from generate_series(1, 2500) as n",
        )
        .await
        .unwrap();
    let ids = |list: &Value| -> Vec<i64> {
        let users = list.as_array().unwrap().iter();
        users.map(|user| user["id"].as_i64().unwrap()).collect()
    };
    let all = program.get("/api/users").await.json();
    assert_eq!(ids(&all), (1..=2500).collect::<Vec<_>>());
    assert_eq!(all[0], program.get("/api/users/1").await.json());

    let page = program.get("/api/users?after=2490&limit=5").await;
    assert_eq!(ids(&page.json()), [2491, 2492, 2493, 2494, 2495]);
    let next = "</api/users?limit=5&after=2495>; rel=\"next\"";
    assert_eq!(page.header("link"), next);
    let last = program.get("/api/users?limit=5&after=2498").await;
    assert_eq!(ids(&last.json()), [2499, 2500]);
    assert!(!last.headers.contains_key("link"));
    let rest = program.get("/api/users?after=1000").await.json();
    assert_eq!(ids(&rest), (1001..=2500).collect::<Vec<_>>());
    for query in ["limit=0", "limit=1001", "limit=x", "after=x"] {
        program.get(&format!("/api/users?{query}")).await.problem(400);
    }
}

#[tokio::test]
async fn a_client_that_has_the_user_already_is_told_so() {
    let program = ready().await;
    program.post("/api/users", &user("hong@example.com")).await;
    let ask = |tag: &'static str| {
        answer(
            program
                .request(Method::GET, "/api/users/1")
                .header("if-none-match", tag),
        )
    };
    let known = ask("\"1\"").await;
    assert_eq!((known.status.as_u16(), known.text.as_str()), (304, ""));
    assert_eq!(ask("\"0\"").await.status, 200);
}

#[tokio::test]
async fn a_read_that_names_a_version_is_answered_from_the_row_itself() {
    let program = ready().await;
    program.post("/api/users", &user("hong@example.com")).await;
    let written = program.put("/api/users/1", &user("hong@example.com")).await;
    assert_eq!(written.header("event-version"), "2");
    for version in [1, 2] {
        let read = program.get(&format!("/api/users/1?minVersion={version}")).await;
        assert_eq!((read.status.as_u16(), &read.text), (200, &written.text));
    }
    let problem = program.get("/api/users/1?minVersion=3&wait=10000").await.problem(404);
    assert_eq!(problem["type"], "urn:problem-type:version-not-written");
    assert_eq!((&problem["minVersion"], &problem["version"]), (&json!(3), &json!(2)));
    for (query, named) in [
        ("minVersion=0", "minVersion must"),
        ("minVersion=1&wait=x", "wait must"),
    ] {
        let problem = program.get(&format!("/api/users/1?{query}")).await.problem(400);
        assert!(problem["detail"].as_str().unwrap().starts_with(named), "{problem}");
    }
    program.delete("/api/users/1").await;
    let gone = program.get("/api/users/1?minVersion=3").await.problem(404);
    assert_eq!(gone["type"], "about:blank");
}

#[tokio::test]
async fn of_eight_changes_of_the_same_version_one_is_made_and_the_others_are_told() {
    let program = ready().await;
    let tag = program.post("/api/users", &user("hong@example.com")).await;
    let tag = tag.header("etag").to_owned();
    let change = |n: usize| {
        let body = user(&format!("hong{n}@example.com")).to_string();
        let request = program
            .request(Method::PUT, "/api/users/1")
            .header("content-type", "application/json")
            .header("if-match", &tag);
        answer(request.body(body))
    };
    let answers = futures_util::future::join_all((0..8).map(change)).await;
    let (made, told): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status == 200);
    assert_eq!((made.len(), told.len()), (1, 7));
    for answer in &told {
        let problem = answer.problem(412);
        assert_eq!(problem["type"], "urn:problem-type:version-changed");
        assert_eq!((&problem["version"], answer.header("etag")), (&json!(2), "\"2\""));
    }
    let now = program.get("/api/users/1").await;
    assert_eq!(now.text, made[0].text);
}

#[tokio::test]
async fn a_change_of_a_version_that_is_past_is_refused_and_changes_nothing() {
    let program = ready().await;
    program.post("/api/users", &user("hong@example.com")).await;
    let second = program.put("/api/users/1", &user("hong@example.com")).await;
    let delete = |tag: &'static str| answer(program.request(Method::DELETE, "/api/users/1").header("if-match", tag));
    for tag in ["\"1\"", "W/\"2\"", "\"other\"", "\"1\", \"3\""] {
        delete(tag).await.problem(412);
    }
    let problem = delete("2").await.problem(400);
    assert!(
        problem["detail"].as_str().unwrap().starts_with("If-Match must be"),
        "{problem}"
    );
    assert_eq!(program.get("/api/users/1").await.text, second.text);
    assert_eq!(delete("\"1\", \"2\"").await.status, 204);
    // A user that does not exist has no version that could differ. So the answer is not 412.
    delete("\"2\"").await.problem(404);
    delete("*").await.problem(404);
}
