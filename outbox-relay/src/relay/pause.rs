//! `pause` and `resume`: an operator tells the relay to stop publishing. The relay keeps its slot while it is paused.
//!
//! What the operator wants is a record in the checkpoint topic, under the relay's key with `/pause`. So it survives restarts, and a standby that takes
//! over finds it, too. A thread beside the relay reads the whole topic once, before the first row is published. After that it sees a new record within
//! about two seconds. The loop that streams only looks at a value in memory.
//!
//! A paused relay ends its open Kafka transaction. Then it publishes and confirms nothing. It still reads into its bounded buffer and answers
//! Postgres, so that it keeps the slot. Postgres keeps the WAL meanwhile. The guard measures how much, and warns.

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
/// How long the thread waits after the topic could not be read.
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

/// What the operator wants the relay to do.
#[derive(Clone, Debug, PartialEq, Eq)]
enum OperatorWish {
    /// The topic has not been read yet.
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

    /// For people: that the relay is paused, and the command that ends it.
    #[must_use]
    pub fn for_people(&self) -> String {
        format!("{}; `outbox-relay resume` has it publish again", self.describe())
    }

    /// For people: since when, and why.
    #[must_use]
    pub fn describe(&self) -> String {
        let seconds = (now_us() / 1_000 - self.since_ms).max(0) / 1_000;
        format!("paused by an operator {seconds} s ago ({})", self.reason)
    }
}

impl OperatorWish {
    /// Reads the record's value. A record that cannot be read pauses as well: an operator wrote it for a reason, and `resume` removes it.
    fn parse(value: Option<&[u8]>) -> Self {
        let Some(value) = value else { return Self::Run };
        Self::Pause(
            serde_json::from_slice(value)
                .unwrap_or_else(|err| PauseRecord::now(&format!("a record that cannot be read: {err}"))),
        )
    }
}

fn pause_log(config: &Config) -> PauseLog {
    PauseLog {
        settings: config.sink.kafka.clone(),
        topic: config.sink.checkpoint_topic.to_string(),
        key: format!("{}/pause", config.checkpoint_key()),
    }
}

/// Writes the record that makes the relay stop publishing. Returns what the operator is told.
///
/// # Errors
/// Kafka does not take the record.
pub async fn pause(config: &Config, reason: &PauseReason) -> Result<String, RelayError> {
    let text = serde_json::to_string(&PauseRecord::now(&reason.to_string())).context("the record")?;
    write_record(config, Some(text)).await?;
    Ok(format!(
        "slot {}: a running relay stops publishing within a few seconds and keeps the slot, and one that starts stays paused; postgres keeps the WAL until `outbox-relay resume`\n",
        config.source.slot
    ))
}

/// Removes the record, so that the relay publishes again. Returns what the operator is told.
///
/// # Errors
/// Kafka does not take the record.
pub async fn resume(config: &Config) -> Result<String, RelayError> {
    let Some(record) = read_pause(config, || false).await? else {
        return Ok(format!("slot {} is not paused\n", config.source.slot));
    };
    write_record(config, None).await?;
    Ok(format!(
        "slot {}: it was {}; a running relay goes on within a few seconds\n",
        config.source.slot,
        record.describe()
    ))
}

/// Reads the pause that is in force. `None`: the relay is not paused. The thread that reads ends as soon as `gives_up`.
///
/// # Errors
/// Kafka does not answer.
pub async fn read_pause(
    config: &Config,
    gives_up: impl Fn() -> bool + Send + 'static,
) -> Result<Option<PauseRecord>, RelayError> {
    let log = pause_log(config);
    let read = tokio::task::spawn_blocking(move || log.read(&gives_up));
    let (value, _) = read.await.context("pause task")??;
    Ok(match OperatorWish::parse(value.as_deref()) {
        OperatorWish::Pause(record) => Some(record),
        OperatorWish::Run | OperatorWish::Unknown => None,
    })
}

/// Writes the record; `None` removes it.
async fn write_record(config: &Config, value: Option<String>) -> Result<(), RelayError> {
    let log = pause_log(config);
    let written = tokio::task::spawn_blocking(move || log.write(value.as_deref()));
    Ok(written.await.context("pause task")??)
}

/// Tells the loop that streams whether it may publish.
#[derive(Clone, Debug)]
pub struct PauseGate(watch::Receiver<OperatorWish>);

impl PauseGate {
    /// Starts the thread that reads the topic until `shutdown`. The thread itself updates readiness and the metric, and writes the log lines.
    ///
    /// # Errors
    /// The operating system gives us no thread.
    pub fn watch(config: &Config, readiness: &Readiness, shutdown: &Shutdown) -> Result<Self, RelayError> {
        metrics::describe_gauge!(
            "relay_paused",
            "1 while an operator has paused the relay: nothing is published nor confirmed."
        );
        metrics::gauge!("relay_paused").set(0.0);
        let (sender, receiver) = watch::channel(OperatorWish::Unknown);
        let (log, readiness, shutdown) = (pause_log(config), readiness.clone(), shutdown.clone());
        std::thread::Builder::new()
            .name("pause-watch".to_owned())
            .spawn(move || {
                let gives_up = || shutdown.is_triggered() || sender.is_closed();
                let mut on_record =
                    |value: Option<Vec<u8>>| announce_wish(&sender, &readiness, OperatorWish::parse(value.as_deref()));
                while !gives_up() {
                    let outcome = log.read(&gives_up).and_then(|(value, end)| {
                        on_record(value);
                        log.follow(end, &gives_up, &mut on_record)
                    });
                    if let Err(err) = outcome
                        && !gives_up()
                    {
                        if *sender.borrow() == OperatorWish::Unknown {
                            let reason = format!("whether an operator has paused the relay is not known: {err:#}");
                            tracing::warn!("{reason}");
                            readiness.not_ready("pause", reason);
                        } else {
                            tracing::debug!(
                                error = format!("{err:#}"),
                                "cannot read again whether the relay is paused; the last answer stands"
                            );
                        }
                        std::thread::sleep(RETRY_AFTER);
                    }
                }
            })
            .context("cannot start a thread")?;
        Ok(Self(receiver))
    }

    /// Whether rows may be published. Cheap: it only looks at memory.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(*self.0.borrow(), OperatorWish::Run) || planted::ignores_pause()
    }

    /// Waits until the operator wants something else.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            // The thread has ended with the program.
            std::future::pending().await
        }
    }
}

/// Tells readiness, the metric, the log and the gate what the operator wants now, if it is something new.
fn announce_wish(sender: &watch::Sender<OperatorWish>, readiness: &Readiness, wish: OperatorWish) {
    let before = sender.borrow().clone();
    if before == wish {
        return;
    }
    if before == OperatorWish::Unknown {
        readiness.ready("pause");
    }
    match (&before, &wish) {
        (_, OperatorWish::Pause(record)) => {
            readiness.warn("pause", record.for_people());
            metrics::gauge!("relay_paused").set(1.0);
            tracing::warn!(
                reason = record.reason,
                "paused by an operator: nothing is published nor confirmed until `outbox-relay resume`"
            );
        }
        (OperatorWish::Pause(_), _) => {
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
    use super::{OperatorWish, PauseRecord};

    #[test]
    fn a_record_survives_and_a_tombstone_takes_it_back() {
        let record = PauseRecord::now("kafka is upgraded");
        let text = serde_json::to_vec(&record).unwrap();
        assert_eq!(OperatorWish::parse(Some(&text)), OperatorWish::Pause(record));
        assert_eq!(OperatorWish::parse(None), OperatorWish::Run);
    }

    #[test]
    fn a_record_that_cannot_be_read_pauses() {
        let OperatorWish::Pause(record) = OperatorWish::parse(Some(b"nonsense")) else {
            panic!("it runs");
        };
        assert!(record.reason.contains("cannot be read"), "{}", record.reason);
    }
}
