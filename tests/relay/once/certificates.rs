//! Authorities, certificates, keys and a password are replaced while a relay runs and all its connections break.

use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rig::servers::{kafka_options, postgres_options};
use rig::{Rig, Servers};
use stack::Postgres;
use stack::scratch::Scratch;

use super::super::tampering::metric;
use super::rotation::wait_until_readiness_says;
use crate::relay::load::{DEADLINE, Load, wait_until_publishes};

/// The role logs in to Postgres by its certificate, and to Kafka by its password.
const ROLE: &str = "certified";

/// The files that the servers and the relay read.
struct Files(Scratch);

impl Files {
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn shown(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Replaces a file in one step. A reader sees either the old or the new contents.
    fn write(&self, name: &str, text: &str) {
        let (new, file) = (self.path("new"), self.path(name));
        std::fs::write(&new, text).expect("a file");
        std::fs::rename(new, file).expect("a file");
    }

    /// As [`Files::write`], for a key. Gives it to the server's user, because the server refuses a key that others can read.
    fn write_key(&self, name: &str, text: &str, owner: &Postgres) {
        let (new, file) = (self.path("new"), self.path(name));
        std::fs::write(&new, text).expect("a file");
        owner.make_key_its_own(&new).expect("a key of the server's");
        std::fs::rename(new, file).expect("a file");
    }
}

/// One generation of secrets: an authority, certificates, and a password. A pair has a certificate and its key.
struct Generation {
    authority: String,
    server: (String, String),
    client: (String, String),
    password: &'static str,
}

impl Generation {
    fn issue(password: &'static str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, password);
        let authority = params.self_signed(&key).expect("a root certificate").pem();
        let issuer = Issuer::new(params, key);
        let issue = |names: &[&str], usage| {
            let key = KeyPair::generate().expect("a key");
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let mut params = CertificateParams::new(names.clone()).expect("names");
            params.distinguished_name.push(DnType::CommonName, names[0].as_str());
            params.extended_key_usages.push(usage);
            let certificate = params.signed_by(&key, &issuer).expect("a certificate");
            (certificate.pem(), key.serialize_pem())
        };
        Self {
            authority,
            server: issue(&["localhost", "127.0.0.1"], ExtendedKeyUsagePurpose::ServerAuth),
            client: issue(&[ROLE], ExtendedKeyUsagePurpose::ClientAuth),
            password,
        }
    }

    /// Gives Kafka its certificate, and the authority that both servers trust.
    fn give_to_kafka(&self, files: &Files) {
        let (certificate, key) = &self.server;
        files.write("broker.pem", &format!("{key}{certificate}"));
        files.write("trusted.pem", &self.authority);
    }

    fn give_to_postgres(&self, files: &Files, postgres: &Postgres) {
        let (certificate, key) = &self.server;
        files.write("server.crt", certificate);
        files.write_key("server.key", key, postgres);
    }

    fn give_to_relay(&self, files: &Files) {
        files.write("ca.crt", &self.authority);
        files.write("client.crt", &self.client.0);
        files.write("client.key", &self.client.1);
        files.write("password", &format!("{}\n", self.password));
    }
}

/// Servers that refuse everybody without a certificate. Kafka wants a password as well.
async fn servers(files: &Files, first: &Generation) -> Arc<Servers> {
    first.give_to_kafka(files);
    let mut kafka = kafka_options();
    kafka.listeners = vec![("CERTIFIED".to_owned(), "SASL_SSL".to_owned())];
    let user = format!("SCRAM-SHA-256=[name={ROLE},password={}]", first.password);
    kafka.format_arguments.extend(["--add-scram".to_owned(), user]);
    for (name, value) in [
        ("ssl.keystore.type", "PEM"),
        ("ssl.keystore.location", &files.shown("broker.pem")),
        ("ssl.truststore.type", "PEM"),
        ("ssl.truststore.location", &files.shown("trusted.pem")),
        ("listener.name.certified.ssl.client.auth", "required"),
        ("sasl.enabled.mechanisms", "SCRAM-SHA-256"),
        (
            "listener.name.certified.scram-sha-256.sasl.jaas.config",
            "org.apache.kafka.common.security.scram.ScramLoginModule required;",
        ),
    ] {
        kafka = kafka.setting(name, value);
    }
    let servers = Servers::start(postgres_options(), kafka).await.expect("servers");
    first.give_to_postgres(files, &servers.postgres);
    let sql = |text: String| {
        let postgres = &servers.postgres;
        async move { postgres.query("postgres", &text).await.expect("SQL") }
    };
    sql(format!("create role {ROLE} superuser login replication")).await;
    sql(format!(
        "alter system set ssl_ca_file = '{}'",
        files.shown("trusted.pem")
    ))
    .await;
    let postgres = &servers.postgres;
    let shown = postgres.set_certificate_of(files.0.path());
    shown.await.expect("a certificate");
    let rules = format!("hostssl all {ROLE} 127.0.0.1/32 cert");
    postgres.put_access_rules_first(&rules).await.expect("rules");
    Arc::new(servers)
}

/// A rig whose relay logs in everywhere by the contents of the files.
async fn certified(servers: &Arc<Servers>, files: &Files, name: &str) -> Rig {
    let mut rig = Rig::on(Arc::clone(servers), name).await;
    let (ca, certificate, key) = (
        files.shown("ca.crt"),
        files.shown("client.crt"),
        files.shown("client.key"),
    );
    let port = rig.servers.postgres.port();
    let url = format!(
        "postgres://{ROLE}@127.0.0.1:{port}/{name}?sslmode=verify-full&sslrootcert={ca}&sslcert={certificate}&sslkey={key}"
    );
    let properties = format!(
        "broker.address.family=v4\nsecurity.protocol=sasl_ssl\nsasl.mechanism=SCRAM-SHA-256\nsasl.username={ROLE}
ssl.ca.location={ca}\nssl.certificate.location={certificate}\nssl.key.location={key}"
    );
    let listener = rig.servers.kafka.listener("CERTIFIED").expect("a listener");
    rig.relay = rig
        .relay
        .env("DATABASE_URL", &url)
        .env("KAFKA_BOOTSTRAP_SERVERS", &listener)
        .env("KAFKA_PROPERTIES", &properties)
        .env(
            "KAFKA_PROPERTY_FILES",
            &format!("sasl.password={}", files.shown("password")),
        )
        .env("LOG", "info,outbox_relay=debug");
    rig
}

/// Breaks every connection of the relay. From then on the servers accept only the next generation.
async fn change_servers(rig: &Rig, files: &Files, next: &Generation) {
    next.give_to_kafka(files);
    next.give_to_postgres(files, &rig.servers.postgres);
    let kafka = &rig.servers.kafka;
    kafka
        .add_scram_user(ROLE, next.password)
        .await
        .expect("another password");
    rig.sql("select pg_reload_conf()").await;
    kafka.kill_hard().await;
    kafka.start_again().await.expect("kafka");
    rig.sql(&format!(
        "select pg_terminate_backend(pid) from pg_stat_activity where usename = '{ROLE}'"
    ))
    .await;
}

async fn is_paused(rig: &Rig, paused: f64) {
    stack::eventually(DEADLINE, "the relay knows whether it is paused", || async {
        (metric(rig, "relay_paused").await? == paused).then_some(())
    })
    .await;
}

#[tokio::test]
async fn authorities_certificates_keys_and_a_password_are_replaced_under_load_without_a_restart() {
    let files = Files(Scratch::temporary("outbox-certified-").expect("a directory"));
    let (first, second) = (Generation::issue("canary-first"), Generation::issue("canary-second"));
    first.give_to_relay(&files);
    let servers = servers(&files, &first).await;
    let rig = certified(&servers, &files, "certificates").await;
    rig.init(&[]).await;
    rig.start().await;
    let process = rig.relay.process().expect("it runs").id();
    let load = Load::start_on(&rig);
    wait_until_publishes(&rig.relay, 50.0).await;

    // The relay's files are replaced last. Until then both servers refuse the relay, and the relay refuses them.
    change_servers(&rig, &files, &second).await;
    wait_until_readiness_says(&rig, &["certificate"]).await;
    second.give_to_relay(&files);
    wait_until_publishes(&rig.relay, 50.0).await;

    // The task that watches for a pause has logged in anew, too. It is not refused again and again.
    let logged = rig.relay.log_text().len();
    for (command, paused) in [(&["pause", "--reason", "a test"][..], 1.0), (&["resume"], 0.0)] {
        rig.relay.run(command).await.unwrap_or_else(|err| panic!("{err:#}"));
        is_paused(&rig, paused).await;
    }
    let log = rig.relay.log_text()[logged..].to_owned();
    assert!(!log.contains("cannot read again whether the relay is paused"), "{log}");

    load.stop().await;
    rig.assert_exactly_once().await;
    let now = rig.relay.process().expect("it runs");
    assert_eq!(now.id(), process, "it is the same process");
    assert!(now.exit_status().is_none(), "{}", rig.relay.log_tail(5));
    assert!(!rig.relay.log_text().contains("canary-"), "no secret is told");
    rig.finish().await.expect("a clean end");
}
