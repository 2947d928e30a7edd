//! The pages, as a browser asks for them, while every part of the pipeline is away.

#![allow(clippy::unwrap_used, reason = "a test's helper fails by panicking, as the test does")]

mod console_under_test;

use std::time::{Duration, Instant};

use reqwest::{Response, StatusCode};
use stack::eventually_ok;

use self::console_under_test::Console;

const PAGES: [&str; 11] = [
    "/",
    "/events",
    "/trace",
    "/groups",
    "/slots",
    "/views",
    "/views/user_view",
    "/letters",
    "/audit",
    "/login",
    "/nowhere",
];
/// A page answers within this, whatever is away.
const ANSWER_MAX: Duration = Duration::from_secs(1);

async fn text(answer: Response) -> String {
    answer.text().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_page_answers_within_a_second_with_every_part_away_and_names_the_parts() {
    let console = Console::start("127.0.0.1:8080").await;
    for round in ["nothing is known yet", "all is away"] {
        for path in PAGES {
            let begin = Instant::now();
            let answer = console.get(path).send().await.unwrap();
            let expected = if path == "/nowhere" {
                StatusCode::NOT_FOUND
            } else {
                StatusCode::OK
            };
            assert_eq!(answer.status(), expected, "{path}, {round}");
            let page = text(answer).await;
            assert!(begin.elapsed() < ANSWER_MAX, "{path}: {:?}, {round}", begin.elapsed());
            assert_eq!(page.matches("<h1").count(), 1, "{path}");
        }
        console.wait_until_all_is_away().await;
    }
    let page = text(console.get("/").send().await.unwrap()).await;
    for part in [
        "database users_db",
        "database views_db",
        "relay users",
        "relay posts",
        "Kafka",
        "view-builder",
    ] {
        assert!(
            page.contains(&format!("<strong>{part}</strong> is away since <time")),
            "{part} in {page}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_page_has_a_script_or_a_style_in_itself_and_all_have_the_policy() {
    let console = Console::start("127.0.0.1:8080").await;
    let (cookie, _) = console.log_in(&console.operator).await;
    for path in PAGES {
        let answer = console.get(path).header("cookie", &cookie).send().await.unwrap();
        let policy = answer.headers()["content-security-policy"].to_str().unwrap().to_owned();
        assert!(
            policy.contains("default-src 'none'") && policy.contains("script-src 'self';"),
            "{policy}"
        );
        assert!(!policy.contains("unsafe"), "{policy}");
        let page = text(answer).await;
        for forbidden in [
            "<style",
            " style=",
            "<script>",
            "javascript:",
            " onclick=",
            " onload=",
            "=\"http://",
            "=\"https://",
        ] {
            assert!(!page.contains(forbidden), "{path} has {forbidden}");
        }
        let scripts = page.matches("<script").count();
        assert_eq!(scripts, page.matches("<script defer src=\"/assets/").count(), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_needs_an_operator_a_token_of_the_session_and_our_own_page() {
    let console = Console::start("127.0.0.1:8080").await;
    let path = "/relays/users/pause";
    let anybody = console.post(path, &[("reason", "a test")]).send().await.unwrap();
    assert_eq!(anybody.status(), StatusCode::UNAUTHORIZED);
    let wrong = console.post("/login", &[("token", "nonsense")]).send().await.unwrap();
    assert_eq!(wrong.status(), StatusCode::FORBIDDEN);
    assert!(!wrong.headers().contains_key("set-cookie"));

    let (cookie, csrf) = console.log_in(&console.operator).await;
    let (other_cookie, other_csrf) = console.log_in(&console.operator).await;
    assert_ne!(csrf, other_csrf);
    for (fields, what) in [
        (&[("reason", "a test")][..], "without a token"),
        (&[("reason", "a test"), ("csrf", "")], "with an empty token"),
        (
            &[("reason", "a test"), ("csrf", &other_csrf)],
            "with another session's token",
        ),
    ] {
        let answer = console
            .post(path, fields)
            .header("cookie", &cookie)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{what}");
    }
    let good = [("reason", "a test"), ("csrf", csrf.as_str())];
    for (header, value) in [
        ("origin", "http://evil.example"),
        ("origin", "null"),
        ("sec-fetch-site", "cross-site"),
    ] {
        let answer = console
            .post(path, &good)
            .header("cookie", &cookie)
            .header(header, value)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{header}: {value}");
    }
    // A reader's page has no form, so no token either; nobody but an operator may use one.
    let answer = console
        .post("/login", &[("token", &console.reader)])
        .send()
        .await
        .unwrap();
    let reader = answer.headers()["set-cookie"]
        .to_str()
        .unwrap()
        .split(';')
        .next()
        .unwrap()
        .to_owned();
    let answer = console
        .post(path, &good)
        .header("cookie", &reader)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    assert!(text(answer).await.contains("may look and not change"));

    let left = console
        .post("/logout", &[])
        .header("cookie", &other_cookie)
        .send()
        .await
        .unwrap();
    assert_eq!(left.status(), StatusCode::SEE_OTHER);
    let answer = console
        .post(path, &[("reason", "a test"), ("csrf", &other_csrf)])
        .header("cookie", &other_cookie)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "after logging out");
    assert!(!console.program_was_run());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_row_in_the_audit_nothing_is_changed() {
    let console = Console::start("127.0.0.1:8080").await;
    let (cookie, csrf) = console.log_in(&console.operator).await;
    let fields = [("reason", "a test"), ("csrf", csrf.as_str())];
    let answer = console
        .post("/relays/users/pause", &fields)
        .header("cookie", &cookie)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let told = text(answer).await;
    assert!(
        told.contains("Nothing is changed") && told.contains("The audit cannot be written"),
        "{told}"
    );
    assert!(!console.program_was_run());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_names_another_host_is_refused() {
    let console = Console::start("127.0.0.1:8080").await;
    for host in ["evil.example", "evil.example:8080", "localhost.evil.example"] {
        let answer = console.get("/").header("host", host).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::MISDIRECTED_REQUEST, "{host}");
    }
    let answer = console.get("/").header("host", "localhost:8080").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_an_address_that_others_reach_looking_needs_a_token_too() {
    let console = Console::start("0.0.0.0:8080").await;
    for path in ["/", "/events", "/audit", "/live", "/jobs/1"] {
        let answer = console.get(path).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::SEE_OTHER, "{path}");
        assert_eq!(answer.headers()["location"], "/login");
    }
    for path in ["/login", "/assets/console.css"] {
        assert_eq!(
            console.get(path).send().await.unwrap().status(),
            StatusCode::OK,
            "{path}"
        );
    }
    let (cookie, _) = console.log_in(&console.operator).await;
    let answer = console.get("/").header("cookie", &cookie).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_somebody_looks_the_pipeline_says_what_the_programs_own_status_says() {
    let console = Console::start("127.0.0.1:8080").await;
    let told = eventually_ok(Duration::from_secs(30), "the page repeats the status", async || {
        let page = text(console.get("/").send().await?).await;
        let repeats =
            page.contains("The slot was dropped.") && page.contains("<code>outbox-relay recover --here</code>");
        anyhow::ensure!(repeats, "{page}");
        Ok(())
    });
    told.await.unwrap_or_else(|err| panic!("{err:#}"));
    assert!(!console.program_was_run());
}
