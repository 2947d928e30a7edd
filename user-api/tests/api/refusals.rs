//! Bodies that are refused.

use reqwest::Method;
use serde_json::json;

use crate::{ready, user};

#[tokio::test]
async fn every_wrong_field_is_named_in_one_answer() {
    let program = ready().await;
    let answer = program.post("/api/users", &json!({})).await;
    assert_eq!(answer.wrong_fields(), ["name", "email", "status"]);
    let all_wrong = json!({"name": 123, "email": "x", "department": "", "status": "active"});
    let answer = program.post("/api/users", &all_wrong).await;
    assert_eq!(answer.wrong_fields(), ["name", "email", "department", "status"]);
    assert_eq!(program.get("/api/users").await.text, "[]");
}

#[tokio::test]
async fn a_field_that_no_view_could_take_is_refused() {
    let program = ready().await;
    for (field, value) in [
        ("name", json!(null)),
        ("name", json!("")),
        ("name", json!("  ")),
        ("name", json!(true)),
        ("name", json!(["n"])),
        ("name", json!({"n": 1})),
        ("name", json!("x".repeat(256))),
        ("name", json!("a\0b")),
        ("email", json!("hong")),
        ("email", json!("a".repeat(250) + "@b.com")),
        ("department", json!("x".repeat(256))),
        ("department", json!(7)),
        ("status", json!("SUSPENDED")),
        ("status", json!("A".repeat(51))),
        ("status", json!(1.5)),
    ] {
        let mut body = user("hong@example.com");
        body[field] = value.clone();
        let answer = program.post("/api/users", &body).await;
        assert_eq!(answer.wrong_fields(), [field], "{field} = {value}");
    }
    program.post("/api/users", &user("hong@example.com")).await;
    let partial = program.put("/api/users/1", &json!({"name": "n"})).await;
    assert_eq!(partial.wrong_fields(), ["email", "status"]);
}

#[tokio::test]
async fn an_email_that_is_taken_is_a_conflict() {
    let program = ready().await;
    program.post("/api/users", &user("a@example.com")).await;
    program.post("/api/users", &user("b@example.com")).await;
    let created = program.post("/api/users", &user("a@example.com")).await;
    let updated = program.put("/api/users/2", &user("a@example.com")).await;
    for answer in [created, updated] {
        let problem = answer.problem(409);
        assert_eq!(problem["errors"][0]["field"], "email");
        assert!(!answer.text.contains("users_email_key"), "{}", answer.text);
    }
}

#[tokio::test]
async fn what_is_not_one_json_object_is_refused_by_line_and_column() {
    let program = ready().await;
    for body in [
        "",
        " ",
        "null",
        "[]",
        "1",
        "true",
        "\"x\"",
        "{'name':'n'}",
        "{\"name\":\"n\",}",
        "{\"name\":\"n\"} {}",
        "{\"name\":\"n\",\"name\":\"m\"}",
        "{\"name\":\"\\ud83d\"}",
    ] {
        let problem = program.send(Method::POST, "/api/users", body).await.problem(400);
        assert!(problem["line"].is_u64() && problem["column"].is_u64(), "{body}");
    }
    let invalid = b"{\"name\":\"\xFF\"}".to_vec();
    program.send(Method::POST, "/api/users", invalid).await.problem(400);
    let utf16: Vec<u8> = "{}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    program.send(Method::POST, "/api/users", utf16).await.problem(400);

    let marked = format!("\u{FEFF}{}", user("hong@example.com"));
    let created = program.send(Method::POST, "/api/users", marked).await;
    assert_eq!(created.status, 201);
}

#[tokio::test]
async fn only_json_is_read() {
    let program = ready().await;
    let send = async |content_type: Option<&str>, email: &str| {
        let request = program.request(Method::POST, "/api/users");
        let request = match content_type {
            Some(content_type) => request.header("content-type", content_type),
            None => request,
        };
        rest_rig::answer(request.body(user(email).to_string())).await
    };
    for content_type in [None, Some("text/plain"), Some("text/json"), Some("x")] {
        let answer = send(content_type, "hong@example.com").await;
        answer.problem(415);
        assert_eq!(answer.header("accept"), "application/json, application/*+json");
    }
    for (content_type, email) in [
        ("application/json;charset=UTF-8", "a@example.com"),
        ("application/vnd.api+json", "b@example.com"),
    ] {
        assert_eq!(send(Some(content_type), email).await.status, 201);
    }
}

#[tokio::test]
async fn a_body_that_would_not_fit_an_event_is_refused() {
    let program = ready().await;
    let mut large = user("hong@example.com");
    large["ignored"] = json!("x".repeat(500_000));
    let taken = program.post("/api/users", &large).await;
    assert_eq!(taken.status, 201);
    large["ignored"] = json!("x".repeat(1_100_000));
    program.put("/api/users/1", &large).await.problem(413);

    // The body comes in chunks, so no header tells its length.
    let mut request = b"PUT /api/users/1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
        Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        .to_vec();
    for _ in 0..9 {
        request.extend(b"10000\r\n");
        request.extend([b' '; 0x10000]);
        request.extend(b"\r\n");
    }
    request.extend(b"0\r\n\r\n");
    let answer = program.raw(&request).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}
