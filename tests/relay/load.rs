//! Clients that write while a test does its worst, and what a relay says of itself meanwhile.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::ensure;
use stack::program::Readiness;
use stack::{Program, eventually, eventually_ok};
use tokio::task::JoinHandle;

use rig::Rig;

/// For everything that must happen at all, also while three brokers share the machine with other tests.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// Clients of an outbox, each with keys of its own, so that the rows of a key are committed in the order of their `n`.
pub(crate) struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    is_over: AtomicBool,
    /// Ids of the rows whose commit was answered.
    told: Mutex<HashSet<String>>,
}

impl Load {
    /// `clients` connections to `url` (several hosts are tried in turn), each of which writes a row and then pauses.
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

    /// Against the rig's own server: some hundred rows a second.
    pub(crate) fn on(rig: &Rig) -> Self {
        let url = rig.servers.postgres.url("postgres", rig.name());
        Self::start(rig, &url, 2, Duration::from_millis(5))
    }

    /// Ids of the rows that a client was told are committed.
    pub(crate) fn told(&self) -> HashSet<String> {
        self.shared.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until `more` further rows are committed.
    pub(crate) async fn goes_on(&self, more: usize) {
        let before = self.told().len();
        eventually(DEADLINE, "the clients write", || {
            std::future::ready((self.told().len() >= before + more).then_some(()))
        })
        .await;
    }

    /// Has the clients end after the row in hand.
    pub(crate) async fn stop(self) -> HashSet<String> {
        self.shared.is_over.store(true, Ordering::Release);
        for client in self.clients {
            client.await.expect("a client");
        }
        self.shared.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Shared {
    fn add(&self, id: String) {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
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
            // Without an answer nobody knows whether it is committed; the next row has another number in any case.
            let Ok(rows) = stack::postgres::query(&session, &sql).await else {
                break;
            };
            let id = rows.first().and_then(|row| row.first().cloned().flatten());
            shared.add(id.expect("an id"));
            tokio::time::sleep(pause).await;
        }
    }
}

/// A metric of a running relay; 0 where it has not been counted yet.
pub(crate) async fn metric(relay: &Program, name: &str) -> Option<f64> {
    let answer = reqwest::get(relay.url("/metrics")).await.ok()?.text().await.ok()?;
    let value = answer
        .lines()
        .find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    Some(value.unwrap_or(0.0))
}

/// Waits until `relay` has published `more` further records.
pub(crate) async fn publishes(relay: &Program, more: f64) {
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

/// Waits until `relay` says that it is a warm standby.
pub(crate) async fn waits_as_standby(relay: &Program) {
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
