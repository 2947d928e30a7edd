//! Prints a topic's events. It joins no group and changes nothing.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::time::Duration;

use anyhow::Context as _;
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::start::find_ranges;
use crate::kafka::{self, Observer};
use crate::process::failure::Failure;
use crate::settings::ReplayConfig;

/// How long one poll waits for a record. If none comes, what was printed is flushed.
const POLL_TIMEOUT: Duration = Duration::from_millis(200);

/// Prints each record as `key: value`, in the order of each partition, up to the end that the topic has now. With `follow` it goes on for as
/// long as somebody reads its output. Blocks.
///
/// # Errors
/// There is no such topic or partition; Kafka does not answer.
pub fn print(config: &ReplayConfig) -> Result<(), Failure> {
    let consumer = kafka::observer(&config.servers)?;
    let ranges = find_ranges(&consumer, &config.topic, config.partition, config.from)?;
    let mut assignment = TopicPartitionList::new();
    for (partition, range) in &ranges {
        assignment
            .add_partition_offset(&config.topic, *partition, Offset::Offset(range.start))
            .map_err(anyhow::Error::from)?;
    }
    consumer.assign(&assignment).map_err(anyhow::Error::from)?;
    match print_all(&consumer, config, ranges.len()) {
        // The program that reads our output has ended, such as `head`. That is no error.
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
    // A partition that is written meanwhile ends again and again.
    let mut ended = BTreeSet::new();
    while config.follow || ended.len() < partitions {
        match consumer.poll(POLL_TIMEOUT) {
            None => out.flush()?,
            Some(Ok(record)) => {
                out.write_all(record.key().unwrap_or(b"null"))?;
                out.write_all(b": ")?;
                out.write_all(record.payload().unwrap_or(b"null"))?;
                out.write_all(b"\n")?;
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                ended.insert(partition);
                out.flush()?;
            }
            Some(Err(err)) => return Err(err).context("kafka reports an error"),
        }
    }
    out.flush()?;
    Ok(())
}
