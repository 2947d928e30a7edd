//! The publisher: several producers that take turns, called lanes. The relay's thread fills a transaction of one lane, while the threads of the other lanes
//! end theirs.
//!
//! A broker has not finished a transaction when it answers the commit. Until the markers are written, it refuses the next transaction of the same
//! transactional id, and then librdkafka waits 20 ms. With several transactional ids, the next transaction need not wait for that. Three rules make several
//! lanes as safe as one:
//!
//! 1. The next lane sends nothing before every record of the lane before it is acknowledged. Without this, a record that has to be sent again could come
//!    behind a later record of its partition.
//! 2. The next lane commits only after the lane before it has committed. If that one fails, the next never commits. So there is no gap between two
//!    committed checkpoints.
//! 3. A start fences all lanes before it reads the checkpoint, and the first lane first. A publisher's first transaction goes through the first lane.
//!    [`super::turn`] explains why.
//!
//! While a lane ends its transaction, the relay's thread does not use its producer: a record that was sent then would not belong to a transaction. After
//! any error a publisher is not used again. The next publisher has the same transactional ids, so it fences the earlier one and ends its open transactions
//! (KIP-98). The checkpoint says what was committed.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders, ToBytes};
use rdkafka::producer::{BaseRecord, Producer};

use super::abandon::Abandon;
use super::events::serve_events;
use super::lane::{CheckpointRecord, Event, Lane, Order, send_alone};
use super::planted;
use super::turn::{FenceTurn, Turn};
use super::undelivered::explain_refusal;
use crate::kafka::client::{Delivery, KafkaSettings};
use crate::process::faults;
use crate::process::stop::RelayError;

const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// A record to send. Everything in it is borrowed. librdkafka makes the only copy.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    pub topic: &'a str,
    pub partition: i32,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    /// Milliseconds since 1970.
    pub timestamp_ms: i64,
}

/// Whether librdkafka has taken a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    Queued,
    /// librdkafka's queue is full. Send the same record again later.
    QueueFull,
    /// Larger than librdkafka's own limit.
    TooLarge,
}

/// A commit that has succeeded.
#[derive(Clone, Copy, Debug)]
pub struct Committed {
    /// From the order to commit until the broker's answer.
    pub took: Duration,
}

/// Producers, of which one is filled while the others may be committing.
pub struct Publisher {
    lanes: Vec<Lane>,
    /// The lane that is filled.
    filling: Turn,
    events: tokio::sync::mpsc::UnboundedReceiver<Event>,
    /// Transactions that are being ended, the oldest first. Each lane has at most one.
    ending: VecDeque<Ending>,
    /// Tells the next transaction that the one before it has committed.
    previous_committed: Option<mpsc::Receiver<()>>,
    delivery: Delivery,
    settings: KafkaSettings,
    /// Dropping it tells the commit threads that this publisher is given up.
    _abandon: Abandon,
}

/// A transaction that is being ended.
#[derive(Clone, Copy, Debug)]
struct Ending {
    lane: usize,
    since: Instant,
    is_flushed: bool,
}

impl Publisher {
    /// Makes the producers and fences every earlier one of the same ids. Blocks until Kafka answers: call it on a thread of its own.
    ///
    /// # Errors
    /// A wrong setting ([`crate::process::stop::Stop::Config`]); anything else is worth another try.
    pub fn start(
        settings: &KafkaSettings,
        delivery: Delivery,
        transactional_id: &str,
        checkpoint_topic: &str,
        gives_up: &(dyn Fn() -> bool + Sync),
    ) -> Result<Self, RelayError> {
        let abandon = Abandon::default();
        let (events_sent, events) = tokio::sync::mpsc::unbounded_channel();
        let lane = |id: &str, fence_turn: FenceTurn| {
            Lane::start(
                settings,
                delivery,
                id,
                checkpoint_topic,
                fence_turn,
                gives_up,
                abandon.watch(),
                events_sent.clone(),
            )
        };
        // The lanes connect at the same time, since connecting takes most of the time of a start.
        let lanes = std::thread::scope(|scope| {
            let starting: Vec<_> = (1..)
                .zip(FenceTurn::of_all_lanes())
                .map(|(number, fence_turn)| {
                    let id = match number {
                        1 => transactional_id.to_owned(),
                        _ => format!("{transactional_id}-{number}"),
                    };
                    let lane = &lane;
                    scope.spawn(move || lane(&id, fence_turn))
                })
                .collect();
            let started = starting.into_iter().map(std::thread::ScopedJoinHandle::join);
            started.collect::<Vec<_>>()
        });
        let lanes = lanes.into_iter().map(|lane| match lane {
            Ok(lane) => lane,
            Err(_) => Err(anyhow::anyhow!("a thread that starts a producer panicked").into()),
        });
        Ok(Self {
            lanes: lanes.collect::<Result<_, _>>()?,
            filling: Turn::first(),
            events,
            ending: VecDeque::new(),
            previous_committed: None,
            delivery,
            settings: settings.clone(),
            _abandon: abandon,
        })
    }

    /// Whether a record may be sent now: the lane is free, and every record of the other lanes is acknowledged.
    #[must_use]
    pub fn can_send(&self) -> bool {
        self.ending
            .iter()
            .all(|ending| ending.is_flushed && ending.lane != self.filling.lane())
    }

    /// Adds a record to the open transaction. Opens one first if none is open.
    ///
    /// # Errors
    /// Worth another try from the checkpoint.
    pub fn send(&mut self, outgoing: Outgoing<'_>, headers: OwnedHeaders) -> Result<Sent, RelayError> {
        assert!(
            self.can_send(),
            "no record may be sent before the ones before it are acknowledged"
        );
        self.begin_if_none_is_open()?;
        faults::point("produce")?;
        let mut record = BaseRecord::<[u8], [u8]>::to(outgoing.topic)
            .partition(outgoing.partition)
            .timestamp(outgoing.timestamp_ms)
            .headers(headers);
        record.key = outgoing.key;
        record.payload = outgoing.value;
        let lane = &self.lanes[self.filling.lane()];
        let sent = lane.producer.send(record).map_err(|(err, _)| err);
        match planted::take_for_sent(sent) {
            Ok(()) => Ok(Sent::Queued),
            Err(KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)) => Ok(Sent::QueueFull),
            Err(KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge)) => Ok(Sent::TooLarge),
            Err(err) => {
                let what = "kafka refused a record";
                Err(explain_refusal(err, what, &lane.producer, &lane.health, &self.settings))
            }
        }
    }

    /// Adds the checkpoint as the transaction's last record and orders its commit. [`Publisher::next_commit_step`] returns the outcome.
    ///
    /// # Errors
    /// Kafka's client refused to begin; worth another try from the checkpoint.
    pub fn commit(&mut self, topic: &str, key: &str, checkpoint: &str) -> Result<(), RelayError> {
        assert!(self.can_send(), "a checkpoint is a record like the others");
        self.begin_if_none_is_open()?;
        let checkpoint = CheckpointRecord {
            topic: topic.to_owned(),
            key: key.to_owned(),
            value: checkpoint.to_owned(),
        };
        let since = Instant::now();
        let (committed, seen_by_next) = mpsc::channel();
        let lane = self.filling.lane();
        self.lanes[lane].order(Order {
            checkpoint,
            previous_committed: self.previous_committed.replace(seen_by_next),
            committed,
            ordered_at: since,
        })?;
        self.lanes[lane].in_transaction = false;
        self.ending.push_back(Ending {
            lane,
            since,
            is_flushed: false,
        });
        self.filling.pass_on();
        Ok(())
    }

    /// Waits for the next step of a transaction that is being ended. Returns `None` when its records are acknowledged, and [`Committed`] when it has
    /// committed. Transactions commit in the order of [`Publisher::commit`]. Waits for ever if no transaction is being ended. Cancel-safe.
    ///
    /// # Errors
    /// The transaction's fate is unknown or it was refused: this publisher must not be used again.
    pub async fn next_commit_step(&mut self) -> Result<Option<Committed>, RelayError> {
        if self.ending.is_empty() {
            return std::future::pending().await;
        }
        match self.events.recv().await.context("the commit threads are gone")? {
            Event::Flushed => {
                // Only the newest can be unflushed: it was begun only after the one before it was flushed.
                if let Some(newest) = self.ending.back_mut() {
                    newest.is_flushed = true;
                }
                Ok(None)
            }
            Event::Committed { took } => {
                self.ending.pop_front();
                Ok(Some(Committed { took }))
            }
            Event::Failed(err) => Err(err),
        }
    }

    /// Waits until no transaction is being ended. Returns the outcome of the last one.
    ///
    /// # Errors
    /// As [`Publisher::next_commit_step`].
    pub async fn wait_for_commits(&mut self) -> Result<Committed, RelayError> {
        let mut last = None;
        while !self.ending.is_empty() {
            last = self.next_commit_step().await?.or(last);
        }
        Ok(last.context("no transaction was being ended")?)
    }

    /// Sends a record outside of any transaction, for a planted bug.
    ///
    /// # Errors
    /// Kafka's client refused it.
    pub fn send_outside(&self, topic: &str, key: &str, value: &str) -> Result<(), RelayError> {
        let record = CheckpointRecord {
            topic: topic.to_owned(),
            key: key.to_owned(),
            value: value.to_owned(),
        };
        send_alone(&self.settings, &record)
    }

    /// The largest record that librdkafka takes, in bytes.
    #[must_use]
    pub fn message_bytes_max(&self) -> String {
        let config = self.settings.producer(self.delivery, "");
        config.get("message.max.bytes").unwrap_or("1000000").to_owned()
    }

    /// Whether a transaction is being ended.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        !self.ending.is_empty()
    }

    /// When the oldest transaction that is being ended was ordered to commit.
    #[must_use]
    pub fn ending_since(&self) -> Option<Instant> {
        self.ending.front().map(|ending| ending.since)
    }

    /// Serves librdkafka's events. To be called from time to time.
    pub fn poll(&self) {
        for (index, lane) in self.lanes.iter().enumerate() {
            if self.ending.iter().all(|ending| ending.lane != index) {
                serve_events(&lane.producer, &lane.health);
            }
        }
    }

    /// A question to Kafka that shows whether Kafka is reachable. It blocks. An idle producer needs it, since it may have no connection that could break.
    pub fn probe(&self, topic: &str) -> impl FnOnce() -> bool + Send + 'static {
        let (producer, topic) = (Arc::clone(&self.lanes[self.filling.lane()].producer), topic.to_owned());
        move || producer.client().fetch_metadata(Some(&topic), PROBE_TIMEOUT).is_ok()
    }

    /// Whether a connection broke or a request was lost since the producers were made. In such a case librdkafka repeats an EndTxn by itself, and if the first
    /// EndTxn arrives late, it could end the *next* transaction. So such a publisher must not be used again.
    #[must_use]
    pub fn is_disturbed(&self) -> bool {
        self.lanes.iter().any(|lane| lane.health.is_disturbed()) && !planted::reuses_disturbed_producers()
    }

    fn begin_if_none_is_open(&mut self) -> Result<(), RelayError> {
        let lane = &mut self.lanes[self.filling.lane()];
        if !lane.in_transaction {
            faults::point("begin.before")?;
            if self.delivery == Delivery::ExactlyOnce {
                lane.producer
                    .begin_transaction()
                    .context("cannot begin a kafka transaction")?;
            }
            lane.in_transaction = true;
        }
        Ok(())
    }
}

/// Writes a header's text into one buffer that is used again and again.
#[derive(Debug, Default)]
pub struct HeaderText(String);

impl HeaderText {
    /// `value` as text, until the next call.
    pub fn write(&mut self, value: &impl std::fmt::Display) -> &str {
        self.0.clear();
        // Writing to a String cannot fail.
        let _infallible = write!(self.0, "{value}");
        &self.0
    }
}

/// Adds a header. A null value stays null.
#[must_use]
pub fn with_header<V: ToBytes + ?Sized>(headers: OwnedHeaders, key: &str, value: Option<&V>) -> OwnedHeaders {
    headers.insert(Header { key, value })
}
