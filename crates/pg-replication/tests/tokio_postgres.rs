//! Sessions of tokio-postgres with a server that demands TLS, certificates and passwords. They behave as our own sessions do.

mod secured;

use std::time::Duration;

use pg_replication::{SessionError, Target};
use secured::Server;
use secured::middle::{Middle, Upstream};

const DEADLINE: Duration = Duration::from_secs(30);

/// Opens a session. Returns its user and whether it has TLS, or the text of the error.
async fn session(target: &Target) -> Result<(String, bool), String> {
    let opened = target.open_tokio_postgres(|_config| {}).await;
    let (client, connection) = opened
        .map_err(|err| SessionError::words_for(&err).unwrap_or_else(|| format!("{:#}", anyhow::Error::from(err))))?;
    let served = tokio::spawn(connection);
    let sql = "select current_user::text, ssl from pg_stat_ssl where pid = pg_backend_pid()";
    let row = client.query_one(sql, &[]).await.expect("SQL");
    drop(client);
    served.await.expect("no panic").expect("a clean end");
    Ok((row.get(0), row.get(1)))
}

async fn through(server: &Server, login: &str, host: &str, parameters: &str) -> Result<(String, bool), String> {
    let url = format!(
        "postgres://{login}@{host}:{}/postgres?{parameters}",
        server.postgres.port()
    );
    session(&Target::parse(&url).expect("a target")).await
}

#[tokio::test]
async fn each_sslmode_means_what_it_means_for_our_own_sessions() {
    let server = Server::get().await;
    let root = |name: &str| server.path(name).display().to_string();
    let (right, wrong) = (root("ca.crt"), root("other-ca.crt"));
    let is_tls = Ok(("over_tls".to_owned(), true));
    for (host, parameters) in [
        ("localhost", format!("sslmode=verify-full&sslrootcert={right}")),
        ("127.0.0.1", format!("sslmode=verify-ca&sslrootcert={right}")),
        ("127.0.0.1", "sslmode=require".to_owned()),
        ("127.0.0.1", "sslmode=prefer".to_owned()),
    ] {
        let said = through(server, "over_tls:right", host, &parameters).await;
        assert_eq!(said, is_tls, "{parameters}");
    }
    for (host, parameters, words) in [
        (
            "127.0.0.1",
            format!("sslmode=verify-full&sslrootcert={right}"),
            "not valid for name",
        ),
        (
            "localhost",
            format!("sslmode=verify-full&sslrootcert={wrong}"),
            "TLS handshake failed: invalid peer certificate: ",
        ),
        (
            "localhost",
            format!("sslmode=verify-ca&sslrootcert={wrong}"),
            "invalid peer certificate",
        ),
        (
            "localhost",
            "sslmode=verify-full&sslrootcert=/nowhere/ca".to_owned(),
            "cannot read sslrootcert /nowhere/ca: ",
        ),
        (
            "localhost",
            "sslmode=disable".to_owned(),
            "pg_hba.conf rejects connection",
        ),
    ] {
        let said = through(server, "over_tls:right", host, &parameters).await;
        let said = said.expect_err(&parameters);
        assert!(said.contains(words), "{parameters}: {said}");
    }
}

#[tokio::test]
async fn a_client_certificate_and_a_password_from_a_file_log_in() {
    let server = Server::get().await;
    let file = |name: &str| server.path(name).display().to_string();
    let certified = |name: &str| {
        let (certificate, key) = (file(&format!("{name}.crt")), file(&format!("{name}.key")));
        format!("sslmode=require&sslcert={certificate}&sslkey={key}")
    };
    let said = through(server, "with_certificate", "localhost", &certified("client")).await;
    assert_eq!(said, Ok(("with_certificate".to_owned(), true)));
    let said = through(server, "with_certificate", "localhost", &certified("stranger")).await;
    said.expect_err("a stranger's certificate");

    // The file is read for each session.
    server.write("tokio-password", "right\n");
    let url = format!(
        "postgres://with_password@127.0.0.1:{}/postgres?sslmode=disable&passwordfile={}",
        server.postgres.port(),
        file("tokio-password")
    );
    let target = Target::parse(&url).expect("a target");
    assert_eq!(session(&target).await, Ok(("with_password".to_owned(), false)));
    server.write("tokio-password", "wrong-secret\n");
    let said = session(&target).await.expect_err("a wrong password");
    assert!(
        said.contains("password authentication failed") && !said.contains("wrong-secret"),
        "{said}"
    );
    std::fs::remove_file(server.path("tokio-password")).expect("the file");
    let said = session(&target).await.expect_err("no password");
    assert!(
        said.starts_with(&format!("`passwordfile` {} cannot be read: ", file("tokio-password"))),
        "{said}"
    );
}

#[tokio::test]
async fn a_server_without_tls_is_refused_where_tls_is_demanded() {
    let server = Server::get().await;
    let url = |parameters: &str| {
        let directory = server.postgres.socket_directory();
        format!(
            "postgres://postgres@localhost/postgres?host={}&port={}&{parameters}",
            directory.display(),
            server.postgres.port()
        )
    };
    // A Unix socket needs no TLS.
    let target = Target::parse(&url("sslmode=require")).expect("a target");
    assert_eq!(session(&target).await, Ok(("postgres".to_owned(), false)));
    let without_tls_port = secured::middle::without_tls().await;
    let target =
        Target::parse(&format!("postgres://u@127.0.0.1:{without_tls_port}/d?sslmode=require")).expect("a target");
    let said = session(&target).await;
    assert_eq!(said, Err("the server has no TLS, but sslmode demands it".to_owned()));
}

#[tokio::test]
async fn a_man_in_the_middle_whose_certificate_nobody_looks_at_is_found_out() {
    let server = Server::get().await;
    let said = through(
        server,
        "over_tls:right",
        "localhost",
        "sslmode=require&channel_binding=require",
    )
    .await;
    assert_eq!(said, Ok(("over_tls".to_owned(), true)));
    let middle = Middle::start(server, "stranger", Upstream::Tls).await;
    for parameters in ["channel_binding=prefer", "channel_binding=require"] {
        let said = session(&middle.target(&format!("sslmode=require&{parameters}"))).await;
        let said = said.expect_err("the server must refuse the binding");
        assert!(said.contains("channel binding"), "{said}");
    }
    assert!(middle.heard("SCRAM-SHA-256-PLUS"), "the binding is what was refused");
}

#[tokio::test]
async fn of_several_hosts_the_primary_is_taken_also_by_a_role_that_may_only_read() {
    let server = Server::get().await;
    let primary = &server.postgres;
    let made = "create role reader login; alter role reader set default_transaction_read_only = on";
    primary.query("postgres", made).await.expect("SQL");
    let rule = "host all reader 127.0.0.1/32 trust";
    primary.put_access_rules_first(rule).await.expect("a rule");
    let standby = primary.standby("tokio_postgres").await.expect("a standby");
    let port_of = async |hosts: String, parameters: &str| {
        let url = format!("postgres://reader@{hosts}/postgres?sslmode=disable{parameters}");
        let target = Target::parse(&url).expect("a target");
        let (client, connection) = target.open_tokio_postgres(|_config| {}).await?;
        let served = tokio::spawn(connection);
        let row = client.query_one("select inet_server_port()", &[]).await?;
        drop(client);
        served.await.expect("no panic")?;
        Ok::<i32, tokio_postgres::Error>(row.get(0))
    };
    let (standby_port, primary_port) = (standby.port(), primary.port());
    for hosts in [
        format!("127.0.0.1:{standby_port},127.0.0.1:{primary_port}"),
        format!("127.0.0.1:{primary_port},127.0.0.1:{standby_port}"),
    ] {
        let port = port_of(hosts.clone(), "").await.expect("a session");
        assert_eq!(port, i32::from(primary_port), "{hosts}");
    }
    // A single host is taken, whatever it is. So is the first host if `any` kind is asked for.
    let standbys = format!("127.0.0.1:{standby_port}");
    let port = port_of(standbys.clone(), "").await.expect("a session");
    assert_eq!(port, i32::from(standby_port));
    let any = "&target_session_attrs=any";
    let port = port_of(format!("{standbys},127.0.0.1:{primary_port}"), any).await;
    assert_eq!(port.expect("a session"), i32::from(standby_port));
    // If no host is a primary, no host is taken.
    let none = port_of(format!("{standbys},{standbys}"), "").await;
    none.expect_err("two standbys");
    standby.stop_fast().await.expect("a clean end");
    let dropped = "select pg_drop_replication_slot('tokio_postgres')";
    primary.query("postgres", dropped).await.expect("SQL");
}

#[tokio::test]
async fn a_host_that_accepts_and_stays_silent_does_not_hold_up_the_next_one() {
    let server = Server::get().await;
    let silent = secured::middle::silent().await;
    let port = server.postgres.port();
    for session_kind in ["", "&target_session_attrs=any"] {
        let url = format!(
            "postgres://with_password:right@127.0.0.1:{silent},127.0.0.1:{port}/postgres?sslmode=disable&connect_timeout=1{session_kind}"
        );
        let target = Target::parse(&url).expect("a target");
        let within = tokio::time::timeout(DEADLINE, session(&target)).await;
        let said = within.expect("the silent host holds up the next one");
        assert_eq!(said, Ok(("with_password".to_owned(), false)));
    }

    let url = format!("postgres://u@127.0.0.1:{silent}/d?connect_timeout=1");
    let within = tokio::time::timeout(DEADLINE, session(&Target::parse(&url).expect("a target"))).await;
    let said = within.expect("nobody waits for a silent host for ever");
    assert_eq!(said, Err("no answer within 1 s".to_owned()));
}

#[tokio::test]
async fn a_refused_login_ends_the_search() {
    let server = Server::get().await;
    let port = server.postgres.port();
    let url =
        format!("postgres://with_password:wrong-secret@127.0.0.1:{port},nowhere.invalid/postgres?sslmode=disable");
    let said = session(&Target::parse(&url).expect("a target")).await;
    let said = said.expect_err("a wrong password");
    assert!(said.contains("password authentication failed"), "{said}");
}

#[tokio::test]
async fn prefer_goes_on_without_tls_where_the_handshake_fails() {
    let server = Server::start().await;
    let postgres = &server.postgres;
    for setting in [
        "ssl_min_protocol_version = 'TLSv1'",
        "ssl_max_protocol_version = 'TLSv1.1'",
    ] {
        let sql = format!("alter system set {setting}");
        postgres.query("postgres", &sql).await.expect("a setting");
    }
    postgres
        .query("postgres", "select pg_reload_conf()")
        .await
        .expect("a reload");
    let prefer = async || through(&server, "with_password:right", "127.0.0.1", "sslmode=prefer").await;
    let is_plain = async || (prefer().await == Ok(("with_password".to_owned(), false))).then_some(());
    stack::eventually(DEADLINE, "a session without TLS", is_plain).await;
    let mut own = server
        .open("with_password:right", "127.0.0.1", "sslmode=prefer")
        .await
        .expect("a session");
    let sql = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
    assert_eq!(own.rows(sql).await.expect("SQL")[0][0].as_deref(), Some("f"));

    let required = through(&server, "with_password:right", "127.0.0.1", "sslmode=require").await;
    let said = required.expect_err("TLS is demanded");
    assert!(said.contains("TLS handshake failed"), "{said}");
    let err = server
        .refusal("with_password:right", "127.0.0.1", "sslmode=require")
        .await;
    assert!(format!("{err:#}").contains("TLS handshake failed"), "{err:#}");
}

#[tokio::test]
async fn prefer_does_not_go_on_without_tls_where_a_file_of_ours_is_missing() {
    let server = Server::get().await;
    let parameters = "sslmode=prefer&sslcert=/nowhere/client.crt&sslkey=/nowhere/client.key";
    let said = through(server, "with_password:right", "127.0.0.1", parameters).await;
    let said = said.expect_err("a certificate is missing");
    assert!(said.contains("cannot read sslcert /nowhere/client.crt"), "{said}");
    let own = server.open("with_password:right", "127.0.0.1", parameters).await;
    let err = own.map(drop).expect_err("a certificate is missing");
    assert!(
        format!("{err:#}").contains("cannot read sslcert /nowhere/client.crt"),
        "{err:#}"
    );
}

#[tokio::test]
async fn a_connect_timeout_of_zero_is_none() {
    let server = Server::get().await;
    let parameters = "sslmode=disable&connect_timeout=0";
    let said = through(server, "with_password:right", "127.0.0.1", parameters).await;
    assert_eq!(said, Ok(("with_password".to_owned(), false)));
    server
        .open("with_password:right", "127.0.0.1", parameters)
        .await
        .expect("a session of our own");
}
