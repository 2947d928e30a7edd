//! view-builder uses the relay's settings to log in to Kafka, and uses replaced secrets while it runs.

use std::time::Duration;

use rig::item_view::{TABLE, apply};
use rig::view_rig::{DEADLINE, Event, ViewRig};
use rustix::process::Signal;
use serde_json::json;
use stack::{Program, eventually_ok};

use crate::relay::secured::{PASSWORD, Secured, token};

/// How long a token lasts. A broker accepts one login per second on a connection, and librdkafka logs in when the token has used up four fifths
/// of its life.
const LIFETIME: Duration = Duration::from_secs(16);

/// A rig with a view of one topic that has an event, and a builder that connects through the listener with these properties.
async fn builder(secured: &Secured, name: &str, properties: &str) -> (ViewRig, String, Program) {
    let rig = ViewRig::on(std::sync::Arc::clone(&secured.servers), name).await;
    let topic = rig.topic("item");
    rig.create_topic(&topic, 1, &[]).await.expect("a topic");
    rig.write_view("item", TABLE, &apply(&topic));
    let builder = secured.through(rig.builder("builder"), "LOGIN", properties);
    insert(&rig, &topic, 1).await;
    (rig, topic, builder)
}

/// A started builder that has applied an event, and logs in by a token from this file of the servers'. The token lasts for [`LIFETIME`].
async fn started_with_a_short_token(secured: &Secured, name: &str, file: &str) -> (ViewRig, String, Program) {
    secured.write(file, &token(LIFETIME));
    let (rig, topic, builder) = builder(secured, name, "").await;
    let builder = secured
        .through(builder, "AGAIN", &secured.login("OAUTHBEARER"))
        .env("KAFKA_OAUTH_TOKEN_FILE", &secured.path(file));
    builder.start().expect("a start");
    has_applied(&rig, &topic, &builder).await;
    (rig, topic, builder)
}

async fn insert(rig: &ViewRig, topic: &str, id: i64) {
    let event = Event::of(topic, 0, id, 1, Some(&json!({"name": "a"})));
    rig.produce(topic, [event]).await.expect("an event");
}

async fn has_applied(rig: &ViewRig, topic: &str, builder: &Program) {
    let applied = rig.wait_until_applied(topic).await;
    applied.unwrap_or_else(|err| panic!("{err:#}\n{}", builder.log_tail(20)));
}

/// Waits until the builder's readiness has this text.
async fn says(rig: &ViewRig, builder: &Program, text: &str) {
    let said = eventually_ok(DEADLINE, text, || async {
        let (_, reasons) = rig.readiness(builder).await?;
        anyhow::ensure!(reasons.contains(text), "{reasons}");
        Ok(())
    });
    said.await
        .unwrap_or_else(|err| panic!("{err:#}\n{}", builder.log_tail(20)));
}

#[tokio::test]
async fn a_builder_logs_in_by_a_token_from_a_file_and_an_expired_one_is_told() {
    let secured = Secured::get().await;
    let (rig, topic, builder) = builder(secured, "views_token", &secured.login("OAUTHBEARER")).await;
    let builder = builder.with_env("KAFKA_OAUTH_TOKEN_FILE", &secured.path("token"));
    builder.start().expect("a start");
    has_applied(&rig, &topic, &builder).await;
    builder.stop().await.expect("a clean end");

    let builder = builder.with_env("KAFKA_OAUTH_TOKEN_FILE", &secured.path("expired-token"));
    let logged = builder.log_text().len();
    let status = builder.run_for_status(&["status"]).await.expect("it ends");
    let log = builder.log_text()[logged..].to_owned();
    assert!(
        status.code() == Some(1) && log.contains("the OAuth token") && log.contains("expired"),
        "{log}"
    );
}

#[tokio::test]
async fn a_builder_reads_its_token_again_before_it_expires() {
    const FILE: &str = "views-renewed-token";
    let secured = Secured::get().await;
    let (rig, topic, builder) = started_with_a_short_token(secured, "views_token_again", FILE).await;
    // This is longer than two tokens live. A client that did not log in again would be cut off.
    let started = std::time::Instant::now();
    while started.elapsed() < LIFETIME * 9 / 4 {
        secured.write(FILE, &token(LIFETIME));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    insert(&rig, &topic, 2).await;
    has_applied(&rig, &topic, &builder).await;
    let log = builder.log_text();
    assert!(
        !log.contains("takes the place of this one") && !log.contains("refuses the connection"),
        "{log}"
    );
    builder.stop().await.expect("a clean end");
}

#[tokio::test]
async fn a_builder_that_stood_still_for_longer_than_a_token_lasts_goes_on() {
    // Meanwhile nobody reads librdkafka's event that a token is needed, so the broker ends the session.
    const FILE: &str = "views-thawed-token";
    let secured = Secured::get().await;
    let (rig, topic, builder) = started_with_a_short_token(secured, "views_token_thawed", FILE).await;
    let process = builder.process().expect("it runs");
    process.signal(Signal::STOP);
    tokio::time::sleep(LIFETIME * 5 / 4).await;
    secured.write(FILE, &token(Duration::from_secs(3_600)));
    process.signal(Signal::CONT);

    insert(&rig, &topic, 2).await;
    // librdkafka 2.12 takes its timer's word that it has to log in again also on a connection that has just been lost. Then it waits for
    // an answer that cannot come, until socket.timeout.ms has passed: a minute. See docs/operations.md.
    if rig.wait_until_applied(&topic).await.is_err() {
        has_applied(&rig, &topic, &builder).await;
    }
    // It would be another process after a death, and that one is not frozen.
    builder.stop().await.expect("a clean end of the same process");
}

#[tokio::test]
async fn a_builder_waits_for_the_key_where_only_the_certificate_is_replaced_yet() {
    let secured = Secured::get().await;
    secured.copy("stranger.crt", "views.crt");
    secured.copy("stranger.key", "views.key");
    let (rig, topic, builder) = builder(secured, "views_certificate", "").await;
    let builder = secured.through(builder, "MTLS", &secured.mutual_tls_as("views"));
    builder.start().expect("a start");
    says(&rig, &builder, "kafka refuses the connection").await;
    let process = builder.process().expect("it runs").id();

    secured.copy("client.crt", "views.crt");
    says(&rig, &builder, "the replaced secrets cannot be used").await;
    secured.copy("client.key", "views.key");
    has_applied(&rig, &topic, &builder).await;
    assert_eq!(
        builder.process().expect("it runs").id(),
        process,
        "it is the same process"
    );
    builder.stop().await.expect("a clean end");
}

#[tokio::test]
async fn a_builder_whose_password_is_replaced_joins_its_group_with_the_new_one() {
    const USER: &str = "rotating_views";
    let secured = Secured::get().await;
    let kafka = &secured.servers.kafka;
    kafka.add_scram_user(USER, "canary-wrong").await.expect("a user");
    secured.write("views-password", PASSWORD);
    let properties = format!("{}\nsasl.username={USER}", secured.login("SCRAM-SHA-256"));
    let (rig, topic, builder) = builder(secured, "views_rotation", &properties).await;
    let files = format!("sasl.password={}", secured.path("views-password"));
    let builder = builder.with_env("KAFKA_PROPERTY_FILES", &files);
    builder.start().expect("a start");
    says(&rig, &builder, "kafka refuses the connection: authentication failed").await;
    let process = builder.process().expect("it runs").id();

    secured.write("views-password", "canary-wrong\n");
    has_applied(&rig, &topic, &builder).await;
    assert_eq!(
        builder.process().expect("it runs").id(),
        process,
        "it is the same process"
    );
    let log = builder.log_text();
    assert!(
        log.contains("another kafka client takes the place of this one"),
        "{log}"
    );
    assert!(!log.contains("canary-"), "no secret is told");
    builder.stop().await.expect("a clean end");
}
