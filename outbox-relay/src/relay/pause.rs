//! `pause` and `resume`: an operator has the relay stop publishing, and it keeps the slot meanwhile.
//!
//! The wish is a record in the checkpoint topic, under the relay's key with `/pause`. So it survives restarts, and a standby that takes over finds it, too.
//! A thread beside the relay reads it: all of the topic once, before the first row is published, and what comes afterwards within about two
//! seconds. The loop that streams only looks at a value in memory.
//!
//! While it is paused the relay ends the Kafka transaction in hand, then publishes and confirms nothing. It goes on reading into its bounded
//! buffer and answers Postgres, so that the slot stays its own. Postgres keeps the WAL; the guard tells how much, and warns.

use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use service::clock::now_us;
use service::{Readiness, Shutdown};
use tokio::sync::watch;

use crate::kafka::PauseLog;
use crate::process::stop::RelayError;
use crate::settings::{Config, PauseReason};

/// Version of the record's format.
const FORMAT: u32 = 1;
/// After trouble with the topic.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What the record's value holds, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PauseRecord {
    pub format: u32,
    /// The operator's words.
    pub reason: String,
    /// When it was written, in milliseconds since 1970.
    pub since_ms: i64,
}

/// Whether the relay may publish.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wish {
    /// The topic was not read yet.
    Unknown,
    Run,
    Pause(PauseRecord),
}

impl PauseRecord {
    fn now(reason: &str) -> Self {
        Self {
            format: FORMAT,
            reason: reason.to_owned(),
            since_ms: now_us() / 1_000,
        }
    }

    /// For people: since when, and why.
    #[must_use]
    pub fn describe(&self) -> String {
        let seconds = (now_us() / 1_000 - self.since_ms).max(0) / 1_000;
        format!("paused by an operator {seconds} s ago ({})", self.reason)
    }
}

impl Wish {
    /// A record that cannot be read pauses as well: somebody wanted something, and `resume` takes it back.
    fn parse(value: Option<&[u8]>) -> Self {
        let Some(value) = value else { return Self::Run };
        Self::Pause(
            serde_json::from_slice(value)
                .unwrap_or_else(|err| PauseRecord::now(&format!("a record that cannot be read: {err}"))),
        )
    }
}

fn log_of(config: &Config) -> PauseLog {
    PauseLog {
        settings: config.sink.kafka.clone(),
        topic: config.sink.checkpoint_topic.to_string(),
        key: format!("{}/pause", config.checkpoint_key()),
    }
}

/// Has the relay stop publishing.
///
/// # Errors
/// Kafka does not take the record.
pub async fn pause(config: &Config, reason: &PauseReason) -> Result<String, RelayError> {
    let text = serde_json::to_string(&PauseRecord::now(&reason.to_string())).context("the record")?;
    write(config, Some(text)).await?;
    Ok(format!(
        "slot {}: a running relay stops publishing within a few seconds and keeps the slot, and one that starts stays paused; postgres keeps the WAL until `outbox-relay resume`\n",
        config.source.slot
    ))
}

/// Has the relay publish again.
///
/// # Errors
/// Kafka does not take the record.
pub async fn resume(config: &Config) -> Result<String, RelayError> {
    let Some(record) = current(config).await? else {
        return Ok(format!("slot {} is not paused\n", config.source.slot));
    };
    write(config, None).await?;
    Ok(format!(
        "slot {}: it was {}; a running relay goes on within a few seconds\n",
        config.source.slot,
        record.describe()
    ))
}

/// The pause that is in force.
///
/// # Errors
/// Kafka does not answer.
pub async fn current(config: &Config) -> Result<Option<PauseRecord>, RelayError> {
    let log = log_of(config);
    let read = tokio::task::spawn_blocking(move || log.read(&|| false));
    let (value, _) = read.await.context("pause task")??;
    Ok(match Wish::parse(value.as_deref()) {
        Wish::Pause(record) => Some(record),
        Wish::Run | Wish::Unknown => None,
    })
}

async fn write(config: &Config, value: Option<String>) -> Result<(), RelayError> {
    let log = log_of(config);
    let written = tokio::task::spawn_blocking(move || log.write(value.as_deref()));
    Ok(written.await.context("pause task")??)
}

/// What the loop that streams looks at.
#[derive(Clone, Debug)]
pub struct PauseGate(watch::Receiver<Wish>);

impl PauseGate {
    /// Starts the thread that reads the topic until `shutdown`. It tells readiness, metric and log by itself.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn watch(config: &Config, readiness: &Readiness, shutdown: &Shutdown) -> Result<Self, RelayError> {
        metrics::describe_gauge!(
            "relay_paused",
            "1 while an operator has paused the relay: nothing is published nor confirmed."
        );
        metrics::gauge!("relay_paused").set(0.0);
        let (sender, receiver) = watch::channel(Wish::Unknown);
        let (log, readiness, shutdown) = (log_of(config), readiness.clone(), shutdown.clone());
        std::thread::Builder::new()
            .name("pause-watch".to_owned())
            .spawn(move || {
                let gives_up = || shutdown.is_triggered() || sender.is_closed();
                let mut note_wish =
                    |value: Option<Vec<u8>>| publish_wish(&sender, &readiness, Wish::parse(value.as_deref()));
                while !gives_up() {
                    let followed = log.read(&gives_up).and_then(|(value, end)| {
                        note_wish(value);
                        log.follow(end, &gives_up, &mut note_wish)
                    });
                    if let Err(err) = followed
                        && !gives_up()
                    {
                        if *sender.borrow() == Wish::Unknown {
                            let why = format!("whether an operator has paused the relay is not known: {err:#}");
                            tracing::warn!("{why}");
                            readiness.not_ready("pause", why);
                        } else {
                            tracing::debug!(
                                error = format!("{err:#}"),
                                "whether the relay is paused is not known anew"
                            );
                        }
                        std::thread::sleep(RETRY_AFTER);
                    }
                }
            })
            .context("cannot start a thread")?;
        Ok(Self(receiver))
    }

    /// Whether rows may be published. Cheap: it looks at memory.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(*self.0.borrow(), Wish::Run) || planted::ignores_pause()
    }

    /// Waits for news.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            // The thread has ended with the program.
            std::future::pending().await
        }
    }
}

fn publish_wish(sender: &watch::Sender<Wish>, readiness: &Readiness, wish: Wish) {
    let before = sender.borrow().clone();
    if before == wish {
        return;
    }
    if before == Wish::Unknown {
        readiness.ready("pause");
    }
    match (&before, &wish) {
        (_, Wish::Pause(record)) => {
            readiness.warn("pause", record.describe());
            metrics::gauge!("relay_paused").set(1.0);
            tracing::warn!(
                reason = record.reason,
                "paused by an operator: nothing is published nor confirmed until `outbox-relay resume`"
            );
        }
        (Wish::Pause(_), _) => {
            readiness.fine("pause");
            metrics::gauge!("relay_paused").set(0.0);
            tracing::warn!("resumed by an operator: the relay publishes again");
        }
        _ => {}
    }
    sender.send_replace(wish);
}

/// The planted bugs of this file. Without the feature `faults` none of them is there.
mod planted {
    use crate::process::faults::{self, Bug};

    pub(super) fn ignores_pause() -> bool {
        faults::is_planted(Bug::IgnorePause)
    }
}

#[cfg(test)]
mod tests {
    use super::{PauseRecord, Wish};

    #[test]
    fn a_record_survives_and_a_tombstone_takes_it_back() {
        let record = PauseRecord::now("kafka is upgraded");
        let text = serde_json::to_vec(&record).unwrap();
        assert_eq!(Wish::parse(Some(&text)), Wish::Pause(record));
        assert_eq!(Wish::parse(None), Wish::Run);
    }

    #[test]
    fn a_record_that_cannot_be_read_pauses() {
        let Wish::Pause(record) = Wish::parse(Some(b"nonsense")) else {
            panic!("it runs");
        };
        assert!(record.reason.contains("cannot be read"), "{}", record.reason);
    }
}
