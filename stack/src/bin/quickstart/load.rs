//! Creates users through user-api over many connections at once, as its clients do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use hdrhistogram::Histogram;
use serde::Deserialize;
use tokio::task::JoinSet;

use crate::arguments::Arguments;
use crate::people::person;
use crate::progress::Progress;

/// No answer takes longer, unless the server is stuck.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// The result of a load.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub created: u64,
    /// The smallest and the largest id in the answers.
    pub ids: Option<(i64, i64)>,
    /// How many requests failed, by reason.
    pub failures: BTreeMap<String, u64>,
    pub elapsed: Duration,
    /// The time from a request's start to its answer, in microseconds.
    pub request_us: Histogram<u64>,
}

#[derive(Debug, Deserialize)]
struct Created {
    id: i64,
}

/// An empty histogram for latencies from 1 microsecond to an hour, exact to a thousandth. A longer latency counts as an hour.
pub(crate) fn latencies_us() -> anyhow::Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, 3_600_000_000, 3).context("cannot make a histogram")
}

impl Outcome {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            created: 0,
            ids: None,
            failures: BTreeMap::new(),
            elapsed: Duration::ZERO,
            request_us: latencies_us()?,
        })
    }

    fn count(&mut self, answer: Result<i64, String>, took: Duration) {
        match answer {
            Ok(id) => {
                self.created += 1;
                let (smallest, largest) = self.ids.unwrap_or((id, id));
                self.ids = Some((smallest.min(id), largest.max(id)));
                self.request_us
                    .saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
            }
            Err(reason) => *self.failures.entry(reason).or_default() += 1,
        }
    }

    fn add(&mut self, other: &Self) {
        self.created += other.created;
        self.ids = match (self.ids, other.ids) {
            (Some(own), Some(others)) => Some((own.0.min(others.0), own.1.max(others.1))),
            (own, others) => own.or(others),
        };
        for (reason, count) in &other.failures {
            *self.failures.entry(reason.clone()).or_default() += count;
        }
        self.request_us += &other.request_us;
    }

    pub(crate) fn failed(&self) -> u64 {
        self.failures.values().sum()
    }
}

/// Creates `arguments.users` users at `url`. A failed request is counted, and not repeated.
pub(crate) async fn create_users(url: &str, arguments: &Arguments) -> anyhow::Result<Outcome> {
    let client = reqwest::Client::builder()
        .pool_max_idle_per_host(usize::from(arguments.connections))
        .timeout(REQUEST_TIMEOUT)
        .build()
        .context("cannot make an HTTP client")?;
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let run: Arc<str> = format!("{:x}", since_1970.as_millis()).into();
    let arguments = Arc::new(arguments.clone());
    let (next, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let start = Instant::now();
    let mut workers = JoinSet::new();
    for _ in 0..arguments.connections {
        let (client, url, run) = (client.clone(), url.to_owned(), Arc::clone(&run));
        let (next, done, arguments) = (Arc::clone(&next), Arc::clone(&done), Arc::clone(&arguments));
        workers.spawn(async move {
            let mut outcome = Outcome::new()?;
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= arguments.users {
                    return anyhow::Ok(outcome);
                }
                let person = person(arguments.seed, &run, index, &arguments.departments);
                let sent = Instant::now();
                let answer = create(&client, &url, &person).await;
                outcome.count(answer, sent.elapsed());
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let mut progress = Progress::start("users created", arguments.users);
    let mut total = Outcome::new()?;
    let mut ticks = tokio::time::interval(Duration::from_millis(200));
    loop {
        tokio::select! {
            finished = workers.join_next() => match finished {
                Some(outcome) => total.add(&outcome??),
                None => break,
            },
            _ = ticks.tick() => progress.set(done.load(Ordering::Relaxed)),
        }
    }
    total.elapsed = start.elapsed();
    progress.finish(done.load(Ordering::Relaxed));
    Ok(total)
}

async fn create(client: &reqwest::Client, url: &str, person: &crate::people::Person<'_>) -> Result<i64, String> {
    let answer = client.post(url).json(person).send().await;
    let answer = answer.map_err(|err| {
        if err.is_timeout() {
            "timeout".to_owned()
        } else {
            "no connection".to_owned()
        }
    })?;
    let status = answer.status();
    if !status.is_success() {
        return Err(format!("status {}", status.as_u16()));
    }
    let created: Created = answer.json().await.map_err(|_| "unreadable answer".to_owned())?;
    Ok(created.id)
}
