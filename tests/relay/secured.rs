//! Servers that demand TLS, certificates, passwords and tokens, for the tests of connections.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rig::servers::postgres_options;
use rig::{Rig, Servers};
use stack::scratch::Scratch;
use stack::{KafkaOptions, Program};
use tokio::sync::OnceCell;

/// The right password everywhere. No other text contains it, so a test can search for it.
pub(super) const PASSWORD: &str = "canary-kafka-password";

/// A Kafka with a listener for each kind of login, and the files for them. On the listener AGAIN a session ends with its token.
pub(super) struct Secured {
    pub(super) servers: Arc<Servers>,
    files: Scratch,
}

impl Secured {
    /// The servers that all tests of this process share. They end with the process.
    pub(super) async fn get() -> &'static Self {
        static SECURED: OnceCell<Secured> = OnceCell::const_new();
        SECURED.get_or_init(Self::start).await
    }

    async fn start() -> Self {
        let files = Scratch::temporary("outbox-secured-").expect("a directory");
        let certificates = Certificates::issue();
        for (name, text) in [
            ("ca.crt", &certificates.ca),
            ("other-ca.crt", &certificates.other_ca),
            ("client.crt", &certificates.client.0),
            ("client.key", &certificates.client.1),
            ("stranger.crt", &certificates.stranger.0),
            ("stranger.key", &certificates.stranger.1),
            ("password", &format!("{PASSWORD}\n")),
            ("wrong-password", &"wrong".to_owned()),
            ("token", &token(Duration::from_secs(3600))),
            ("expired-token", &token(Duration::ZERO)),
        ] {
            let path = files.path().join(name);
            std::fs::write(&path, text).expect("a file");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("permissions");
        }
        let mut options = KafkaOptions {
            listeners: [
                ("TLS", "SSL"),
                ("MTLS", "SSL"),
                ("LOGIN", "SASL_SSL"),
                ("AGAIN", "SASL_SSL"),
            ]
            .map(|(name, protocol)| (name.to_owned(), protocol.to_owned()))
            .to_vec(),
            ..KafkaOptions::default()
        };
        for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
            options.format_arguments.extend([
                "--add-scram".to_owned(),
                format!("{mechanism}=[name=relay,password={PASSWORD}]"),
            ]);
        }
        options.settings.extend(broker_settings(&certificates));
        let servers = Servers::start(postgres_options(), options).await;
        let servers = servers.unwrap_or_else(|err| panic!("the servers do not start: {err:#}"));
        Self {
            servers: Arc::new(servers),
            files,
        }
    }

    /// The path of one of the files.
    pub(super) fn path(&self, name: &str) -> String {
        self.files.path().join(name).display().to_string()
    }

    /// Creates a role that must log in with `password` if it connects by TCP.
    pub(super) async fn create_role(&self, role: &str, password: &str) {
        let postgres = &self.servers.postgres;
        let made = format!("create role {role} superuser login replication password '{password}'");
        postgres.query("postgres", &made).await.expect("SQL");
        let rules = format!("host all {role} 127.0.0.1/32 scram-sha-256");
        postgres.put_access_rules_first(&rules).await.expect("rules");
    }

    /// Replaces the contents of a file.
    pub(super) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.files.path().join(name), text).expect("a file");
    }

    /// Compiles a shared library from C. Returns its path.
    pub(super) fn library(&self, name: &str, source: &str) -> String {
        let library = self.path(&format!("{name}.so"));
        self.write(&format!("{name}.c"), source);
        let compiled = std::process::Command::new("cc")
            .args([
                "-shared",
                "-fPIC",
                "-o",
                &library,
                &self.path(&format!("{name}.c")),
                "-ldl",
            ])
            .status()
            .expect("a C compiler, which librdkafka needs as well: apt-get install gcc");
        assert!(compiled.success(), "{name}.c");
        library
    }

    /// A rig whose relay connects through a listener, with these properties, one on each line.
    pub(super) async fn rig(&self, name: &str, listener: &str, properties: &str) -> Rig {
        let mut rig = Rig::on(Arc::clone(&self.servers), name).await;
        rig.relay = self.through(rig.relay, listener, properties);
        rig
    }

    /// The program, changed to connect through a listener with these properties, one on each line.
    pub(super) fn through(&self, program: Program, listener: &str, properties: &str) -> Program {
        let address = self.servers.kafka.listener(listener).expect("a listener");
        program
            .env("KAFKA_BOOTSTRAP_SERVERS", &address)
            // The broker listens only on the IPv4 address of localhost.
            .env("KAFKA_PROPERTIES", &format!("broker.address.family=v4\n{properties}"))
    }

    /// Properties for TLS that trust the certificate authority in this file.
    pub(super) fn tls(&self, authority: &str) -> String {
        format!("security.protocol=ssl\nssl.ca.location={}", self.path(authority))
    }

    /// Properties for TLS with a client's certificate: `NAME.crt` and `NAME.key`.
    pub(super) fn mutual_tls_as(&self, name: &str) -> String {
        format!(
            "{}\nssl.certificate.location={}\nssl.key.location={}",
            self.tls("ca.crt"),
            self.path(&format!("{name}.crt")),
            self.path(&format!("{name}.key"))
        )
    }

    /// Copies the contents of the file `from` into the file `to`.
    pub(super) fn copy(&self, from: &str, to: &str) {
        std::fs::copy(self.files.path().join(from), self.files.path().join(to)).expect("a copy");
    }

    /// Properties for a login over TLS.
    pub(super) fn login(&self, mechanism: &str) -> String {
        format!(
            "security.protocol=sasl_ssl\nssl.ca.location={}\nsasl.mechanism={mechanism}",
            self.path("ca.crt")
        )
    }
}

/// The settings of the broker: its certificate, and how clients log in at each listener.
fn broker_settings(certificates: &Certificates) -> Vec<(String, String)> {
    let module = |name: &str, rest: &str| format!("org.apache.kafka.common.security.{name} required{rest};");
    let oauth = module(
        "oauthbearer.OAuthBearerLoginModule",
        " unsecuredLoginStringClaim_sub=\"broker\"",
    );
    [
        ("inter.broker.listener.name", "PLAINTEXT".to_owned()),
        ("ssl.keystore.type", "PEM".to_owned()),
        ("ssl.keystore.certificate.chain", in_one_line(&certificates.server.0)),
        ("ssl.keystore.key", in_one_line(&certificates.server.1)),
        ("ssl.truststore.type", "PEM".to_owned()),
        ("ssl.truststore.certificates", in_one_line(&certificates.ca)),
        ("listener.name.mtls.ssl.client.auth", "required".to_owned()),
        (
            "sasl.enabled.mechanisms",
            "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER".to_owned(),
        ),
        (
            "listener.name.login.plain.sasl.jaas.config",
            module("plain.PlainLoginModule", &format!(" user_relay=\"{PASSWORD}\"")),
        ),
        (
            "listener.name.login.scram-sha-256.sasl.jaas.config",
            module("scram.ScramLoginModule", ""),
        ),
        (
            "listener.name.login.scram-sha-512.sasl.jaas.config",
            module("scram.ScramLoginModule", ""),
        ),
        ("listener.name.login.oauthbearer.sasl.jaas.config", oauth.clone()),
        // A session lasts as long as its token, unless the client logs in again on the open connection (KIP-368).
        ("listener.name.again.sasl.enabled.mechanisms", "OAUTHBEARER".to_owned()),
        ("listener.name.again.oauthbearer.sasl.jaas.config", oauth),
        (
            "listener.name.again.oauthbearer.connections.max.reauth.ms",
            "3600000".to_owned(),
        ),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

/// An unsecured JWT (RFC 7519, section 6) for the relay. It expires after `lifetime`.
pub(super) fn token(lifetime: Duration) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs();
    let claims = format!(
        "{{\"sub\":\"relay\",\"iat\":{now},\"exp\":{}}}",
        now + lifetime.as_secs()
    );
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    format!("{}.{}.", encode("{\"alg\":\"none\"}"), encode(&claims))
}

fn in_one_line(pem: &str) -> String {
    pem.replace('\r', "").replace('\n', "\\n")
}

/// Certificates and keys as PEM texts. A pair has a certificate and its key.
struct Certificates {
    ca: String,
    other_ca: String,
    server: (String, String),
    client: (String, String),
    /// A client's certificate from an authority that nobody trusts.
    stranger: (String, String),
}

impl Certificates {
    fn issue() -> Self {
        let authority = |name: &str| {
            let key = KeyPair::generate().expect("a key");
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.distinguished_name.push(DnType::CommonName, name);
            let pem = params.self_signed(&key).expect("a root certificate").pem();
            (pem, Issuer::new(params, key))
        };
        let (ca, issuer) = authority("ca");
        let (other_ca, other_issuer) = authority("other-ca");
        let issue = |issuer: &Issuer<'static, KeyPair>, name: &str, usage| {
            let key = KeyPair::generate().expect("a key");
            let mut params = CertificateParams::new([name.to_owned()]).expect("names");
            params.distinguished_name.push(DnType::CommonName, name);
            params.extended_key_usages.push(usage);
            let certificate = params.signed_by(&key, issuer).expect("a certificate");
            (certificate.pem(), key.serialize_pem())
        };
        Self {
            server: issue(&issuer, "localhost", ExtendedKeyUsagePurpose::ServerAuth),
            client: issue(&issuer, "relay", ExtendedKeyUsagePurpose::ClientAuth),
            stranger: issue(&other_issuer, "relay", ExtendedKeyUsagePurpose::ClientAuth),
            ca,
            other_ca,
        }
    }
}
