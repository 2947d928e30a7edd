//! Printing events, without a group and without touching anything.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::Context as _;
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::start::bounds;
use crate::kafka::{self, Observer};
use crate::process::failure::Failure;
use crate::settings::ReplayConfig;

/// How long one poll waits for a record. What was printed is flushed then.
const POLL_TIMEOUT: Duration = Duration::from_millis(200);

/// Prints each record as `key: value`, in the order of each partition, up to the end that the topic has now; with `follow` for as long
/// as somebody reads. Blocks.
///
/// # Errors
/// There is no such topic or partition; Kafka does not answer.
pub fn print(config: &ReplayConfig) -> Result<(), Failure> {
    let consumer = kafka::observer(&config.servers)?;
    let bounds = bounds(&consumer, &config.topic, config.partition, config.from)?;
    let mut assignment = TopicPartitionList::new();
    for (partition, bounds) in &bounds {
        assignment
            .add_partition_offset(&config.topic, *partition, Offset::Offset(bounds.start))
            .map_err(anyhow::Error::from)?;
    }
    consumer.assign(&assignment).map_err(anyhow::Error::from)?;
    match print_all(&consumer, config, bounds.len()) {
        // Whoever reads has seen enough: `| head`.
        Err(err)
            if err
                .downcast_ref::<io::Error>()
                .is_some_and(|err| err.kind() == io::ErrorKind::BrokenPipe) =>
        {
            Ok(())
        }
        other => Ok(other?),
    }
}

fn print_all(consumer: &Observer, config: &ReplayConfig, partitions: usize) -> anyhow::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut ended = 0;
    while config.follow || ended < partitions {
        match consumer.poll(POLL_TIMEOUT) {
            None => out.flush()?,
            Some(Ok(record)) => {
                out.write_all(record.key().unwrap_or(b"null"))?;
                out.write_all(b": ")?;
                out.write_all(record.payload().unwrap_or(b"null"))?;
                out.write_all(b"\n")?;
            }
            Some(Err(KafkaError::PartitionEOF(_))) => {
                ended += 1;
                out.flush()?;
            }
            Some(Err(err)) => return Err(err).context("kafka reports an error"),
        }
    }
    out.flush()?;
    Ok(())
}
