//! Channel binding to a certificate with an RSA signature. Most certificates that are bought have one. A real server says whether we choose the right
//! hash.

use std::path::PathBuf;
use std::time::Duration;

use pg_replication::{Connection, Mode, Target};
use rcgen::{
    CertificateParams, DnType, KeyPair, PKCS_RSA_SHA256, PKCS_RSA_SHA384, PKCS_RSA_SHA512, SignatureAlgorithm,
};
use stack::scratch::Scratch;
use stack::{Postgres, PostgresOptions};

/// A key for this test only. It is in a file since `ring` cannot make RSA keys.
const KEY: &str = include_str!("rsa.key.pem");

struct Server {
    postgres: Postgres,
    files: Scratch,
}

impl Server {
    async fn start() -> Self {
        let options = PostgresOptions {
            version: Some(18),
            ..PostgresOptions::default()
        };
        let server = Self {
            postgres: Postgres::start(options).await.expect("a PostgreSQL"),
            files: Scratch::temporary("outbox-rsa-").expect("a directory"),
        };
        server.write_key();
        server.certify("first", &PKCS_RSA_SHA256);
        server
            .sql("create role over_tls login replication password 'right'")
            .await;
        let postgres = &server.postgres;
        let shown = postgres.set_certificate_of(server.files.path());
        shown.await.expect("a certificate");
        let rules = postgres.put_access_rules_first("hostssl all over_tls 127.0.0.1/32 scram-sha-256");
        rules.await.expect("rules");
        server
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    fn write_key(&self) {
        let path = self.path("server.key");
        std::fs::write(&path, KEY).expect("a file");
        self.postgres.make_key_its_own(&path).expect("a key of the server's");
    }

    /// Gives the server a certificate that is signed with this algorithm. It is its own root, with a name of its own. So it does not prove the
    /// certificates of the other names.
    fn certify(&self, name: &str, algorithm: &'static SignatureAlgorithm) {
        let key = KeyPair::from_pem_and_sign_algo(KEY, algorithm).expect("the key");
        let mut params = CertificateParams::new(["localhost".to_owned()]).expect("names");
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.self_signed(&key).expect("a certificate");
        std::fs::write(self.path("server.crt"), certificate.pem()).expect("a file");
    }

    async fn sql(&self, sql: &str) -> Option<String> {
        let rows = self.postgres.query("postgres", sql).await.expect("SQL");
        rows.into_iter().next()?.into_iter().next()?
    }

    async fn log_in(&self, parameters: &str) -> anyhow::Result<Connection> {
        let port = self.postgres.port();
        let url = format!("postgres://over_tls:right@localhost:{port}/postgres?{parameters}");
        Connection::open(&Target::parse(&url)?, Mode::Replication).await
    }
}

#[tokio::test]
async fn a_login_is_bound_to_an_rsa_certificate_whatever_its_hash() {
    let server = Server::start().await;
    for (name, algorithm) in [
        ("sha256", &PKCS_RSA_SHA256),
        ("sha384", &PKCS_RSA_SHA384),
        ("sha512", &PKCS_RSA_SHA512),
    ] {
        server.certify(name, algorithm);
        server.sql("select pg_reload_conf()").await;
        // The client trusts only this certificate. So it does not accept the one before, if the server still shows that.
        let root = server.path("server.crt");
        let with_it = format!("sslmode=verify-full&sslrootcert={}", root.display());
        stack::eventually(
            Duration::from_secs(30),
            "the server shows its new certificate",
            || async { server.log_in(&format!("{with_it}&channel_binding=disable")).await.ok() },
        )
        .await;
        server
            .log_in(&format!("{with_it}&channel_binding=require"))
            .await
            .unwrap_or_else(|err| panic!("{name}: {err:#}"));
    }
}
