//! Clients that write into an outbox while a test breaks something, and what a relay says of itself meanwhile.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::ensure;
use stack::program::Readiness;
use stack::{Program, eventually, eventually_ok};
use tokio::task::JoinHandle;

use rig::Rig;

/// For everything that a test waits for. It is long enough when three brokers share the machine with other tests.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// Clients that write into an outbox. Each has keys of its own, so the rows of a key are committed in the order of their `n`.
pub(crate) struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    is_over: AtomicBool,
    /// Ids of the rows whose commit was answered.
    committed: Mutex<HashSet<String>>,
}

impl Load {
    /// Starts so many clients. Each connects to `url` (which may have several hosts), and writes a row and pauses in turn.
    pub(crate) fn start(rig: &Rig, url: &str, clients: usize, pause: Duration) -> Self {
        let shared = Arc::new(Shared::default());
        let clients = (0..clients)
            .map(|client| {
                let (shared, url, topic) = (Arc::clone(&shared), url.to_owned(), rig.topic());
                tokio::spawn(async move { write(client, &url, &topic, pause, &shared).await })
            })
            .collect();
        Self { shared, clients }
    }

    /// Starts two clients on the rig's own server. They write some hundred rows per second.
    pub(crate) fn start_on(rig: &Rig) -> Self {
        let url = rig.servers.postgres.url("postgres", rig.name());
        Self::start(rig, &url, 2, Duration::from_millis(5))
    }

    /// Ids of the rows whose commit was answered.
    pub(crate) fn committed_ids(&self) -> HashSet<String> {
        self.shared
            .committed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits until the clients have committed so many more rows.
    pub(crate) async fn wait_for_more_rows(&self, more: usize) {
        let before = self.committed_ids().len();
        eventually(DEADLINE, "the clients write", || {
            std::future::ready((self.committed_ids().len() >= before + more).then_some(()))
        })
        .await;
    }

    /// Lets each client finish its row, and ends it. Returns the ids of all rows whose commit was answered.
    pub(crate) async fn stop(self) -> HashSet<String> {
        self.shared.is_over.store(true, Ordering::Release);
        for client in self.clients {
            client.await.expect("a client");
        }
        self.shared
            .committed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Shared {
    fn add(&self, id: String) {
        self.committed.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
    }
}

async fn write(client: usize, url: &str, topic: &str, pause: Duration, shared: &Shared) {
    let mut n: u64 = 0;
    while !shared.is_over.load(Ordering::Acquire) {
        let Ok(session) = stack::postgres::connect(url).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        while !shared.is_over.load(Ordering::Acquire) {
            n += 1;
            let sql = format!(
                "insert into outbox (aggregatetype, aggregateid, type, payload)
                 values ('{topic}', 'c{client}-{}', 'Changed', jsonb_build_object('n', {n})) returning id",
                n % 5
            );
            // Without an answer nobody knows whether the row is committed. The next row has another number in either case.
            let Ok(rows) = stack::postgres::query(&session, &sql).await else {
                break;
            };
            let id = rows.first().and_then(|row| row.first().cloned().flatten());
            shared.add(id.expect("an id"));
            tokio::time::sleep(pause).await;
        }
    }
}

/// A metric of a running relay. It is 0 as long as the relay has not counted anything for it.
pub(crate) async fn metric(relay: &Program, name: &str) -> Option<f64> {
    let answer = reqwest::get(relay.url("/metrics")).await.ok()?.text().await.ok()?;
    let value = answer
        .lines()
        .find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    Some(value.unwrap_or(0.0))
}

/// Waits until `relay` has published so many more records.
pub(crate) async fn wait_until_publishes(relay: &Program, more: f64) {
    const PUBLISHED: &str = "relay_published_records_total";
    let before = metric(relay, PUBLISHED).await.unwrap_or(0.0);
    let what = format!("{} publishes", relay.name());
    let published = eventually_ok(DEADLINE, &what, || async {
        let now = metric(relay, PUBLISHED).await;
        ensure!(
            now.is_some_and(|now| now >= before + more),
            "{now:?} after {before}\n{}",
            relay.log_tail(40)
        );
        Ok(())
    });
    published.await.unwrap_or_else(|err| panic!("{err:#}"));
}

/// Waits until `relay` says that it waits as a warm standby.
pub(crate) async fn wait_until_standby(relay: &Program) {
    let client = reqwest::Client::new();
    let what = format!("{} is a warm standby", relay.name());
    eventually(DEADLINE, &what, || async {
        match relay.readiness(&client).await {
            Ok(Readiness::NotReady(reasons)) if reasons.contains("warm standby") => Some(()),
            _ => None,
        }
    })
    .await;
}
