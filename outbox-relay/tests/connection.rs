//! The relay's own Postgres client against a server that demands TLS, certificates and passwords.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use outbox_relay::lsn::Lsn;
use outbox_relay::postgres::{Connection, Frame, Frames, Mode, PgError, StandbyStatus, Target};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use stack::scratch::Scratch;
use stack::{Postgres, PostgresOptions};
use tokio::sync::OnceCell;

/// A server with roles that each log in in one way, and the certificates for it.
struct Server {
    postgres: Postgres,
    files: Scratch,
}

impl Server {
    async fn get() -> &'static Self {
        static SERVER: OnceCell<Server> = OnceCell::const_new();
        SERVER.get_or_init(Self::start).await
    }

    async fn start() -> Self {
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
                self.issue("server", "localhost", ExtendedKeyUsagePurpose::ServerAuth, &issuer);
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
        let certificate = params.signed_by(&key, issuer).expect("a certificate");
        self.write(&format!("{name}.crt"), &certificate.pem());
        self.write(&format!("{name}.key"), &key.serialize_pem());
    }

    /// Files belong to the server's user, who takes no key that others can read.
    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::write(&path, text).expect("a file");
        if name == "server.key" {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("permissions");
            let owner = std::fs::metadata(self.postgres.socket_directory()).expect("the socket's directory");
            chown(&path, Some(owner.uid()), Some(owner.gid())).expect("an owner");
        }
    }

    fn path(&self, name: &str) -> PathBuf {
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
        let file = |name: &str| self.path(name).display().to_string();
        sql(format!("alter system set ssl_cert_file = '{}'", file("server.crt"))).await;
        sql(format!("alter system set ssl_key_file = '{}'", file("server.key"))).await;
        sql(format!("alter system set ssl_ca_file = '{}'", file("ca.crt"))).await;
        sql("alter system set ssl = on".to_owned()).await;
        let rules = sql("show hba_file".to_owned()).await;
        let rules = Path::new(rules[0][0].as_deref().expect("a path")).to_owned();
        let before = std::fs::read_to_string(&rules).expect("pg_hba.conf");
        let own = "host all with_password 127.0.0.1/32 scram-sha-256\n\
                   host all with_md5 127.0.0.1/32 md5\n\
                   hostssl all over_tls 127.0.0.1/32 scram-sha-256\n\
                   hostnossl all over_tls 127.0.0.1/32 reject\n\
                   hostssl all with_certificate 127.0.0.1/32 cert\n";
        std::fs::write(&rules, format!("{own}{before}")).expect("pg_hba.conf");
        sql("select pg_reload_conf()".to_owned()).await;
        stack::eventually(Duration::from_secs(30), "the server speaks TLS", || async {
            self.open("over_tls:right", "localhost", "sslmode=require")
                .await
                .ok()
                .map(drop)
        })
        .await;
    }

    async fn open(&self, login: &str, host: &str, parameters: &str) -> anyhow::Result<Connection> {
        let url = format!(
            "postgres://{login}@{host}:{}/postgres?{parameters}",
            self.postgres.port()
        );
        Connection::open(&Target::parse(&url)?, Mode::Replication).await
    }

    async fn refusal(&self, login: &str, host: &str, parameters: &str) -> anyhow::Error {
        let refused = self.open(login, host, parameters).await.map(drop);
        let err = refused.expect_err("the login must be refused");
        assert!(!format!("{err:#}").contains("wrong-secret"), "{err:#}");
        err
    }
}

#[tokio::test]
async fn a_right_password_is_taken_and_a_wrong_one_refused() {
    let server = Server::get().await;
    for role in ["with_password", "with_md5"] {
        let mut connection = server
            .open(&format!("{role}:right"), "127.0.0.1", "sslmode=disable")
            .await
            .expect(role);
        assert_eq!(
            connection.rows("select current_user").await.expect("SQL")[0][0].as_deref(),
            Some(role)
        );
        let err = server
            .refusal(&format!("{role}:wrong-secret"), "127.0.0.1", "sslmode=disable")
            .await;
        assert_eq!(PgError::code_of(&err), Some("28P01"), "{err:#}");
        let err = server.refusal(role, "127.0.0.1", "sslmode=disable").await;
        assert!(format!("{err:#}").contains("DATABASE_URL has none"), "{err:#}");
    }
}

#[tokio::test]
async fn verify_full_takes_the_right_host_of_the_right_authority_only() {
    let server = Server::get().await;
    let root = |name: &str| server.path(name).display().to_string();
    let (right, wrong) = (root("ca.crt"), root("other-ca.crt"));
    for (host, parameters) in [
        ("localhost", format!("sslmode=verify-full&sslrootcert={right}")),
        ("127.0.0.1", format!("sslmode=verify-ca&sslrootcert={right}")),
        ("127.0.0.1", "sslmode=require".to_owned()),
        ("127.0.0.1", "sslmode=prefer".to_owned()),
    ] {
        let mut connection = server
            .open("over_tls:right", host, &parameters)
            .await
            .unwrap_or_else(|err| panic!("{parameters}: {err:#}"));
        let rows = connection
            .rows("select ssl from pg_stat_ssl where pid = pg_backend_pid()")
            .await
            .expect("SQL");
        assert_eq!(rows[0][0].as_deref(), Some("t"), "{parameters}");
    }
    for (host, parameters) in [
        ("127.0.0.1", format!("sslmode=verify-full&sslrootcert={right}")),
        ("localhost", format!("sslmode=verify-full&sslrootcert={wrong}")),
        ("localhost", format!("sslmode=verify-ca&sslrootcert={wrong}")),
        ("localhost", format!("sslmode=require&sslrootcert={wrong}")),
        ("localhost", "sslmode=verify-full".to_owned()),
        ("localhost", "sslmode=disable".to_owned()),
    ] {
        server.refusal("over_tls:right", host, &parameters).await;
    }
}

#[tokio::test]
async fn a_client_certificate_logs_in_and_a_strangers_does_not() {
    let server = Server::get().await;
    let parameters = |name: &str| {
        let file = |ending: &str| server.path(&format!("{name}.{ending}")).display().to_string();
        format!("sslmode=require&sslcert={}&sslkey={}", file("crt"), file("key"))
    };
    server
        .open("with_certificate", "localhost", &parameters("client"))
        .await
        .expect("the certificate is good");
    server
        .refusal("with_certificate", "localhost", &parameters("stranger"))
        .await;
    server.refusal("with_certificate", "localhost", "sslmode=require").await;
}

#[tokio::test]
async fn a_unix_socket_is_a_way_in() {
    let server = Server::get().await;
    let directory = server.postgres.socket_directory();
    let parameters = format!("host={}", directory.display());
    let mut connection = server
        .open("postgres", "localhost", &parameters)
        .await
        .expect("a connection");
    let rows = connection.rows("select inet_server_addr() is null").await.expect("SQL");
    assert_eq!(rows[0][0].as_deref(), Some("t"));
}

#[tokio::test]
async fn a_slot_streams_over_tls() {
    let server = Server::get().await;
    let parameters = format!("sslmode=verify-full&sslrootcert={}", server.path("ca.crt").display());
    let mut connection = server
        .open("over_tls:right", "localhost", &parameters)
        .await
        .expect("a connection");
    connection
        .start_replication("over_tls", Lsn::INVALID, "outbox")
        .await
        .expect("a stream");
    let mut stream = connection.into_stream();
    server
        .postgres
        .query("postgres", "insert into outbox values (gen_random_uuid())")
        .await
        .expect("a row");
    let mut data_frames = 0;
    // Begin, Relation, Insert, Commit.
    while data_frames < 4 {
        let read = tokio::time::timeout(Duration::from_secs(20), stream.read()).await;
        read.expect("the row arrives").expect("the stream lives");
        let mut frames = Frames::new(stream.buffer());
        while let Some((frame, length)) = frames.peek().expect("whole frames") {
            data_frames += usize::from(matches!(frame, Frame::Data(_)));
            frames.advance(length);
        }
        let consumed = frames.consumed();
        stream.consume(consumed);
    }
    let status = StandbyStatus {
        received: Lsn(1),
        confirmed: Lsn::INVALID,
        reply_requested: true,
    };
    stream.send_status(status).await.expect("a status");
    stream.close().await;
}
