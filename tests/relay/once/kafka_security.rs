//! A Kafka that demands TLS, certificates, passwords or tokens.

use std::time::{Duration, Instant};

use anyhow::ensure;
use rig::{Isolation, Rig};
use stack::{Program, eventually_ok};

use crate::relay::secured::{PASSWORD, Secured, token};
use crate::relay::tampering::{DEADLINE, kill_and_drop_slot};

/// A library that is loaded before the C library. It aborts when a key of thread-local storage is deleted. In these programs only OpenSSL's clean-up
/// deletes such keys. Key 0 is an exception: Rust does not use it, and gives it back.
const ABORTS_AT_CLEAN_UP: &str =
    "#include <stdlib.h>\nint pthread_key_delete(unsigned key) { if (key != 0) abort(); return 0; }\n";

/// A library that shows a program another file in the place where the program looks first for the system's certificates.
const OTHER_SYSTEM_CA: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
static const char *seen(const char *path) {
    return strcmp(path, "/etc/pki/tls/certs/ca-bundle.crt") == 0 ? getenv("SYSTEM_CA") : path;
}
FILE *fopen64(const char *path, const char *mode) {
    return ((FILE *(*)(const char *, const char *))dlsym(RTLD_NEXT, "fopen64"))(seen(path), mode);
}
FILE *fopen(const char *path, const char *mode) { return fopen64(path, mode); }
int stat(const char *path, struct stat *found) {
    return ((int (*)(const char *, struct stat *))dlsym(RTLD_NEXT, "stat"))(seen(path), found);
}
"#;

/// The relay must report a refused connection within this time.
const REFUSAL_DEADLINE: Duration = Duration::from_secs(20);

/// Asserts that the relay publishes through the rig's listener, from `init` to the last row.
async fn assert_publishes(rig: &Rig) {
    rig.insert_each(5).await;
    rig.init(&[]).await;
    rig.start().await;
    rig.insert_each(20).await;
    rig.assert_exactly_once().await;
    rig.finish().await.expect("a clean end");
}

/// Asserts that `check` and `init` end in time, say that Kafka refuses the connection, and say why.
async fn assert_refused(rig: &Rig, reason: &str) {
    for command in ["check", "init"] {
        let (logged, started) = (rig.relay.log_text().len(), Instant::now());
        let status = rig.relay.run_for_status(&[command]).await.expect("it runs");
        let log = rig.relay.log_text()[logged..].to_owned();
        assert_eq!(status.code(), Some(1), "{command}: {log}");
        assert!(
            log.contains("kafka refuses the connection") && log.contains(reason),
            "{command}: {log}"
        );
        assert!(!log.contains(PASSWORD), "{command}: {log}");
        assert!(
            started.elapsed() < REFUSAL_DEADLINE,
            "{command} took {:?}",
            started.elapsed()
        );
    }
}

#[tokio::test]
async fn a_broker_is_trusted_only_if_a_known_authority_has_certified_its_name() {
    let secured = Secured::get().await;
    let rig = secured.rig("kafka_tls", "TLS", &secured.tls("ca.crt")).await;
    assert_publishes(&rig).await;
    let rig = secured
        .rig("kafka_tls_wrong_ca", "TLS", &secured.tls("other-ca.crt"))
        .await;
    assert_refused(&rig, "certificate verify failed").await;
    let mut rig = secured.rig("kafka_tls_wrong_name", "TLS", &secured.tls("ca.crt")).await;
    let address = secured.servers.kafka.listener("TLS").expect("a listener");
    let other_name = address.replace("localhost", "127.0.0.1");
    rig.relay = rig.relay.env("KAFKA_BOOTSTRAP_SERVERS", &other_name);
    assert_refused(&rig, "certificate verify failed").await;
}

#[tokio::test]
async fn without_a_setting_the_relay_trusts_the_authorities_that_the_system_trusts() {
    let secured = Secured::get().await;
    let library = secured.library("other_system_ca", OTHER_SYSTEM_CA);
    let mut rig = secured.rig("kafka_tls_system_ca", "TLS", "security.protocol=ssl").await;
    rig.relay = rig
        .relay
        .env("LD_PRELOAD", &library)
        .env("SYSTEM_CA", &secured.path("other-ca.crt"));
    assert_refused(&rig, "certificate verify failed").await;
    rig.relay = rig.relay.env("SYSTEM_CA", &secured.path("ca.crt"));
    assert_publishes(&rig).await;
}

#[tokio::test]
async fn a_client_certificate_is_shown_and_without_one_nothing_goes() {
    let secured = Secured::get().await;
    let rig = secured
        .rig("kafka_mtls", "MTLS", &secured.mutual_tls_as("client"))
        .await;
    assert_publishes(&rig).await;
    let rig = secured.rig("kafka_mtls_without", "MTLS", &secured.tls("ca.crt")).await;
    assert_refused(&rig, "the client's certificate is missing or refused").await;
}

#[tokio::test]
async fn a_password_logs_in_by_each_mechanism_and_a_wrong_one_does_not() {
    let secured = Secured::get().await;
    for (name, mechanism) in [
        ("kafka_plain", "PLAIN"),
        ("kafka_scram_256", "SCRAM-SHA-256"),
        ("kafka_scram_512", "SCRAM-SHA-512"),
    ] {
        let properties = format!("{}\nsasl.username=relay", secured.login(mechanism));
        let files = |file: &str| format!("sasl.password={}", secured.path(file));
        let mut rig = secured.rig(name, "LOGIN", &properties).await;
        rig.relay = rig.relay.env("KAFKA_PROPERTY_FILES", &files("password"));
        assert_publishes(&rig).await;
        let mut rig = secured.rig(&format!("{name}_wrong"), "LOGIN", &properties).await;
        rig.relay = rig.relay.env("KAFKA_PROPERTY_FILES", &files("wrong-password"));
        assert_refused(&rig, "authentication failed").await;
    }
}

#[tokio::test]
async fn a_token_from_a_file_logs_in_and_an_expired_one_does_not() {
    let secured = Secured::get().await;
    let mut rig = secured.rig("kafka_token", "LOGIN", &secured.login("OAUTHBEARER")).await;
    rig.relay = rig.relay.env("KAFKA_OAUTH_TOKEN_FILE", &secured.path("token"));
    assert_publishes(&rig).await;
    let mut rig = secured
        .rig("kafka_token_expired", "LOGIN", &secured.login("OAUTHBEARER"))
        .await;
    rig.relay = rig.relay.env("KAFKA_OAUTH_TOKEN_FILE", &secured.path("expired-token"));
    let status = rig.relay.run_for_status(&["check"]).await.expect("it runs");
    let log = rig.relay.log_text();
    assert!(status.code() == Some(1) && log.contains("expired"), "{log}");
}

#[tokio::test]
async fn the_unsecured_tokens_of_a_development_cluster_log_in() {
    let secured = Secured::get().await;
    let properties = format!(
        "{}\nenable.sasl.oauthbearer.unsecure.jwt=true\nsasl.oauthbearer.config=principal=relay",
        secured.login("OAUTHBEARER")
    );
    let rig = secured.rig("kafka_token_builtin", "LOGIN", &properties).await;
    assert_publishes(&rig).await;
}

/// This is long enough for an `init` and a start while other tests run.
const SHORT_LIFETIME: Duration = Duration::from_secs(20);

/// A rig whose relay has published five rows. Then the file got another token, and the first token has expired.
async fn rig_whose_first_token_has_expired(secured: &Secured, name: &str, bug: Option<&str>) -> Rig {
    let write = |token: &str| secured.write(name, token);
    write(&token(SHORT_LIFETIME));
    let mut rig = secured.rig(name, "LOGIN", &secured.login("OAUTHBEARER")).await;
    rig.relay = rig.relay.env("KAFKA_OAUTH_TOKEN_FILE", &secured.path(name));
    rig.init(&[]).await;
    if let Some(bug) = bug {
        rig.relay = rig
            .relay
            .with_binary("outbox-relay-faults")
            .with_env("OUTBOX_RELAY_BUG", bug);
    }
    write(&token(SHORT_LIFETIME));
    rig.start().await;
    rig.insert_each(5).await;
    rig.assert_exactly_once().await;
    write(&token(Duration::from_secs(3600)));
    tokio::time::sleep(SHORT_LIFETIME + Duration::from_secs(1)).await;
    // If the broker has no connections.max.reauth.ms, a connection lives longer than its token. The next connection needs a new one.
    rig.sql(&format!(
        "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = '{name}' and active_pid is not null"
    ))
    .await;
    rig
}

#[tokio::test]
async fn a_token_is_read_again_before_it_expires() {
    // A broker without connections.max.reauth.ms refuses a new login on an open connection. Then the relay starts again from the checkpoint.
    let rig = rig_whose_first_token_has_expired(Secured::get().await, "kafka_token_renewed", None).await;
    rig.insert_each(5).await;
    rig.assert_exactly_once().await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_relay_that_keeps_the_first_token_is_caught() {
    let bug = Some("KeepFirstKafkaSecrets");
    let rig = rig_whose_first_token_has_expired(Secured::get().await, "kafka_token_kept", bug).await;
    rig.insert_each(5).await;
    let said = eventually_ok(DEADLINE, "the relay says that its token has expired", || async {
        let log = rig.relay.log_text();
        ensure!(
            log.contains("the OAuth token") && log.contains("expired"),
            "{}",
            rig.relay.log_tail(20)
        );
        Ok(())
    });
    said.await.unwrap_or_else(|err| panic!("{err:#}"));
    let records = rig.records(Isolation::Committed).await.expect("records");
    assert_eq!(records.len(), 5, "{}", rig.relay.log_tail(10));
    kill_and_drop_slot(&rig).await;
}

#[tokio::test]
async fn where_the_broker_wants_a_new_login_on_an_open_connection_the_relay_goes_on_without_a_restart() {
    // A broker accepts one login per second on a connection. librdkafka logs in when the token has used up four fifths of its life, and again at nine
    // tenths.
    const LIFETIME: Duration = Duration::from_secs(16);
    let secured = Secured::get().await;
    let renew = || secured.write("renewed-token", &token(LIFETIME));
    renew();
    let mut rig = secured
        .rig("kafka_token_again", "AGAIN", &secured.login("OAUTHBEARER"))
        .await;
    rig.relay = rig.relay.env("KAFKA_OAUTH_TOKEN_FILE", &secured.path("renewed-token"));
    rig.init(&[]).await;
    renew();
    rig.start().await;
    let started = Instant::now();
    // This is longer than two tokens live. A client that did not log in again would have been cut off.
    while started.elapsed() < LIFETIME * 9 / 4 {
        renew();
        rig.insert_each(1).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    rig.assert_exactly_once().await;
    let log = rig.relay.log_text();
    assert!(!log.contains("starting again from the checkpoint"), "{log}");
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn no_program_frees_what_its_tls_connections_use_while_it_ends() {
    let secured = Secured::get().await;
    let properties = secured.tls("ca.crt");
    let mut rig = secured.rig("kafka_tls_ends", "TLS", &properties).await;
    let library = secured.library("aborts_at_clean_up", ABORTS_AT_CLEAN_UP);
    rig.relay = rig.relay.env("LD_PRELOAD", &library);
    assert_publishes(&rig).await;
    let binary = stack::checkout::programs_directory()
        .expect("the programs")
        .join("view-builder");
    let views = Program::new("view-builder", &binary, rig.logs().join("view-builder.log"), 0);
    let views = secured.through(views, "TLS", &properties).env("LD_PRELOAD", &library);
    let replay = ["replay", "--topic", &rig.topic()];
    views.run(&replay).await.unwrap_or_else(|err| panic!("{err:#}"));
}

#[tokio::test]
async fn a_relay_that_is_refused_says_so_in_its_readiness_and_goes_on_once_it_is_let_in() {
    let secured = Secured::get().await;
    let properties = format!("{}\nsasl.username=late", secured.login("SCRAM-SHA-256"));
    let mut rig = secured.rig("kafka_late", "LOGIN", &properties).await;
    let files = format!("sasl.password={}", secured.path("password"));
    let kafka = &secured.servers.kafka;
    // `init` uses the other listener, as an operator with more rights would.
    rig.relay = rig.relay.env("KAFKA_BOOTSTRAP_SERVERS", &kafka.bootstrap_servers());
    rig.relay = rig.relay.env("KAFKA_PROPERTIES", "");
    rig.init(&[]).await;
    rig.relay = secured
        .through(rig.relay, "LOGIN", &properties)
        .env("KAFKA_PROPERTY_FILES", &files);
    rig.relay.start().expect("a start");
    let client = reqwest::Client::new();
    stack::eventually(
        REFUSAL_DEADLINE,
        "its readiness says that the login is refused",
        || async {
            match rig.relay.readiness(&client).await.ok()? {
                stack::program::Readiness::NotReady(reasons) => reasons.contains("authentication failed").then_some(()),
                stack::program::Readiness::Ready => None,
            }
        },
    )
    .await;
    kafka.add_scram_user("late", PASSWORD).await.expect("a user");
    rig.relay.wait_ready(REFUSAL_DEADLINE).await.expect("it is let in");
    rig.insert_each(5).await;
    rig.assert_exactly_once().await;
    rig.finish().await.expect("a clean end");
}
