//! A PostgreSQL that demands TLS, certificates and passwords, and a man in the middle.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

pub mod middle;

use std::path::PathBuf;
use std::time::Duration;

use pg_replication::{Connection, Mode, Target};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use stack::scratch::Scratch;
use stack::{Postgres, PostgresOptions};
use tokio::sync::OnceCell;

/// A server with certificates, and with one role for each way of logging in.
pub struct Server {
    pub postgres: Postgres,
    files: Scratch,
}

impl Server {
    pub async fn get() -> &'static Self {
        static SERVER: OnceCell<Server> = OnceCell::const_new();
        SERVER.get_or_init(Self::start).await
    }

    /// A server for one test alone. The test may change its settings.
    pub async fn start() -> Self {
        let postgres = Postgres::start(PostgresOptions {
            version: Some(18),
            ..PostgresOptions::default()
        })
        .await
        .expect("a PostgreSQL");
        let files = Scratch::temporary("outbox-certificates-").expect("a directory");
        let server = Self { postgres, files };
        server.issue_certificates();
        server.configure().await;
        server
    }

    fn issue_certificates(&self) {
        for authority in ["ca", "other-ca"] {
            let key = KeyPair::generate().expect("a key");
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.distinguished_name.push(DnType::CommonName, authority);
            let certificate = params.self_signed(&key).expect("a root certificate");
            self.write(&format!("{authority}.crt"), &certificate.pem());
            let issuer = Issuer::new(params, key);
            if authority == "ca" {
                for (name, host) in [
                    ("server", "localhost"),
                    ("expired", "localhost"),
                    ("other-host", "db.example"),
                ] {
                    self.issue(name, host, ExtendedKeyUsagePurpose::ServerAuth, &issuer);
                }
                self.issue(
                    "client",
                    "with_certificate",
                    ExtendedKeyUsagePurpose::ClientAuth,
                    &issuer,
                );
            } else {
                self.issue(
                    "stranger",
                    "with_certificate",
                    ExtendedKeyUsagePurpose::ClientAuth,
                    &issuer,
                );
            }
        }
    }

    fn issue(&self, name: &str, common_name: &str, usage: ExtendedKeyUsagePurpose, issuer: &Issuer<'_, KeyPair>) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new([common_name.replace('_', "-")]).expect("names");
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.extended_key_usages.push(usage);
        if name == "expired" {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        }
        let certificate = params.signed_by(&key, issuer).expect("a certificate");
        self.write(&format!("{name}.crt"), &certificate.pem());
        self.write(&format!("{name}.key"), &key.serialize_pem());
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::write(&path, text).expect("a file");
        if name == "server.key" {
            self.postgres.make_key_its_own(&path).expect("a key of the server's");
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    async fn configure(&self) {
        let sql = |text: String| async move { self.postgres.query("postgres", &text).await.expect("SQL") };
        for role in ["with_password", "over_tls", "with_certificate"] {
            sql(format!("create role {role} login replication password 'right'")).await;
        }
        sql("set password_encryption = 'md5'; create role with_md5 login replication password 'right'".to_owned())
            .await;
        sql("create table outbox (id uuid); create publication outbox for table outbox".to_owned()).await;
        sql("select pg_create_logical_replication_slot('over_tls', 'pgoutput')".to_owned()).await;
        let authority = self.path("ca.crt");
        sql(format!("alter system set ssl_ca_file = '{}'", authority.display())).await;
        let shown = self.postgres.set_certificate_of(self.files.path());
        shown.await.expect("a certificate");
        let rules = "host all with_password 127.0.0.1/32 scram-sha-256\n\
                   host all with_md5 127.0.0.1/32 md5\n\
                   hostssl all over_tls 127.0.0.1/32 scram-sha-256\n\
                   hostnossl all over_tls 127.0.0.1/32 reject\n\
                   hostssl all with_certificate 127.0.0.1/32 cert\n";
        self.postgres.put_access_rules_first(rules).await.expect("rules");
        stack::eventually(Duration::from_secs(30), "the server speaks TLS", || async {
            self.open("over_tls:right", "localhost", "sslmode=require")
                .await
                .ok()
                .map(drop)
        })
        .await;
    }

    pub async fn open(&self, login: &str, host: &str, parameters: &str) -> anyhow::Result<Connection> {
        let url = format!(
            "postgres://{login}@{host}:{}/postgres?{parameters}",
            self.postgres.port()
        );
        Connection::open(&Target::parse(&url)?, Mode::Replication).await
    }

    pub async fn refusal(&self, login: &str, host: &str, parameters: &str) -> anyhow::Error {
        let refused = self.open(login, host, parameters).await.map(drop);
        let err = refused.expect_err("the login must be refused");
        assert!(!format!("{err:#}").contains("wrong-secret"), "{err:#}");
        err
    }
}
