//! Passwords, and the certificate of the authority, are replaced while the relay runs. The relay reads their files again, and needs no restart.
//! [`super::certificates`] replaces the certificates of the servers and of the relay.

use std::time::Duration;

use rig::{Rig, relay_exit};
use stack::eventually;
use stack::program::Readiness;

use crate::relay::load::{Load, wait_until_publishes};
use crate::relay::secured::Secured;

const ROLE: &str = "rotating";
const DEADLINE: Duration = Duration::from_secs(60);
/// A relay that is refused so often is refused for good.
const REFUSALS_BY_POSTGRES: usize = 5;
const REFUSALS_BY_KAFKA: usize = 4;
/// So many rows are published while secrets are replaced.
const ROWS_BETWEEN: f64 = 50.0;

/// Ends every session of the relay, also those with Kafka. The relay makes new ones.
async fn end_sessions(rig: &Rig) {
    rig.sql(&format!(
        "select pg_terminate_backend(pid) from pg_stat_activity where usename = '{ROLE}'"
    ))
    .await;
}

/// Waits until the relay's readiness has all of these words.
pub(super) async fn wait_until_readiness_says(rig: &Rig, words: &[&str]) {
    let client = reqwest::Client::new();
    eventually(DEADLINE, &format!("it says {words:?}"), || async {
        match rig.relay.readiness(&client).await {
            Ok(Readiness::NotReady(reasons)) if words.iter().all(|word| reasons.contains(word)) => Some(()),
            _ => None,
        }
    })
    .await;
}

#[tokio::test]
async fn a_relay_that_keeps_the_first_password_is_refused_for_good() {
    let secured = Secured::get().await;
    secured.create_role("rotating_planted", "canary-1").await;
    secured.write("planted-pg", "canary-1\n");
    let mut rig = Rig::on(std::sync::Arc::clone(&secured.servers), "rotation_planted").await;
    let (port, file) = (rig.servers.postgres.port(), secured.path("planted-pg"));
    let url = format!("postgres://rotating_planted@127.0.0.1:{port}/rotation_planted?passwordfile={file}");
    rig.relay = rig
        .relay
        .with_binary("outbox-relay-faults")
        .env("OUTBOX_RELAY_BUG", "KeepFirstPassword")
        .env("DATABASE_URL", &url);
    rig.init(&[]).await;
    rig.start().await;
    secured.write("planted-pg", "canary-2\n");
    rig.sql("alter role rotating_planted password 'canary-2'").await;
    rig.sql("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'rotating_planted'")
        .await;
    wait_until_readiness_says(&rig, &["password authentication failed"]).await;
    // If the relay read the file again, there would not even be a second refusal.
    eventually(DEADLINE, "it is refused again and again", || async {
        let refused = rig.relay.log_text().matches("password authentication failed").count();
        (refused >= REFUSALS_BY_POSTGRES).then_some(())
    })
    .await;
    rig.relay.kill_hard().await;
    rig.finish().await.expect("an end");
}

#[tokio::test]
async fn a_relay_that_keeps_the_first_secrets_of_kafka_is_refused_for_good() {
    const USER: &str = "rotating_kafka_planted";
    let secured = Secured::get().await;
    let kafka = &secured.servers.kafka;
    kafka.add_scram_user(USER, "canary-1").await.expect("a user");
    secured.write("planted-kafka", "canary-1\n");
    let properties = format!("{}\nsasl.username={USER}", secured.login("SCRAM-SHA-256"));
    let mut rig = secured.rig("rotation_kafka_planted", "LOGIN", &properties).await;
    rig.relay = rig
        .relay
        .with_binary("outbox-relay-faults")
        .env("OUTBOX_RELAY_BUG", "KeepFirstKafkaSecrets")
        .env(
            "KAFKA_PROPERTY_FILES",
            &format!("sasl.password={}", secured.path("planted-kafka")),
        );
    rig.init(&[]).await;
    rig.start().await;
    secured.write("planted-kafka", "canary-2\n");
    kafka.add_scram_user(USER, "canary-2").await.expect("another password");
    rig.sql(
        "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = 'rotation_kafka_planted'",
    )
    .await;
    wait_until_readiness_says(&rig, &["kafka refuses the connection"]).await;
    // If the relay read the files for each client, there would not even be a second refusal.
    eventually(DEADLINE, "it is refused again and again", || async {
        let refused = rig.relay.log_text().matches("kafka refuses the connection").count();
        (refused >= REFUSALS_BY_KAFKA).then_some(())
    })
    .await;
    rig.relay.kill_hard().await;
    rig.finish().await.expect("an end");
}

#[tokio::test]
async fn secrets_are_replaced_under_load_and_nothing_is_lost_or_restarted() {
    let secured = Secured::get().await;
    let kafka = &secured.servers.kafka;
    secured.create_role(ROLE, "canary-pg-1").await;
    kafka.add_scram_user(ROLE, "canary-kafka-1").await.expect("a user");
    let authority = std::fs::read_to_string(secured.path("ca.crt")).expect("a certificate");
    for (file, text) in [
        ("rotating-pg", "canary-pg-1\n"),
        ("rotating-kafka", "canary-kafka-1\n"),
        ("rotating-ca.crt", &authority),
    ] {
        secured.write(file, text);
    }
    let properties = format!(
        "{}\nsasl.username={ROLE}\nssl.ca.location={}",
        secured.login("SCRAM-SHA-256"),
        secured.path("rotating-ca.crt")
    );
    let mut rig = secured.rig("rotation", "LOGIN", &properties).await;
    let url = |file: &str| {
        let port = rig.servers.postgres.port();
        format!("postgres://{ROLE}@127.0.0.1:{port}/rotation?passwordfile={file}")
    };
    let (right, wrong) = (url(&secured.path("rotating-pg")), url("/nowhere/at/all"));
    rig.relay = rig
        .relay
        .env("DATABASE_URL", &right)
        .env("MAINTENANCE_DATABASE_URL", &right)
        .env("OUTBOX_MAINTENANCE_INTERVAL", "1")
        .env(
            "KAFKA_PROPERTY_FILES",
            &format!("sasl.password={}", secured.path("rotating-kafka")),
        );
    // A path that was wrong from the beginning is a wrong setting.
    for (variable, value) in [
        ("DATABASE_URL", wrong.as_str()),
        ("MAINTENANCE_DATABASE_URL", wrong.as_str()),
        ("KAFKA_PROPERTY_FILES", "sasl.password=/nowhere/at/all"),
    ] {
        let relay = rig.relay.with_env(variable, value);
        let logged = relay.log_text().len();
        let status = relay.run_for_status(&["run"]).await.expect("it ends");
        let log = relay.log_text()[logged..].to_owned();
        assert_eq!(status.code(), Some(relay_exit::WRONG_SETTING), "{variable}: {log}");
        assert!(log.contains("/nowhere/at/all"), "{variable}: {log}");
    }
    rig.init(&[]).await;
    rig.start().await;
    let process = rig.relay.process().expect("it runs").id();
    let load = Load::start_on(&rig);
    wait_until_publishes(&rig.relay, ROWS_BETWEEN).await;

    // Both passwords are replaced at once, first in the files.
    secured.write("rotating-pg", "canary-pg-2\n");
    secured.write("rotating-kafka", "canary-kafka-2\n");
    rig.sql(&format!("alter role {ROLE} password 'canary-pg-2'")).await;
    kafka
        .add_scram_user(ROLE, "canary-kafka-2")
        .await
        .expect("another password");
    end_sessions(&rig).await;
    wait_until_publishes(&rig.relay, ROWS_BETWEEN).await;

    // The password is replaced on the server first. The relay is refused until the file has it, also while there is no file.
    rig.sql(&format!("alter role {ROLE} password 'canary-pg-3'")).await;
    end_sessions(&rig).await;
    wait_until_readiness_says(&rig, &["password authentication failed"]).await;
    let file = secured.path("rotating-pg");
    std::fs::remove_file(&file).expect("the file");
    wait_until_readiness_says(&rig, &[&file, "cannot be read"]).await;
    secured.write("rotating-pg", "canary-pg-3\n");
    wait_until_publishes(&rig.relay, ROWS_BETWEEN).await;

    // The same for Kafka's password. The file of the authority is away for a while, too.
    secured.write("rotating-kafka", "canary-wrong");
    end_sessions(&rig).await;
    wait_until_readiness_says(&rig, &["kafka refuses the connection"]).await;
    for (name, text) in [
        ("rotating-kafka", "canary-kafka-2\n"),
        ("rotating-ca.crt", authority.as_str()),
    ] {
        let file = secured.path(name);
        std::fs::remove_file(&file).expect("the file");
        end_sessions(&rig).await;
        wait_until_readiness_says(&rig, &[&file]).await;
        secured.write(name, text);
        wait_until_publishes(&rig.relay, ROWS_BETWEEN).await;
    }

    load.stop().await;
    rig.assert_exactly_once().await;
    let now = rig.relay.process().expect("it runs");
    assert_eq!(now.id(), process, "it is the same process");
    assert!(now.exit_status().is_none(), "{}", rig.relay.log_tail(5));
    assert!(!rig.relay.log_text().contains("canary-"), "no secret is told");
    rig.finish().await.expect("a clean end");
}
