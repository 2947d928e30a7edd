//! The command `health`: asks a program of this machine whether it is ready, for a container that has neither shell nor curl.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, bail};

/// For the connection, and for each part of the answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Longer than any answer of `/readyz`.
const ANSWER_BYTES_MAX: u64 = 65_536;

/// Asks `/readyz` of the program that serves `listen`; what it answered.
///
/// # Errors
/// It is not ready, and the message has its reasons; or nothing answers.
pub fn ask(listen: SocketAddr) -> anyhow::Result<String> {
    let address = reachable(listen);
    let answer = get_readyz(address).with_context(|| format!("nothing answers on {address}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is not HTTP")?;
    let body = body.trim_end();
    match head.split_ascii_whitespace().nth(1) {
        Some("200") => Ok(format!("{body}\n")),
        Some("503") => bail!("not ready: {body}"),
        _ => bail!("an answer that is none of /readyz: {head}"),
    }
}

/// HTTP/1.0: the answer ends with the connection.
fn get_readyz(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    Ok(answer)
}

/// Who listens everywhere is asked by the loopback address.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener};

    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::ask;
    use crate::{Readiness, Shutdown, admin};

    fn asked(address: SocketAddr) -> Result<String, String> {
        ask(address).map_err(|err| format!("{err:#}"))
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn it_repeats_what_readyz_says() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let everywhere = SocketAddr::from(([0, 0, 0, 0], port));
        let readiness = Readiness::waiting_for("postgres");
        let metrics = PrometheusBuilder::new().build_recorder().handle();
        let shutdown = Shutdown::on_signals().expect("signals");
        let serving = tokio::spawn(admin::serve_on(listener, readiness.clone(), metrics, shutdown));
        let err = tokio::task::spawn_blocking(move || asked(everywhere))
            .await
            .expect("asked")
            .expect_err("not ready");
        assert!(err.starts_with("not ready: {") && err.contains("postgres"), "{err}");
        readiness.ready("postgres");
        let answer = tokio::task::spawn_blocking(move || asked(everywhere))
            .await
            .expect("asked");
        assert_eq!(answer.as_deref(), Ok("{\"ready\":true}\n"));
        serving.abort();
    }

    #[test]
    fn nobody_there_is_said() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        drop(listener);
        let err = asked(address).expect_err("nobody listens");
        assert!(err.starts_with(&format!("nothing answers on {address}: ")), "{err}");
    }
}
