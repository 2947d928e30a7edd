//! The transactional producer. The relay's thread fills a transaction, a thread of its own flushes and commits it.
//!
//! While a commit is under way the relay's thread does not touch the producer: a record that were sent then would belong to no
//! transaction. A publisher that met any trouble is never used again: the next one, under the same transactional id, fences it
//! and ends what it left open (KIP-98), and the checkpoint tells what had been committed.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders, ToBytes};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use super::flush::flush;
use super::health::Health;
use super::settings::KafkaSettings;
use crate::stop::{RelayError, Stop};

const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// A record to send. All of it is borrowed; librdkafka copies it once.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    pub topic: &'a str,
    pub partition: i32,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    /// Milliseconds since 1970.
    pub timestamp_ms: i64,
}

/// Whether a record was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    Queued,
    /// librdkafka's queue is full: send the same record again, later.
    QueueFull,
}

/// How a commit ended well.
#[derive(Clone, Copy, Debug)]
pub struct Committed {
    /// From the order to commit until the broker's answer.
    pub took: Duration,
}

/// A producer with an open transaction, or one that is being committed.
pub struct Publisher {
    producer: Arc<BaseProducer<Health>>,
    health: Health,
    orders: mpsc::Sender<()>,
    outcomes: tokio::sync::mpsc::UnboundedReceiver<Result<Committed, RelayError>>,
    in_transaction: bool,
    committing_since: Option<Instant>,
    message_bytes_max: String,
    /// Ends the commit thread's patience when this publisher is given up.
    _abandon: Abandon,
}

/// Tells work on another thread that nobody waits for it any more; told when dropped.
#[derive(Debug, Default)]
pub struct Abandon(Arc<AtomicBool>);

/// The other end of an [`Abandon`].
#[derive(Clone, Debug)]
pub struct Abandoned(Arc<AtomicBool>);

impl Abandon {
    /// What the other thread looks at.
    #[must_use]
    pub fn watch(&self) -> Abandoned {
        Abandoned(Arc::clone(&self.0))
    }
}

impl Abandoned {
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Publisher {
    /// Makes a producer and fences every earlier one of the same id. Blocks until Kafka answers: call it on a thread of its own.
    ///
    /// # Errors
    /// A wrong setting ([`Stop::Config`]); anything else is worth another try.
    pub fn start(
        settings: &KafkaSettings,
        transactional_id: &str,
        gives_up: &dyn Fn() -> bool,
    ) -> Result<Self, RelayError> {
        let config = settings.producer(transactional_id);
        let message_bytes_max = config.get("message.max.bytes").unwrap_or("1000000").to_owned();
        let health = Health::default();
        let producer: BaseProducer<Health> =
            config.create_with_context(health.clone()).map_err(|err| Stop::Config {
                what: format!("Kafka client: {err}"),
            })?;
        init_transactions(&producer, gives_up)?;
        // Serves everything that was reported while Kafka was away.
        producer.poll(Duration::from_millis(10));
        health.settle();
        let abandon = Abandon::default();
        let producer = Arc::new(producer);
        let (orders, orders_taken) = mpsc::channel();
        let (outcomes_sent, outcomes) = tokio::sync::mpsc::unbounded_channel();
        let for_thread = (
            Arc::clone(&producer),
            health.clone(),
            message_bytes_max.clone(),
            abandon.watch(),
        );
        std::thread::Builder::new()
            .name("kafka-commit".to_owned())
            .spawn(move || {
                let (producer, health, limit, abandoned) = for_thread;
                for () in orders_taken {
                    if outcomes_sent
                        .send(flush_and_commit(&producer, &health, &limit, &abandoned))
                        .is_err()
                    {
                        break;
                    }
                }
            })
            .context("cannot start a thread")?;
        Ok(Self {
            producer,
            health,
            orders,
            outcomes,
            in_transaction: false,
            committing_since: None,
            message_bytes_max,
            _abandon: abandon,
        })
    }

    /// Adds a record to the open transaction, and opens one where none is.
    ///
    /// # Errors
    /// [`Stop::RecordTooLarge`] where librdkafka's limit refuses it; anything else is worth another try from the checkpoint.
    pub fn send(&mut self, outgoing: Outgoing<'_>, id: &str, headers: OwnedHeaders) -> Result<Sent, RelayError> {
        assert!(
            self.committing_since.is_none(),
            "no record may be sent while a commit is under way"
        );
        self.begin()?;
        let mut record = BaseRecord::<[u8], [u8]>::to(outgoing.topic)
            .partition(outgoing.partition)
            .timestamp(outgoing.timestamp_ms)
            .headers(headers);
        record.key = outgoing.key;
        record.payload = outgoing.value;
        match self.producer.send(record) {
            Ok(()) => Ok(Sent::Queued),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => Ok(Sent::QueueFull),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge), _)) => {
                Err(Stop::RecordTooLarge {
                    id: id.to_owned(),
                    topic: outgoing.topic.to_owned(),
                    size: outgoing.key.map_or(0, <[u8]>::len) + outgoing.value.map_or(0, <[u8]>::len),
                    limit: self.message_bytes_max.clone(),
                }
                .into())
            }
            Err((err, _)) => Err(anyhow::Error::new(err).context("kafka refused a record").into()),
        }
    }

    /// Adds the checkpoint as the transaction's last record and orders its commit; [`Publisher::committed`] tells the outcome.
    ///
    /// # Errors
    /// Kafka's client refused; worth another try from the checkpoint.
    pub fn commit(&mut self, topic: &str, key: &str, checkpoint: &str) -> Result<(), RelayError> {
        assert!(self.committing_since.is_none(), "one commit at a time");
        self.begin()?;
        let record = BaseRecord::to(topic).partition(0).key(key).payload(checkpoint);
        self.producer
            .send(record)
            .map_err(|(err, _)| anyhow::Error::new(err).context("kafka refused the checkpoint"))?;
        self.committing_since = Some(Instant::now());
        self.orders.send(()).context("the commit thread is gone")?;
        Ok(())
    }

    /// Waits for the outcome of the commit. Cancel-safe.
    ///
    /// # Errors
    /// The transaction's fate is unknown or it was refused: this publisher must not be used again.
    pub async fn committed(&mut self) -> Result<Committed, RelayError> {
        let outcome = self.outcomes.recv().await.context("the commit thread is gone")?;
        self.committing_since = None;
        self.in_transaction = false;
        outcome
    }

    /// Since when a commit is under way.
    #[must_use]
    pub fn committing_since(&self) -> Option<Instant> {
        self.committing_since
    }

    /// Serves librdkafka's events; to be called now and then while no commit is under way.
    pub fn poll(&self) {
        self.producer.poll(Duration::ZERO);
    }

    /// A question to Kafka that shows whether it is there; it blocks. An idle producer has no connection that could break.
    pub fn probe(&self, topic: &str) -> impl FnOnce() -> bool + Send + 'static {
        let (producer, topic) = (Arc::clone(&self.producer), topic.to_owned());
        move || producer.client().fetch_metadata(Some(&topic), PROBE_TIMEOUT).is_ok()
    }

    /// What librdkafka reported on the side.
    #[must_use]
    pub fn health(&self) -> &Health {
        &self.health
    }

    fn begin(&mut self) -> Result<(), RelayError> {
        if !self.in_transaction {
            self.producer
                .begin_transaction()
                .context("cannot begin a kafka transaction")?;
            self.in_transaction = true;
        }
        Ok(())
    }
}

fn init_transactions(producer: &BaseProducer<Health>, gives_up: &dyn Fn() -> bool) -> Result<(), RelayError> {
    loop {
        match producer.init_transactions(Duration::from_secs(5)) {
            Ok(()) => return Ok(()),
            Err(KafkaError::Transaction(err)) if err.is_retriable() && !gives_up() => {
                tracing::debug!(error = %err.string(), "init_transactions is tried again");
                producer.poll(Duration::ZERO);
            }
            Err(err) => return Err(anyhow::Error::new(err).context("cannot fence earlier producers").into()),
        }
    }
}

fn flush_and_commit(
    producer: &BaseProducer<Health>,
    health: &Health,
    limit: &str,
    abandoned: &Abandoned,
) -> Result<Committed, RelayError> {
    let started = Instant::now();
    // Ends at the latest when message.timeout.ms makes every record a failure.
    while !flush(producer, Duration::from_millis(50)) {
        producer.poll(Duration::ZERO);
        fail_on_undelivered(health, limit)?;
    }
    producer.poll(Duration::ZERO);
    fail_on_undelivered(health, limit)?;
    loop {
        match producer.commit_transaction(Duration::from_secs(10)) {
            Ok(()) => {
                return Ok(Committed {
                    took: started.elapsed(),
                });
            }
            // The same call again is what librdkafka asks for; it does not send a second commit.
            Err(KafkaError::Transaction(err)) if err.is_retriable() && !abandoned.is_told() => {
                tracing::debug!(error = %err.string(), "commit_transaction is tried again");
            }
            Err(err) => {
                return Err(anyhow::Error::new(err)
                    .context("the kafka transaction did not commit")
                    .into());
            }
        }
    }
}

/// One lost record loses its transaction: librdkafka would refuse the commit as well, but says less.
fn fail_on_undelivered(health: &Health, limit: &str) -> Result<(), RelayError> {
    let Some(failure) = health.failure() else {
        return Ok(());
    };
    if failure.code == RDKafkaErrorCode::MessageSizeTooLarge {
        return Err(Stop::RecordTooLarge {
            id: failure.id.unwrap_or_else(|| "(no id)".to_owned()),
            topic: failure.topic,
            size: failure.size,
            limit: format!("{limit} of the client, or the topic's own, which is smaller"),
        }
        .into());
    }
    Err(anyhow::anyhow!(
        "a record for topic `{}` was not delivered: {}",
        failure.topic,
        failure.code
    )
    .into())
}

/// The headers of a record, built in place.
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

/// Adds a header; a null value is kept null.
#[must_use]
pub fn with_header<V: ToBytes + ?Sized>(headers: OwnedHeaders, key: &str, value: Option<&V>) -> OwnedHeaders {
    headers.insert(Header { key, value })
}
