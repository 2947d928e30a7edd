//! One of a publisher's producers, with the thread that flushes and commits its transactions.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tokio::sync::mpsc::UnboundedSender;

use super::abandon::Abandoned;
use super::events::serve_events;
use super::flush::flush;
use super::planted;
use super::turn::FenceTurn;
use super::undelivered::{explain_refusal, find_undelivered};
use crate::kafka::client::Health;
use crate::kafka::client::{Delivery, KafkaSettings};
use crate::process::faults;
use crate::process::stop::RelayError;

/// How long a connection is waited for before the first question; longer gains nothing.
const CONNECT_MAX: Duration = Duration::from_secs(1);

/// A producer, its thread, and whether a transaction is open in it.
pub(in crate::kafka) struct Lane {
    pub(in crate::kafka) producer: Arc<BaseProducer<Health>>,
    pub(in crate::kafka) health: Health,
    pub(in crate::kafka) in_transaction: bool,
    orders: mpsc::Sender<Order>,
}

/// Makes one transaction's end: flush, wait for the transaction before it, commit.
pub(in crate::kafka) struct Order {
    pub(in crate::kafka) checkpoint: CheckpointRecord,
    /// Says that the transaction before this one has committed; closed without a word if it did not.
    pub(in crate::kafka) after: Option<mpsc::Receiver<()>>,
    pub(in crate::kafka) done: mpsc::Sender<()>,
    pub(in crate::kafka) ordered_at: Instant,
}

/// The checkpoint as a record.
#[derive(Clone, Debug)]
pub(in crate::kafka) struct CheckpointRecord {
    pub(in crate::kafka) topic: String,
    pub(in crate::kafka) key: String,
    pub(in crate::kafka) value: String,
}

/// What a lane's thread tells.
pub(in crate::kafka) enum Event {
    /// Every record is acknowledged: a later one cannot overtake them any more.
    Flushed,
    Committed {
        took: Duration,
    },
    Failed(RelayError),
}

impl Lane {
    /// Makes a producer and, for exactly-once, fences every earlier one of its id when it is its turn. Blocks until Kafka answers.
    #[expect(
        clippy::too_many_arguments,
        reason = "all of it is the publisher's, and different for each lane or lent"
    )]
    pub(in crate::kafka) fn start(
        settings: &KafkaSettings,
        delivery: Delivery,
        transactional_id: &str,
        checkpoint_topic: &str,
        fence_turn: FenceTurn,
        gives_up: &(dyn Fn() -> bool + Sync),
        abandoned: Abandoned,
        events: UnboundedSender<Event>,
    ) -> Result<Self, RelayError> {
        let (producer, health) = settings.open_producer(delivery, transactional_id)?;
        if delivery == Delivery::ExactlyOnce {
            connect(&producer, checkpoint_topic);
            fence_turn.fence_in_turn(|| init_transactions(&producer, &health, gives_up))?;
            tracing::debug!(transactional_id, "fenced earlier producers");
        }
        serve_events(&producer, &health);
        if health.has_lost_a_connection() {
            // librdkafka reports the same loss once in 30 s only: one that mattered could be missed.
            return Err(anyhow::anyhow!("the connection to kafka was disturbed at its start").into());
        }
        health.forget_failed_connects();
        let producer = Arc::new(producer);
        let (orders, orders_taken) = mpsc::channel();
        let work = Work {
            producer: Arc::clone(&producer),
            health: health.clone(),
            settings: settings.clone(),
            abandoned,
            events,
            delivery,
        };
        std::thread::Builder::new()
            .name("kafka-commit".to_owned())
            .spawn(move || work.carry_out(orders_taken))
            .context("cannot start a thread")?;
        Ok(Self {
            producer,
            health,
            in_transaction: false,
            orders,
        })
    }

    pub(in crate::kafka) fn order(&self, order: Order) -> Result<(), RelayError> {
        Ok(self.orders.send(order).ok().context("the commit thread is gone")?)
    }
}

/// What a lane's thread works with.
struct Work {
    producer: Arc<BaseProducer<Health>>,
    health: Health,
    settings: KafkaSettings,
    abandoned: Abandoned,
    events: UnboundedSender<Event>,
    delivery: Delivery,
}

impl Work {
    fn carry_out(&self, orders: mpsc::Receiver<Order>) {
        for order in orders {
            let event = match self.end_transaction(order) {
                Ok(took) => Event::Committed { took },
                Err(err) => Event::Failed(err),
            };
            if self.events.send(event).is_err() {
                break;
            }
        }
    }

    fn end_transaction(&self, order: Order) -> Result<Duration, RelayError> {
        if planted::commits_checkpoint_before_data() {
            send_alone(&self.settings, &order.checkpoint)?;
        }
        if self.delivery == Delivery::ExactlyOnce {
            self.send(&order.checkpoint)?;
        }
        faults::point("checkpoint.after")?;
        self.flush()?;
        faults::point("flush.after")?;
        // Nobody listens where the publisher was given up; the commit's own outcome tells that as well.
        let _gone = self.events.send(Event::Flushed);
        if let Some(before) = order.after
            && !planted::lets_second_commit_first()
        {
            before
                .recv()
                .ok()
                .context("the kafka transaction before this one did not commit")?;
        }
        faults::point("commit.before")?;
        match self.delivery {
            Delivery::ExactlyOnce => self.commit()?,
            // Only now: a checkpoint that Kafka has before the records would skip them after a crash.
            Delivery::AtLeastOnce => {
                self.send(&order.checkpoint)?;
                self.flush()?;
            }
        }
        faults::point("commit.after")?;
        let _nobody_waits = order.done.send(());
        Ok(order.ordered_at.elapsed())
    }

    fn send(&self, checkpoint: &CheckpointRecord) -> Result<(), RelayError> {
        let CheckpointRecord { topic, key, value } = checkpoint;
        let mut record = BaseRecord::to(topic).partition(0).key(key).payload(value);
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                // The queue empties by itself, or its records fail at their timeout.
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), refused)) => {
                    record = refused;
                    serve_events(&self.producer, &self.health);
                    self.fail_on_undelivered()?;
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err((err, _)) => return Err(self.explain_refusal(err, "kafka refused the checkpoint")),
            }
        }
    }

    fn flush(&self) -> Result<(), RelayError> {
        // Ends at the latest when message.timeout.ms makes every record a failure.
        while !flush(&self.producer, Duration::from_millis(50)) {
            serve_events(&self.producer, &self.health);
            self.fail_on_undelivered()?;
            if self.abandoned.is_told() {
                // Its records would keep their memory for as long as Kafka is away.
                return Err(anyhow::anyhow!("the producer was given up").into());
            }
        }
        serve_events(&self.producer, &self.health);
        self.fail_on_undelivered()
    }

    fn commit(&self) -> Result<(), RelayError> {
        loop {
            match self.producer.commit_transaction(Duration::from_secs(10)) {
                Ok(()) => {
                    // A connection that broke meanwhile has to be known before the next transaction begins.
                    serve_events(&self.producer, &self.health);
                    return Ok(());
                }
                // The same call again is what librdkafka asks for; it does not send a second commit.
                Err(KafkaError::Transaction(err)) if err.is_retriable() && !self.abandoned.is_told() => {
                    tracing::debug!(error = %err.string(), "commit_transaction is tried again");
                }
                Err(err) => return Err(self.explain_refusal(err, "the kafka transaction did not commit")),
            }
        }
    }

    /// One lost record loses its transaction: librdkafka would refuse the commit as well, but says less.
    fn fail_on_undelivered(&self) -> Result<(), RelayError> {
        find_undelivered(&self.health, &self.settings).map_or(Ok(()), Err)
    }

    fn explain_refusal(&self, err: KafkaError, what: &'static str) -> RelayError {
        explain_refusal(err, what, &self.producer, &self.health, &self.settings)
    }
}

/// Waits for a connection to Kafka, for a moment. Asked for the transaction coordinator before it has one, librdkafka asks again only
/// 500 ms later.
fn connect(producer: &BaseProducer<Health>, topic: &str) {
    if let Err(err) = producer.client().fetch_metadata(Some(topic), CONNECT_MAX) {
        tracing::debug!(error = %err, "kafka does not answer yet");
    }
}

fn init_transactions(
    producer: &BaseProducer<Health>,
    health: &Health,
    gives_up: &dyn Fn() -> bool,
) -> Result<(), RelayError> {
    if gives_up() {
        return Err(anyhow::anyhow!("given up before earlier producers were fenced").into());
    }
    loop {
        // The call goes on with what an earlier one began, so a short one costs nothing and sees a refusal soon.
        match producer.init_transactions(Duration::from_secs(1)) {
            Ok(()) => return Ok(()),
            Err(KafkaError::Transaction(err)) if err.is_retriable() && !gives_up() => {
                tracing::debug!(error = %err.string(), "init_transactions is tried again");
                serve_events(producer, health);
                if let Some(refused) = health.refused() {
                    return Err(anyhow::Error::new(refused).into());
                }
            }
            Err(err) => return Err(anyhow::Error::new(err).context("cannot fence earlier producers").into()),
        }
    }
}

/// The planted bugs of a record that is there before its transaction.
pub(in crate::kafka) fn send_alone(settings: &KafkaSettings, record: &CheckpointRecord) -> Result<(), RelayError> {
    let (producer, _) = settings.open_producer(Delivery::AtLeastOnce, "")?;
    let record = BaseRecord::to(&record.topic)
        .partition(0)
        .key(&record.key)
        .payload(&record.value);
    producer
        .send(record)
        .map_err(|(err, _)| anyhow::Error::new(err).context("kafka refused the checkpoint"))?;
    while !flush(&producer, Duration::from_millis(50)) {}
    Ok(())
}
