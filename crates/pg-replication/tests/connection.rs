//! The relay's own Postgres client against a server that demands TLS, certificates and passwords.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pg_replication::Lsn;
use pg_replication::{Connection, Frame, Frames, Mode, PgError, StandbyStatus, Target};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use stack::scratch::Scratch;
use stack::{Postgres, PostgresOptions};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OnceCell;
use tokio_rustls::{TlsAcceptor, TlsConnector};

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
        assert!(format!("{err:#}").contains("the URL has none"), "{err:#}");
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
async fn a_password_may_come_from_a_file() {
    let server = Server::get().await;
    let parameters = |name: &str| format!("sslmode=disable&passwordfile={}", server.path(name).display());
    server.write("password", "right\n");
    server
        .open("with_password", "127.0.0.1", &parameters("password"))
        .await
        .expect("the password is right");
    server.write("other-password", "wrong-secret");
    let err = server
        .refusal("with_password", "127.0.0.1", &parameters("other-password"))
        .await;
    assert_eq!(PgError::code_of(&err), Some("28P01"), "{err:#}");
    let err = server
        .refusal("with_password", "127.0.0.1", &parameters("no-such-file"))
        .await;
    assert!(format!("{err:#}").contains("`passwordfile` cannot be read"), "{err:#}");
}

#[tokio::test]
async fn a_login_over_tls_is_bound_to_the_servers_certificate() {
    let server = Server::get().await;
    for parameters in ["sslmode=require&channel_binding=require", "sslmode=require"] {
        server
            .open("over_tls:right", "localhost", parameters)
            .await
            .unwrap_or_else(|err| panic!("{parameters}: {err:#}"));
    }
    // A man in the middle whose certificate nobody looks at: only the binding finds him out.
    let middle = Middle::start(server, "stranger", Upstream::Tls).await;
    for parameters in ["channel_binding=prefer", "channel_binding=require"] {
        let err = middle.open(&format!("sslmode=require&{parameters}")).await.map(drop);
        let err = err.expect_err("the server must refuse the binding");
        assert!(format!("{err:#}").contains("channel binding"), "{err:#}");
    }
    assert!(middle.heard("SCRAM-SHA-256-PLUS"), "the binding is what was refused");
    middle
        .open("sslmode=require&channel_binding=disable")
        .await
        .expect("without binding nobody notices him");
}

#[tokio::test]
async fn a_binding_that_is_required_is_never_given_up() {
    let server = Server::get().await;
    let certificate = |name: &str| {
        let file = |ending: &str| server.path(&format!("{name}.{ending}")).display().to_string();
        format!("sslmode=require&sslcert={}&sslkey={}", file("crt"), file("key"))
    };
    for (login, parameters, reason) in [
        (
            "with_password:right",
            "sslmode=disable".to_owned(),
            "the session has no TLS",
        ),
        ("with_md5:right", "sslmode=require".to_owned(), "not bound"),
        ("with_certificate", certificate("client"), "not bound"),
    ] {
        let err = server
            .refusal(login, "localhost", &format!("{parameters}&channel_binding=require"))
            .await;
        assert!(format!("{err:#}").contains(reason), "{login}: {err:#}");
    }
    // Takes the TLS off, so that the server has nothing to bind to and does not offer it.
    let middle = Middle::start(server, "server", Upstream::Plain).await;
    let login = "sslmode=require&channel_binding=";
    let err = middle.open(&format!("{login}require")).await.map(drop);
    let err = err.expect_err("the offer is missing");
    assert!(format!("{err:#}").contains("offers no SCRAM-SHA-256-PLUS"), "{err:#}");
    middle
        .open(&format!("{login}prefer"))
        .await
        .expect("binding is only preferred");
}

#[tokio::test]
async fn a_certificate_that_is_expired_or_of_another_host_is_refused() {
    let server = Server::get().await;
    let root = server.path("ca.crt");
    let verify = format!("sslmode=verify-full&sslrootcert={}", root.display());
    let good = Middle::start(server, "server", Upstream::Plain).await;
    good.open(&verify).await.expect("the certificate is good");
    for (name, reason) in [("expired", "expired"), ("other-host", "not valid for name")] {
        let middle = Middle::start(server, name, Upstream::Plain).await;
        let err = middle.open(&verify).await.map(drop).expect_err(name);
        assert!(format!("{err:#}").contains(reason), "{name}: {err:#}");
    }
}

#[tokio::test]
async fn each_host_of_a_list_is_verified_by_its_own_name() {
    let server = Server::get().await;
    let verify = format!("sslmode=verify-full&sslrootcert={}", server.path("ca.crt").display());
    let open = async |hosts: &str| {
        let url = format!("postgres://over_tls:right@{hosts}/postgres?{verify}");
        Connection::open(&Target::parse(&url)?, Mode::Replication).await
    };
    let port = server.postgres.port();
    // The certificate is localhost's: the same server by its address is not who it says.
    open(&format!("127.0.0.1:{port},localhost:{port}"))
        .await
        .expect("the second host is who it says");
    let stranger = Middle::start(server, "other-host", Upstream::Plain).await.port;
    let err = open(&format!("127.0.0.1:{port},localhost:{stranger}"))
        .await
        .map(drop)
        .expect_err("neither is who it says");
    let said = format!("{err:#}");
    assert_eq!(said.matches("not valid for name").count(), 2, "{said}");
}

/// How the man in the middle speaks to the server.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Upstream {
    Plain,
    Tls,
}

/// Stands between client and server with a certificate of his own, passes everything on and remembers what the client says.
struct Middle {
    port: u16,
    role: &'static str,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Middle {
    async fn start(server: &'static Server, certificate: &str, upstream: Upstream) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let chain = CertificateDer::from_pem_file(server.path(&format!("{certificate}.crt"))).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(server.path(&format!("{certificate}.key"))).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![chain], key))
            .expect("a TLS configuration");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let ears = Arc::clone(&heard);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // A client that goes away in the middle is what is tested.
                let _ended = pass_on(client, &acceptor, server, upstream, &ears).await;
            }
        });
        let role = if upstream == Upstream::Tls {
            "over_tls"
        } else {
            "with_password"
        };
        Self { port, role, heard }
    }

    async fn open(&self, parameters: &str) -> anyhow::Result<Connection> {
        let url = format!(
            "postgres://{}:right@localhost:{}/postgres?{parameters}",
            self.role, self.port
        );
        Connection::open(&Target::parse(&url)?, Mode::Replication).await
    }

    fn heard(&self, text: &str) -> bool {
        let heard = self.heard.lock().expect("no panic");
        heard.windows(text.len()).any(|window| window == text.as_bytes())
    }
}

async fn pass_on(
    mut client: TcpStream,
    acceptor: &TlsAcceptor,
    server: &Server,
    upstream: Upstream,
    ears: &Mutex<Vec<u8>>,
) -> anyhow::Result<()> {
    let mut request = [0; 8];
    client.read_exact(&mut request).await?;
    client.write_all(b"S").await?;
    let client = acceptor.accept(client).await?;
    let mut plain = TcpStream::connect(("127.0.0.1", server.postgres.port())).await?;
    if upstream == Upstream::Plain {
        return exchange(client, plain, ears).await;
    }
    plain.write_all(&request).await?;
    anyhow::ensure!(plain.read_u8().await? == b'S', "the server has TLS");
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(server.path("ca.crt"))?)?;
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let tls = connector.connect("localhost".try_into()?, plain).await?;
    exchange(client, tls, ears).await
}

async fn exchange(
    client: impl AsyncRead + AsyncWrite,
    server: impl AsyncRead + AsyncWrite,
    ears: &Mutex<Vec<u8>>,
) -> anyhow::Result<()> {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_server, mut to_server) = tokio::io::split(server);
    let forth = async {
        let mut bytes = [0; 8192];
        loop {
            let length = from_client.read(&mut bytes).await?;
            if length == 0 {
                return anyhow::Ok(());
            }
            ears.lock().expect("no panic").extend_from_slice(&bytes[..length]);
            to_server.write_all(&bytes[..length]).await?;
            to_server.flush().await?;
        }
    };
    let back = async { Ok(tokio::io::copy(&mut from_server, &mut to_client).await.map(drop)?) };
    tokio::select! {
        ended = forth => ended,
        ended = back => ended,
    }
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
