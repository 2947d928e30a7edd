//! `/letters`: what an operator sees and does.

use reqwest::{Client, StatusCode, header};
use stack::eventually_ok;

use super::page::Page;
use super::server::{DEADLINE, Sent, Server, shared};

/// A browser of somebody who has logged in as an operator.
struct Operator<'s> {
    server: &'s Server,
    client: Client,
    cookie: String,
}

impl<'s> Operator<'s> {
    async fn log_in(server: &'s Server) -> Self {
        let client = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .expect("a client");
        let token = std::fs::read_to_string(server.console().token_file()).expect("a token");
        let body = format!("token={}", token.trim().replace('+', "%2B"));
        let request = client
            .post(server.console().url("/login"))
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        let answer = request.body(body).send().await.expect("an answer");
        let cookie = answer
            .headers()
            .get(header::SET_COOKIE)
            .and_then(|cookie| cookie.to_str().ok());
        let cookie = cookie
            .and_then(|cookie| cookie.split(';').next())
            .expect("a cookie")
            .to_owned();
        Self { server, client, cookie }
    }

    async fn get(&self, address: &str) -> Page {
        let request = self
            .client
            .get(self.server.console().url(address))
            .header(header::COOKIE, &self.cookie);
        Page::read(address, request.send().await.expect("an answer")).await
    }

    /// Sends a form. Returns the answer's status and where it leads.
    async fn post(&self, address: &str, fields: &[(&str, &str)]) -> (StatusCode, String) {
        let encode = |text: &str| text.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
        let body: Vec<String> = fields
            .iter()
            .map(|(name, value)| format!("{name}={}", encode(value)))
            .collect();
        let request = self
            .client
            .post(self.server.console().url(address))
            .header(header::COOKIE, &self.cookie)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        let answer = request.body(body.join("&")).send().await.expect("an answer");
        let to = answer
            .headers()
            .get(header::LOCATION)
            .and_then(|to| to.to_str().ok())
            .unwrap_or_default();
        (answer.status(), to.to_owned())
    }
}

/// Makes a letter, and waits until it is one. Returns its id.
async fn letter(server: &Server, key: &str, value: &str) -> String {
    server.produce(&[Sent {
        topic: "user-events",
        key: key.as_bytes(),
        value: value.as_bytes(),
        headers: Vec::new(),
    }]);
    let sql = format!("select max(id) from view_dead_letters where key = '{key}'");
    eventually_ok(DEADLINE, "a letter", || async {
        let rows = crate::e2e::rows::in_views(&server.pipeline, &sql).await;
        rows[0][0].clone().ok_or_else(|| anyhow::anyhow!("no letter yet"))
    })
    .await
    .expect("a letter")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_is_discarded_with_a_reason_and_only_by_an_operator_who_types_its_number() {
    let server = shared().await;
    let id = letter(&server, "letters-discard", "no event").await;
    let visitor = server.get(&format!("/letters/{id}")).await;
    assert!(
        visitor.text.contains("Log in with an operator's token") && !visitor.source.contains("Discard letter"),
        "{}",
        visitor.text
    );
    let operator = Operator::log_in(&server).await;
    let page = operator.get(&format!("/letters/{id}")).await;
    assert!(page.text.contains("cannot be edited and retried"), "{}", page.text);
    let csrf = page.csrf().to_owned();
    let open = format!("select count(*) from view_dead_letters where id = {id} and discarded_at is null");
    for (fields, status) in [
        (
            vec![("id", id.as_str()), ("reason", "sent twice"), ("confirm", &id)],
            403,
        ),
        (
            vec![
                ("csrf", csrf.as_str()),
                ("id", &id),
                ("reason", "sent twice"),
                ("confirm", "1000000"),
            ],
            422,
        ),
        (
            vec![("csrf", csrf.as_str()), ("id", &id), ("reason", ""), ("confirm", &id)],
            422,
        ),
    ] {
        let (got, _) = operator.post("/letters/discard", &fields).await;
        assert_eq!(got, status, "{fields:?}");
        assert_eq!(server.in_views(&open).await, "1");
    }
    let hostile = "<script>alert(1)</script> sent twice";
    let (status, to) = operator
        .post(
            "/letters/discard",
            &[("csrf", &csrf), ("id", &id), ("reason", hostile), ("confirm", &id)],
        )
        .await;
    assert!(status.is_redirection(), "{status} {to}");
    eventually_ok(DEADLINE, "it is discarded", || async {
        anyhow::ensure!(server.in_views(&open).await == "0");
        Ok(())
    })
    .await
    .expect("a discarded letter");
    let kept = server
        .in_views(&format!("select discard_reason from view_dead_letters where id = {id}"))
        .await;
    assert_eq!(kept, hostile);
    let audit = format!("select who || ': ' || reason from console_audit where command like '%discard%{id}%'");
    assert_eq!(server.in_views(&audit).await, format!("quickstart: {hostile}"));
    for address in [&to, "/letters?which=discarded", &format!("/letters/{id}"), "/audit"] {
        let page = operator.get(address).await;
        page.assert_harmless();
        assert!(
            page.text.contains("<script>alert(1)</script> sent twice"),
            "{address}: {}",
            page.text
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_of_a_reason_are_counted_and_retried_together() {
    let server = shared().await;
    let value = |version: i64| {
        format!(
            r#"{{"eventType":"USER_CREATED","userId":900001,"version":{version},"timestamp":"2026-01-01T00:00:00","user":{{"id":900001,"name":"n","email":"e900001@x","department":"d","status":"SLEEPING","createdAt":"2026-01-01T00:00:00","updatedAt":"2026-01-01T00:00:00"}}}}"#
        )
    };
    let views = stack::postgres::connect(
        &server
            .pipeline
            .database_url(stack::pipeline::VIEWS_DATABASE)
            .expect("a URL"),
    )
    .await
    .expect("a session");
    // Somebody forbids what this event has, and takes it back later.
    views
        .batch_execute("alter table user_view add constraint nobody_sleeps check (status <> 'SLEEPING')")
        .await
        .expect("a constraint");
    letter(&server, "900001", &value(1)).await;
    let second = letter(&server, "900001", &value(2)).await;
    let reason = server
        .in_views("select reason from view_dead_letters where key = '900001' and reason is not null")
        .await;
    let operator = Operator::log_in(&server).await;
    let page = operator.get("/letters").await;
    page.assert_harmless();
    assert!(
        page.text.contains(&reason) && page.text.contains("Waiting behind"),
        "{}",
        page.text
    );
    let csrf = page.csrf().to_owned();
    eventually_ok(DEADLINE, "both are letters", || async {
        let count = server
            .in_views("select count(*) from view_dead_letters where key = '900001'")
            .await;
        anyhow::ensure!(count == "2", "{count}");
        Ok(())
    })
    .await
    .expect("two letters");
    let parked = operator
        .get(&format!(
            "/letters/{}",
            server
                .in_views("select max(id) from view_dead_letters where key = '900001'")
                .await
        ))
        .await;
    assert!(
        parked.text.contains("Another letter of its key comes first"),
        "{second}: {}",
        parked.text
    );
    views
        .batch_execute("alter table user_view drop constraint nobody_sleeps")
        .await
        .expect("it goes");
    let (status, to) = operator
        .post("/letters/retry", &[("csrf", &csrf), ("reason", &reason)])
        .await;
    assert!(status.is_redirection(), "{status} {to}");
    eventually_ok(DEADLINE, "the view has the latest", || async {
        let version = server
            .in_views("select max(version) from user_view where user_id = 900001")
            .await;
        anyhow::ensure!(version == "2", "{version}");
        Ok(())
    })
    .await
    .expect("both are applied");
}
