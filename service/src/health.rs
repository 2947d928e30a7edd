//! Asks a program of this machine whether it is ready: for the command `health`, in a container that has neither shell nor curl, and for `status`.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

/// How long to wait for the connection, and for each part of the answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// As [`PATIENCE`], for `status`, which has more to ask.
const PATIENCE_OF_STATUS: Duration = Duration::from_secs(1);
/// Longer than any answer of `/readyz`.
const ANSWER_BYTES_MAX: u64 = 65_536;

/// Asks the program that serves on `listen` for `/readyz`. Returns what it answered.
///
/// # Errors
/// The program is not ready, and the message has its reasons; or nothing answers.
pub fn ask(listen: SocketAddr) -> anyhow::Result<String> {
    let address = address_to_ask(listen);
    let answer = get_readyz(address, PATIENCE).with_context(|| format!("nothing answers on {address}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is not HTTP")?;
    let body = body.trim_end();
    match head.split_ascii_whitespace().nth(1) {
        Some("200") => Ok(format!("{body}\n")),
        Some("503") => bail!("not ready: {body}"),
        _ => bail!("this is not an answer of /readyz: {head}"),
    }
}

/// What a program says of itself in `/readyz`, for `status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SaysOfItself {
    /// Where it was asked.
    pub address: String,
    /// `None`: nothing answers there.
    pub is_ready: Option<bool>,
    /// What does not work, and why, by the part that each concerns.
    pub reasons: BTreeMap<String, String>,
    /// What somebody has to look at, although the program works.
    pub warnings: BTreeMap<String, String>,
}

/// The answer of `/readyz`, as [`crate::admin`] writes it.
#[derive(Deserialize)]
struct Readyz {
    ready: bool,
    #[serde(default)]
    reasons: BTreeMap<String, String>,
    #[serde(default)]
    warnings: BTreeMap<String, String>,
}

/// Asks the program that serves `listen` what it says of itself, on a thread of its own. One that does not answer within a second is as one that is
/// not there.
pub async fn ask_for_status(listen: SocketAddr) -> SaysOfItself {
    let address = address_to_ask(listen);
    let asked = tokio::task::spawn_blocking(move || get_readyz(address, PATIENCE_OF_STATUS)).await;
    let answer = asked.ok().and_then(Result::ok);
    let body = answer
        .as_deref()
        .and_then(|answer| Some(answer.split_once("\r\n\r\n")?.1));
    let said = body.and_then(|body| serde_json::from_str::<Readyz>(body).ok());
    let address = address.to_string();
    match said {
        None => SaysOfItself {
            address,
            ..SaysOfItself::default()
        },
        Some(said) => SaysOfItself {
            address,
            is_ready: Some(said.ready),
            reasons: said.reasons,
            warnings: said.warnings,
        },
    }
}

/// HTTP/1.0: the answer ends with the connection.
fn get_readyz(address: SocketAddr, patience: Duration) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    stream.write_all(b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    Ok(answer)
}

/// The address to connect to. A program that listens on all addresses is asked on the loopback address.
fn address_to_ask(listen: SocketAddr) -> SocketAddr {
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

    use super::{ask, ask_for_status};
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
        let said = ask_for_status(everywhere).await;
        assert_eq!(
            (said.is_ready, said.reasons["postgres"].as_str()),
            (Some(false), "starting")
        );
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

    #[tokio::test]
    async fn a_program_that_is_not_there_says_nothing_of_itself() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        drop(listener);
        let said = ask_for_status(address).await;
        assert_eq!((said.is_ready, said.address), (None, address.to_string()));
    }
}
