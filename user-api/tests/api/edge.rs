//! HTTP itself: paths, methods, headers.

use reqwest::Method;
use rest_rig::answer;

use crate::{ready, user};

#[tokio::test]
async fn an_id_is_digits_and_exists() {
    let program = ready().await;
    for id in [
        "abc",
        "1.0",
        "%20",
        "%201",
        "+1",
        "0x1",
        "1;v=2",
        "한글",
        "9223372036854775808",
    ] {
        program.get(&format!("/api/users/{id}")).await.problem(400);
        program.delete(&format!("/api/users/{id}")).await.problem(400);
    }
    for id in ["0", "-1", "1", "9223372036854775807"] {
        program.get(&format!("/api/users/{id}")).await.problem(404);
    }
}

#[tokio::test]
async fn an_unknown_path_is_not_found() {
    let program = ready().await;
    for path in [
        "/",
        "/error",
        "/api/users/",
        "/api/users/1/",
        "//api/users",
        "/API/users",
        "/api/개발팀",
    ] {
        program.get(path).await.problem(404);
    }
}

#[tokio::test]
async fn a_path_that_is_no_text_is_refused() {
    let program = ready().await;
    for path in ["/api/users/%00", "/api/users/%FF", "/api/users/%zz", "/%"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let answer = program.raw(request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{path}: {answer}");
        assert!(answer.contains("application/problem+json"), "{path}: {answer}");
    }
    let raw = b"GET /api/users/\xFF\xFE HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert!(program.raw(raw).await.starts_with("HTTP/1.1 400 "));
}

#[tokio::test]
async fn a_wrong_method_is_told_the_right_ones() {
    let program = ready().await;
    for (method, path, allow) in [
        (Method::PATCH, "/api/users/1", ["GET", "PUT", "DELETE"].as_slice()),
        (Method::DELETE, "/api/users", &["GET", "POST"]),
        (Method::TRACE, "/api/users", &["GET", "POST"]),
        (Method::POST, "/readyz", &["GET"]),
    ] {
        let refused = answer(program.request(method.clone(), path)).await;
        refused.problem(405);
        let told = answer(program.request(Method::OPTIONS, path)).await;
        assert_eq!((told.status.as_u16(), told.text.as_str()), (204, ""));
        for answer in [refused, told] {
            let allowed: Vec<_> = answer.header("allow").split(',').map(str::trim).collect();
            assert!(allow.iter().all(|method| allowed.contains(method)), "{allowed:?}");
        }
    }
}

#[tokio::test]
async fn head_is_get_without_a_body() {
    let program = ready().await;
    program.post("/api/users", &user("hong@example.com")).await;
    for (path, status) in [("/api/users/1", 200), ("/api/users", 200), ("/api/users/2", 404)] {
        let head = answer(program.request(Method::HEAD, path)).await;
        assert_eq!((head.status.as_u16(), head.text.as_str()), (status, ""));
    }
}

#[tokio::test]
async fn only_json_is_answered() {
    let program = ready().await;
    let ask = |method: Method, accept: &'static str| {
        let request = program.request(method, "/api/users").header("accept", accept);
        answer(
            request
                .header("content-type", "application/json")
                .body(user("hong@example.com").to_string()),
        )
    };
    for accept in ["application/xml", "text/csv", "nonsense", "text/html"] {
        ask(Method::GET, accept).await.problem(406);
        ask(Method::POST, accept).await.problem(406);
    }
    assert_eq!(
        program.get("/api/users").await.text,
        "[]",
        "refused before anything was done"
    );
    for accept in [
        "*/*",
        "application/problem+json",
        "application/json;q=0",
        "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    ] {
        assert_eq!(ask(Method::GET, accept).await.status, 200, "{accept}");
    }
    let missing = program
        .request(Method::GET, "/api/users/7")
        .header("accept", "text/html");
    answer(missing).await.problem(406);
}

#[tokio::test]
async fn a_request_that_breaks_http_is_refused() {
    let program = ready().await;
    let long = "x".repeat(9000);
    for (request, status) in [
        ("GET /api/users HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(), 400),
        (
            format!("GET /{long} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
            414,
        ),
        (
            format!("GET / HTTP/1.1\r\nHost: x\r\nX: {long}\r\nConnection: close\r\n\r\n"),
            431,
        ),
        (
            "POST /api/users HTTP/1.1\r\nHost: x\r\nExpect: magic\r\nConnection: close\r\n\r\n".to_owned(),
            417,
        ),
        (
            "GET /api/users?a|b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned(),
            200,
        ),
    ] {
        let answer = program.raw(request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {answer}");
    }
}

#[tokio::test]
async fn a_body_may_come_in_chunks() {
    let program = ready().await;
    let body = user("hong@example.com").to_string();
    let (first, second) = body.split_at(18);
    let request = format!(
        "POST /api/users HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n\
        Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n",
        first.len(),
        second.len(),
    );
    let answer = program.raw(request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
}

#[tokio::test]
async fn every_request_is_timed_by_its_route() {
    let program = ready().await;
    program.get("/api/users/1").await;
    program.get("/api/users/2").await;
    program.get("/nowhere/else").await;
    let metrics = program.get("/metrics").await.text;
    for line in [
        "http_request_duration_seconds_count{method=\"GET\",route=\"/api/users/{id}\",status=\"404\"} 2",
        "http_request_duration_seconds_count{method=\"GET\",route=\"unmatched\",status=\"404\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}
