//! The record that pauses a relay. It is in the checkpoint topic, under a key of its own.
//!
//! It is written outside of any transaction, and read by a read_uncommitted reader. So it is seen even while some relay's transaction stays open.

use std::time::{Duration, Instant};

use anyhow::Context;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::producer::BaseRecord;
use rdkafka::{Offset, TopicPartitionList};

use super::planted;
use crate::kafka::client::ReaderContext;
use crate::kafka::client::ask;
use crate::kafka::client::{Delivery, KafkaSettings};
use crate::kafka::publish::flush;
use crate::kafka::publish::serve_events;
use crate::kafka::topics::partition_counts;
use kafka_client::{Next, TopicReader};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const WRITE_PATIENCE: Duration = Duration::from_secs(30);
const READ_STALL_MAX: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(200);

/// Where a relay's pause is kept.
#[derive(Clone, Debug)]
pub struct PauseLog {
    pub settings: KafkaSettings,
    /// The checkpoint topic.
    pub topic: String,
    pub key: String,
}

impl PauseLog {
    /// Writes the record. `None` writes the tombstone that removes it. Blocks until the brokers have it.
    ///
    /// # Errors
    /// The topic does not exist, or Kafka does not take the record.
    pub fn write(&self, value: Option<&str>) -> anyhow::Result<()> {
        let counts = partition_counts(&self.settings, std::slice::from_ref(&self.topic))?;
        anyhow::ensure!(
            counts.contains_key(&self.topic),
            "checkpoint topic `{}` does not exist: give the relay's own --checkpoint-topic",
            self.topic
        );
        let (producer, health) = self.settings.open_producer(Delivery::AtLeastOnce, "")?;
        let mut record = BaseRecord::<str, str>::to(&self.topic).partition(0).key(&self.key);
        record.payload = value;
        producer
            .send(record)
            .map_err(|(err, _)| anyhow::Error::new(err).context("kafka refused the record"))?;
        let started = Instant::now();
        while !flush(&producer, Duration::from_millis(50)) {
            serve_events(&producer, &health);
            anyhow::ensure!(
                started.elapsed() < WRITE_PATIENCE,
                "kafka has not taken the record within {} s",
                WRITE_PATIENCE.as_secs()
            );
        }
        serve_events(&producer, &health);
        match health.failures().first {
            None => Ok(()),
            Some(failure) => anyhow::bail!("kafka did not take the record: {}", failure.code),
        }
    }

    /// Reads the value of the last record, and the offset behind the topic's last record. The value is `None` if there is no record, or it was removed. Blocks.
    ///
    /// # Errors
    /// Kafka does not answer.
    pub fn read(&self, gives_up: &dyn Fn() -> bool) -> anyhow::Result<(Option<Vec<u8>>, i64)> {
        let reader = self.settings.open_reader("read_uncommitted")?;
        if !partition_counts(&self.settings, std::slice::from_ref(&self.topic))?.contains_key(&self.topic) {
            return Ok((None, 0));
        }
        let (low, end) = ask(&reader, REQUEST_TIMEOUT, |timeout| {
            reader.fetch_watermarks(&self.topic, 0, timeout)
        })
        .context("cannot read the end of the checkpoint topic")?;
        if low == end {
            return Ok((None, end));
        }
        let topic = TopicReader::start(&reader, &self.topic, &[(0, low)])?;
        let mut value = None;
        let mut moved_at = Instant::now();
        loop {
            match topic.next(POLL).context("cannot read the checkpoint topic")? {
                // A broker that lags behind reports the end of the topic too early.
                Next::End { offset, .. } if offset >= end || planted::believes_any_end() => {
                    return Ok((value, end));
                }
                Next::End { .. } | Next::Nothing => anyhow::ensure!(
                    moved_at.elapsed() < READ_STALL_MAX,
                    "the checkpoint topic gives nothing"
                ),
                Next::Record(record) => {
                    moved_at = Instant::now();
                    if record.key() == Some(self.key.as_bytes()) {
                        value = record.value().map(<[u8]>::to_vec);
                    }
                }
            }
            anyhow::ensure!(!gives_up(), "told to stop");
        }
    }

    /// Gives each record of the key from `offset` on to `on_record`, within about two seconds, until `gives_up`. Blocks.
    ///
    /// # Errors
    /// The topic cannot be read from there: it was made anew, or Kafka refuses.
    pub fn follow(
        &self,
        offset: i64,
        gives_up: &dyn Fn() -> bool,
        on_record: &mut dyn FnMut(Option<Vec<u8>>),
    ) -> anyhow::Result<()> {
        let reader = self.settings.open_patient_reader()?;
        self.assign(&reader, offset)?;
        while !gives_up() {
            match reader.poll(POLL) {
                None | Some(Err(KafkaError::PartitionEOF(_))) => {}
                // A broker that cannot be reached comes back, and the client finds it again.
                Some(Err(KafkaError::MessageConsumption(code))) if is_passing(code) => {}
                Some(Err(err)) => return Err(anyhow::Error::new(err).context("cannot read the checkpoint topic")),
                Some(Ok(message)) => {
                    if message.key() == Some(self.key.as_bytes()) {
                        on_record(message.payload().map(<[u8]>::to_vec));
                    }
                }
            }
        }
        Ok(())
    }

    fn assign(&self, reader: &BaseConsumer<ReaderContext>, offset: i64) -> anyhow::Result<()> {
        let mut assignment = TopicPartitionList::new();
        assignment
            .add_partition_offset(&self.topic, 0, Offset::Offset(offset))
            .context("invalid offset")?;
        reader.assign(&assignment).context("cannot read the checkpoint topic")
    }
}

fn is_passing(code: rdkafka::error::RDKafkaErrorCode) -> bool {
    use rdkafka::error::RDKafkaErrorCode::{AllBrokersDown, BrokerTransportFailure, OperationTimedOut, Resolve};
    matches!(
        code,
        AllBrokersDown | BrokerTransportFailure | OperationTimedOut | Resolve
    )
}
