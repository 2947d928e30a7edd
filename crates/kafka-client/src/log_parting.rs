//! Where a partition's log parts from what was read of it.
//!
//! A leader that lacked the end of the log may have been elected (unclean election). The offsets of the records that are lost are other records'
//! then, so that offsets alone tell nothing. The leader's epoch does: it stands with each record, and a leader tells where an epoch ends in its
//! log (KIP-320). The safe wrapper has neither. librdkafka asks for it where a seek names an epoch, and goes on from where the epoch ends where
//! that lies before the offset of the seek; so the first offset that comes tells.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rdkafka::bindings as native;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::message::BorrowedMessage;
use rdkafka::{Offset, TopicPartitionList};

use crate::topic_reader::{Next, TopicReader};

const SEEK_TIMEOUT_MS: i32 = 5_000;
const STEP: Duration = Duration::from_millis(100);

/// How far a partition was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadUpTo {
    /// One past the offset of the last record that was read.
    pub offset: i64,
    /// The leader's epoch of that record.
    pub epoch: i32,
}

/// The leader's epoch that stands with the record; none where the cluster does not tell it.
#[must_use]
#[expect(unsafe_code, reason = "the safe wrapper does not tell it")]
pub fn leader_epoch(record: &BorrowedMessage<'_>) -> Option<i32> {
    // SAFETY: the message is borrowed, and valid as long as that.
    let epoch = unsafe { native::rd_kafka_message_leader_epoch(record.ptr()) };
    (epoch >= 0).then_some(epoch)
}

/// For each of these partitions of a topic the first offset that it gives where it is asked for what comes behind what was read. One that is lower
/// than that says that the log parts there from what was read. A partition of which Kafka does not tell within `wait` is left out: nothing
/// is known of it. The consumer must have `auto.offset.reset=earliest` and `enable.partition.eof`, and whatever it read before is over. Blocks.
///
/// # Errors
/// Kafka does not answer, or refuses.
pub fn first_offsets_behind(
    consumer: &BaseConsumer<impl ConsumerContext>,
    topic: &str,
    read: &BTreeMap<i32, ReadUpTo>,
    wait: Duration,
) -> anyhow::Result<BTreeMap<i32, i64>> {
    let from: Vec<(i32, i64)> = read.iter().map(|(partition, read)| (*partition, read.offset)).collect();
    let reader = TopicReader::start(consumer, topic, &from)?;
    let asked = seek(consumer, topic, read)?;
    let (mut told, began) = (BTreeMap::new(), Instant::now());
    while told.len() < asked.len() && began.elapsed() < wait {
        let (partition, offset) = match reader.next(STEP)? {
            Next::Record(record) => (record.partition(), record.offset()),
            Next::End { partition, offset } => (partition, offset),
            Next::Nothing => continue,
        };
        // Without the seek a partition tells nothing: its reading names no epoch.
        if asked.contains(&partition) {
            told.entry(partition).or_insert(offset);
        }
    }
    drop(reader);
    consumer.unassign().context("partitions cannot be given back")?;
    Ok(told)
}

/// Has librdkafka look whether what was read is what the leaders have. Gives the partitions of which it does.
#[expect(unsafe_code, reason = "the safe wrapper's seek names no epoch")]
fn seek(
    consumer: &BaseConsumer<impl ConsumerContext>,
    topic: &str,
    read: &BTreeMap<i32, ReadUpTo>,
) -> anyhow::Result<BTreeSet<i32>> {
    let name = CString::new(topic).context("a topic's name has no zero byte")?;
    let mut list = TopicPartitionList::new();
    for (partition, read) in read {
        list.add_partition_offset(topic, *partition, Offset::Offset(read.offset))
            .context("invalid offset")?;
    }
    for (partition, read) in read {
        // SAFETY: the list and the name are valid, and the element is the list's.
        unsafe {
            let element = native::rd_kafka_topic_partition_list_find(list.ptr(), name.as_ptr(), *partition);
            ensure!(!element.is_null(), "kafka's client loses a partition");
            native::rd_kafka_topic_partition_set_leader_epoch(element, read.epoch);
        }
    }
    // SAFETY: the client is valid as long as the consumer, and the list as long as the call.
    let error =
        unsafe { native::rd_kafka_seek_partitions(consumer.client().native_ptr(), list.ptr(), SEEK_TIMEOUT_MS) };
    if error.is_null() {
        let elements = list.elements();
        let sought = elements.iter().filter(|element| element.error().is_ok());
        return Ok(sought.map(|element| element.partition()).collect());
    }
    // SAFETY: the error is ours, and given back once.
    let code = unsafe {
        let code = native::rd_kafka_error_code(error);
        native::rd_kafka_error_destroy(error);
        code
    };
    bail!("kafka's client does not seek: {code:?}")
}
