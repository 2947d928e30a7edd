//! No password, token, key or value of a row leaves the relay by a log or a metric, whatever it logs and whatever goes wrong.
//!
//! Every secret and every value of a row here begins with `canary-`, so one search finds them all.

use std::time::Duration;

use rig::rig::{ARRIVAL_DEADLINE, READY_DEADLINE};
use rig::{Rig, relay_exit};

use crate::relay::secured::{PASSWORD, Secured, token};

const CANARY: &str = "canary-";
/// The password of the Postgres role, with characters that have a meaning in URLs. And the same password as a URL writes it.
const DATABASE_PASSWORD: &str = "canary-pg@:/?#%1 ä";
const DATABASE_PASSWORD_IN_URL: &str = "canary-pg%40%3A%2F%3F%23%251%20%C3%A4";

/// A rig whose relay uses a secret for each login, and logs as much as it can.
async fn tracing_rig(secured: &Secured, name: &str, properties: &str) -> Rig {
    let properties = format!("{properties}\ndebug=all\nssl.key.password=canary-key-password");
    let mut rig = secured.rig(name, "LOGIN", &properties).await;
    let (url, topic) = (database_url(&rig, DATABASE_PASSWORD_IN_URL), rig.topic());
    rig.relay = rig
        .relay
        .env("DATABASE_URL", &url)
        .env("LOG", "trace")
        .env("TOPICS", &topic)
        .env(
            "ROUTER_OPTIONS",
            "route.topic.replacement=${routedByValue}\ntable.fields.additional.placement=type:header,shard:partition",
        );
    rig.sql("alter table outbox add shard int").await;
    rig
}

fn database_url(rig: &Rig, password: &str) -> String {
    let port = rig.servers.postgres.port();
    format!("postgres://secretive:{password}@127.0.0.1:{port}/{}", rig.name())
}

/// Inserts a row whose values are canaries.
async fn insert_canaries(rig: &Rig, payload: &str, shard: &str) {
    let topic = rig.topic();
    rig.sql(&format!(
        "insert into outbox (aggregatetype, aggregateid, type, payload, shard)
         values ('{topic}', 'canary-key', 'canary-header', {payload}, {shard})"
    ))
    .await;
}

const PAYLOAD: &str = r#"'{"id": "canary-id", "text": "canary-payload"}'"#;

/// Everything that the relay's admin port says.
async fn scrape_admin_port(rig: &Rig) -> String {
    let mut text = String::new();
    for path in ["/metrics", "/readyz", "/livez"] {
        let answer = reqwest::get(rig.relay.url(path)).await.expect("an answer");
        text += &answer.text().await.expect("text");
    }
    text
}

/// Asserts that `text` has neither a canary nor one of the `secrets`. `what` names the text.
fn assert_tells_no_secret(what: &str, text: &str, secrets: &[&str]) {
    assert!(!text.is_empty(), "{what}: there is something to search");
    for secret in [&[CANARY], secrets].concat() {
        let told = text.lines().find(|line| line.contains(secret));
        assert_eq!(told, None, "{what} tells a secret");
    }
}

#[tokio::test]
async fn a_full_trace_of_a_life_with_failures_tells_no_secret_and_no_row_value() {
    let secured = Secured::get().await;
    secured.create_role("secretive", DATABASE_PASSWORD).await;
    let login = format!(
        "{}\nsasl.username=relay\nsasl.password={PASSWORD}\nssl.certificate.location={}\nssl.key.location={}",
        secured.login("SCRAM-SHA-256"),
        secured.path("client.crt"),
        secured.path("client.key")
    );
    let rig = tracing_rig(secured, "secrets_login", &login).await;
    insert_canaries(&rig, PAYLOAD, "0").await;
    for command in ["check", "init", "check", "status"] {
        rig.relay.run_for_status(&[command]).await.expect(command);
    }
    rig.start().await;
    insert_canaries(&rig, PAYLOAD, "1").await;
    stack::eventually(ARRIVAL_DEADLINE, "both rows are published", || async {
        let records = rig.records(rig::Isolation::Committed).await.ok()?;
        (records.len() == 2).then_some(())
    })
    .await;
    let mut seen = scrape_admin_port(&rig).await;
    // The command line must not have more than the caller wrote there, which is the command.
    let pid = rig.relay.process().expect("it runs").id();
    let command_line = std::fs::read(format!("/proc/{pid}/cmdline")).expect("a command line");
    seen += &String::from_utf8_lossy(&command_line);

    // The row is too large for librdkafka. The relay says the row's id, and nothing else about it.
    insert_canaries(
        &rig,
        "json_build_object('text', 'canary-' || repeat('x', 2000000))",
        "0",
    )
    .await;
    assert_stopped(&rig, relay_exit::RECORD_TOO_LARGE).await;
    rig.relay.kill_hard().await;
    assert_tells_no_secret("the log", &rig.relay.log_text(), &[]);
    assert_tells_no_secret("the port", &seen, &[]);
    let log = rig.relay.log_text();
    for expected in ["TRACE", "SASL", "SCRAM"] {
        assert!(log.contains(expected), "the log is a full trace: no {expected} in it");
    }
}

#[tokio::test]
async fn a_row_that_cannot_be_published_is_named_without_its_values() {
    let secured = Secured::get().await;
    let properties = format!(
        "{}\nsasl.username=relay\nsasl.password={PASSWORD}",
        secured.login("PLAIN")
    );
    let mut rig = tracing_rig(secured, "secrets_poison", &properties).await;
    let url = rig.servers.postgres.url("postgres", rig.name());
    rig.relay = rig.relay.env("DATABASE_URL", &url);
    rig.init(&[]).await;
    rig.start().await;
    insert_canaries(&rig, PAYLOAD, "99").await;
    assert_stopped(&rig, relay_exit::ROW_REFUSED).await;
    rig.relay.kill_hard().await;
    assert_tells_no_secret("the log", &rig.relay.log_text(), &[]);
}

#[tokio::test]
async fn a_refused_login_and_a_wrong_setting_are_told_without_the_secret() {
    let secured = Secured::get().await;
    let token_text = token(Duration::from_secs(3600));
    secured.write("canary-token", &token_text);
    let mut rig = tracing_rig(secured, "secrets_refused", &secured.login("OAUTHBEARER")).await;
    let url = database_url(&rig, "canary-wrong");
    rig.relay = rig
        .relay
        .env("KAFKA_OAUTH_TOKEN_FILE", &secured.path("canary-token"))
        .env("DATABASE_URL", &url);
    let assert_check_fails = async |rig: &Rig, what: &str| {
        let status = rig.relay.run_for_status(&["check"]).await.expect("it runs");
        assert_ne!(status.code(), Some(0), "{what}");
    };
    assert_check_fails(&rig, "a wrong password").await;
    for wrong in ["canary-a/b", "canary-a#b", "canary-a?b", "canary-%zz", "canary-a b"] {
        let url = database_url(&rig, wrong);
        rig.relay = rig.relay.env("DATABASE_URL", &url);
        assert_check_fails(&rig, wrong).await;
    }
    rig.relay = rig.relay.env("KAFKA_PROPERTIES", "canary-without-a-name");
    assert_check_fails(&rig, "a property without a name").await;
    let properties = format!(
        "broker.address.family=v4\ndebug=all\n{}\nsasl.username=relay\nsasl.password=canary-wrong",
        secured.login("PLAIN")
    );
    rig.relay = rig.relay.env("KAFKA_PROPERTIES", &properties);
    assert_check_fails(&rig, "a wrong password of Kafka").await;
    // The name of the file is not secret. The relay says it if it cannot use the file.
    let log = rig.relay.log_text().replace(&secured.path("canary-token"), "");
    let claims = token_text.split('.').nth(1).expect("claims");
    assert_tells_no_secret("the log", &log, &[claims]);
}

async fn assert_stopped(rig: &Rig, exit_code: i32) {
    let status = rig.relay.exited(READY_DEADLINE).await.expect("it stops");
    assert_eq!(status.code(), Some(exit_code));
}
