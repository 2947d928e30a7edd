//! The program on a PostgreSQL that takes it by TLS and a password alone. The same TLS is tested through and through in `crates/pg-replication`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use stack::program::Readiness;
use stack::scratch::Scratch;
use stack::{Postgres, PostgresOptions, Program, eventually, port};
use tokio::sync::OnceCell;

const DEADLINE: Duration = Duration::from_secs(60);

/// Nobody looks for it in a log in vain: no other text has it.
const PASSWORD: &str = "canary-right";

struct Server {
    postgres: Postgres,
    files: Scratch,
}

impl Server {
    /// Shared by the tests of this process; it ends with the process.
    async fn get() -> &'static Self {
        static SERVER: OnceCell<Server> = OnceCell::const_new();
        SERVER.get_or_init(Self::start).await
    }

    async fn start() -> Self {
        let options = PostgresOptions {
            version: Some(18),
            ..PostgresOptions::default()
        };
        let server = Self {
            postgres: Postgres::start(options).await.expect("a PostgreSQL"),
            files: Scratch::temporary("view-builder-secured-").expect("a directory"),
        };
        server.issue_certificates();
        server.sql("create role tls_only").await;
        let postgres = &server.postgres;
        let shown = postgres.set_certificate_of(server.files.path());
        shown.await.expect("a certificate");
        let rules = "hostssl all +tls_only 127.0.0.1/32 scram-sha-256\nhostnossl all +tls_only all reject";
        postgres.put_access_rules_first(rules).await.expect("rules");
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
                let key = KeyPair::generate().expect("a key");
                let params = CertificateParams::new(["localhost".to_owned()]).expect("names");
                let certificate = params.signed_by(&key, &issuer).expect("a certificate");
                self.write("server.crt", &certificate.pem());
                self.write("server.key", &key.serialize_pem());
                let own = self.postgres.make_key_its_own(&self.path("server.key"));
                own.expect("a key of the server's");
            }
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("a file");
    }

    async fn sql(&self, sql: &str) -> Option<String> {
        let rows = self.postgres.query("postgres", sql).await.expect("SQL");
        rows.into_iter().next()?.into_iter().next()?
    }

    /// A database and a role of this name, and the program that logs in as this role with `parameters`.
    async fn program(&self, name: &str, parameters: &str) -> Program {
        self.sql(&format!(
            "create role {name} superuser login in role tls_only password '{PASSWORD}'"
        ))
        .await;
        self.sql(&format!("create database {name} owner {name}")).await;
        let admin = port::free().expect("a port");
        let kafka = port::free().expect("a port");
        let views = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sql/views");
        let binary = Path::new(env!("CARGO_BIN_EXE_view-builder"));
        Program::new(name, binary, self.path(&format!("{name}.log")), admin)
            .argument("run")
            .env("DATABASE_URL", &self.url(name, parameters))
            // Nobody is there: the views are made before Kafka is needed.
            .env("KAFKA_BOOTSTRAP_SERVERS", &format!("127.0.0.1:{kafka}"))
            .env("VIEWS", &views.display().to_string())
            .env("ADMIN_LISTEN", &format!("127.0.0.1:{admin}"))
            .env("LOG_FORMAT", "text")
    }

    fn url(&self, name: &str, parameters: &str) -> String {
        format!(
            "postgres://{name}@localhost:{}/{name}?{parameters}",
            self.postgres.port()
        )
    }

    /// What `verify-full` takes, with the password that this file holds.
    fn verified(&self, password: &str) -> String {
        let (root, password) = (self.path("ca.crt"), self.path(password));
        format!(
            "sslmode=verify-full&sslrootcert={}&passwordfile={}",
            root.display(),
            password.display()
        )
    }

    /// Waits until the role has a session under TLS that began later than the process `pid`, and gives the process that serves it.
    async fn session(&self, name: &str, after: &str) -> String {
        let sql = format!(
            "select min(pid)::text from pg_stat_ssl join pg_stat_activity using (pid)
             where usename = '{name}' and ssl and pid <> {after}"
        );
        eventually(DEADLINE, "it has a session under TLS", || self.sql(&sql)).await
    }
}

#[tokio::test]
async fn views_are_made_where_only_tls_is_taken_and_a_replaced_password_is_read() {
    let server = Server::get().await;
    server.write("password", &format!("{PASSWORD}\n"));
    let program = server.program("by_tls", &server.verified("password")).await;
    program.start().expect("a start");
    let session = server.session("by_tls", "0").await;
    eventually(DEADLINE, "the views are made", || async {
        let rows = server
            .postgres
            .query("by_tls", "select to_regclass('user_view')::text")
            .await;
        rows.ok()?.into_iter().next()?.into_iter().next()?
    })
    .await;

    server.sql("alter role by_tls password 'canary-other'").await;
    server.write("password", "canary-other\n");
    server.sql(&format!("select pg_terminate_backend({session})")).await;
    server.session("by_tls", &session).await;
    program.stop().await.expect("a clean end");
    // Between the change of the role and that of the file a session with the old password may be refused. The next one reads the file again.
    let log = program.log_text();
    assert!(!log.contains("canary-"), "{log}");
}

#[tokio::test]
async fn an_authority_that_is_not_trusted_is_refused_with_a_clear_line() {
    const REASON: &str = "TLS handshake failed: invalid peer certificate: ";
    let server = Server::get().await;
    server.write("wrong-ca-password", PASSWORD);
    let parameters = server.verified("wrong-ca-password").replace("ca.crt", "other-ca.crt");
    let program = server.program("by_wrong_ca", &parameters).await;
    program.start().expect("a start");
    let client = reqwest::Client::new();
    eventually(DEADLINE, "it says why it waits", || async {
        match program.readiness(&client).await.ok()? {
            Readiness::NotReady(reasons) => reasons.contains(REASON).then_some(()),
            Readiness::Ready => None,
        }
    })
    .await;
    program.stop().await.expect("a clean end");
    let status = program.run_for_status(&["pause", "user_view"]).await.expect("it ends");
    let log = program.log_text();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains(&format!("nothing is changed: {REASON}")), "{log}");
}

#[tokio::test]
async fn what_is_wrong_with_the_url_is_named_in_the_relays_words() {
    let server = Server::get().await;
    server.write("url-password", PASSWORD);
    let program = server.program("by_url", "sslmode=disable").await;
    let right = server.verified("url-password");
    for (parameters, exit_code, words) in [
        (
            "sslmode=maybe".to_owned(),
            2,
            "DATABASE_URL: `sslmode` is `maybe`, not one of disable, ",
        ),
        (
            "sslcert=x".to_owned(),
            2,
            "DATABASE_URL: `sslcert` and `sslkey` go together",
        ),
        (
            "passwordfile=/nowhere/at/all".to_owned(),
            2,
            "`passwordfile` cannot be read: /nowhere/at/all: ",
        ),
        (
            format!("{right}&sslrootcert=/nowhere/ca"),
            1,
            "cannot read sslrootcert /nowhere/ca: ",
        ),
        (
            right.replace("verify-full", "disable"),
            1,
            "pg_hba.conf rejects connection",
        ),
    ] {
        let program = program.with_env("DATABASE_URL", &server.url("by_url", &parameters));
        let logged = program.log_text().len();
        let status = program.run_for_status(&["pause", "user_view"]).await.expect("it ends");
        let log = program.log_text()[logged..].to_owned();
        assert_eq!(status.code(), Some(exit_code), "{parameters}: {log}");
        assert!(log.contains(words) && !log.contains(PASSWORD), "{parameters}: {log}");
    }
}
