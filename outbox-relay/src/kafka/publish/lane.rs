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

/// How long we wait for a connection before the first question. A longer wait would not help.
const CONNECT_MAX: Duration = Duration::from_secs(1);

/// A producer, the channel to its thread, and whether a transaction is open.
pub(in crate::kafka) struct Lane {
    pub(in crate::kafka) producer: Arc<BaseProducer<Health>>,
    pub(in crate::kafka) health: Health,
    pub(in crate::kafka) in_transaction: bool,
    orders: mpsc::Sender<Order>,
}

/// The order to end one transaction: flush, wait for the transaction before it, commit.
pub(in crate::kafka) struct Order {
    pub(in crate::kafka) checkpoint: CheckpointRecord,
    /// Says that the transaction before this one has committed. The channel closes without a message if it did not.
    pub(in crate::kafka) previous_committed: Option<mpsc::Receiver<()>>,
    /// Tells the next transaction that this one has committed.
    pub(in crate::kafka) committed: mpsc::Sender<()>,
    pub(in crate::kafka) ordered_at: Instant,
}

/// The checkpoint as a record.
#[derive(Clone, Debug)]
pub(in crate::kafka) struct CheckpointRecord {
    pub(in crate::kafka) topic: String,
    pub(in crate::kafka) key: String,
    pub(in crate::kafka) value: String,
}

/// What a lane's thread reports.
pub(in crate::kafka) enum Event {
    /// Every record is acknowledged, so no later record can overtake one of them any more.
    Flushed,
    Committed {
        took: Duration,
    },
    Failed(RelayError),
}

impl Lane {
    /// Makes a producer. For exactly-once it also fences every earlier producer of its id, when it is this lane's turn. Blocks until Kafka answers.
    #[expect(
        clippy::too_many_arguments,
        reason = "each comes from the publisher, and no two belong together"
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
            // librdkafka reports the same loss only once in 30 s, so we could miss a later loss that matters.
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
        // If the publisher was given up, nobody listens. Sending the commit's outcome notices that as well.
        let _gone = self.events.send(Event::Flushed);
        if let Some(previous_committed) = order.previous_committed
            && !planted::lets_second_commit_first()
        {
            previous_committed
                .recv()
                .ok()
                .context("the kafka transaction before this one did not commit")?;
        }
        faults::point("commit.before")?;
        match self.delivery {
            Delivery::ExactlyOnce => self.commit()?,
            // Only now. If Kafka had the checkpoint before the records, a start after a crash would skip them.
            Delivery::AtLeastOnce => {
                self.send(&order.checkpoint)?;
                self.flush()?;
            }
        }
        faults::point("commit.after")?;
        let _nobody_waits = order.committed.send(());
        Ok(order.ordered_at.elapsed())
    }

    fn send(&self, checkpoint: &CheckpointRecord) -> Result<(), RelayError> {
        let CheckpointRecord { topic, key, value } = checkpoint;
        let mut record = BaseRecord::to(topic).partition(0).key(key).payload(value);
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                // The queue gets room again: its records are sent, or they fail at their timeout.
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
        // This ends at the latest when every record has failed after message.timeout.ms.
        while !flush(&self.producer, Duration::from_millis(50)) {
            serve_events(&self.producer, &self.health);
            self.fail_on_undelivered()?;
            if self.abandoned.is_told() {
                // Without this, its records would keep their memory as long as Kafka is away.
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
                    // If a connection broke meanwhile, we have to know it before the next transaction begins.
                    serve_events(&self.producer, &self.health);
                    return Ok(());
                }
                // librdkafka wants the same call again. This does not send a second commit.
                Err(KafkaError::Transaction(err)) if err.is_retriable() && !self.abandoned.is_told() => {
                    tracing::debug!(error = %err.string(), "commit_transaction is tried again");
                }
                Err(err) => return Err(self.explain_refusal(err, "the kafka transaction did not commit")),
            }
        }
    }

    /// Fails if a record was lost: then its transaction is lost too. librdkafka would refuse the commit, but it says less about the reason.
    fn fail_on_undelivered(&self) -> Result<(), RelayError> {
        find_undelivered(&self.health, &self.settings).map_or(Ok(()), Err)
    }

    fn explain_refusal(&self, err: KafkaError, what: &'static str) -> RelayError {
        explain_refusal(err, what, &self.producer, &self.health, &self.settings)
    }
}

/// Waits a moment for a connection to Kafka. If librdkafka has to find the transaction coordinator before it has a connection, it tries again only 500 ms
/// later.
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
        // A call continues what an earlier call began. So a short timeout costs nothing, and we see a refusal soon.
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

/// Sends a record outside of any transaction, for planted bugs.
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
