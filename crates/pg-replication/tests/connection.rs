//! The relay's own Postgres client against a server that demands TLS, certificates and passwords.

mod secured;

use std::time::Duration;

use pg_replication::Lsn;
use pg_replication::{Connection, Frame, Frames, Mode, PgError, StandbyStatus, Target};
use secured::Server;
use secured::middle::{Middle, Upstream};

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
    // This man in the middle speaks to the server without TLS. So the server has nothing to bind to, and does not offer the binding.
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
    // The certificate is for localhost. So it is wrong for the same server under its IP address.
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
