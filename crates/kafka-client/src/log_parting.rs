//! Finds the offset at which a partition's log parts from what was read of it.
//!
//! A leader that lacked the end of the log may have been elected (unclean election). The records at the end are lost then, and other records get their
//! offsets. So offsets alone do not show the loss. The leader's epoch does: each record carries it, and a leader can tell where an epoch ends in its
//! log (KIP-320).
//!
//! The safe wrapper offers neither. librdkafka asks the leader if a seek names an epoch. If that epoch ends before the offset of the seek, it goes on
//! from where the epoch ends. So the first offset that comes after a seek tells where the log parts.

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
/// How long one poll waits, at most.
const POLL_TIMEOUT: Duration = Duration::from_millis(100);

/// How far a partition was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadUpTo {
    /// One past the offset of the last record that was read.
    pub offset: i64,
    /// The leader's epoch of that record.
    pub epoch: i32,
}

/// The leader's epoch that the record carries. `None` if the cluster does not tell it.
#[must_use]
#[expect(unsafe_code, reason = "the safe wrapper lacks the epoch")]
pub fn leader_epoch(record: &BorrowedMessage<'_>) -> Option<i32> {
    // SAFETY: the message is valid as long as it is borrowed.
    let epoch = unsafe { native::rd_kafka_message_leader_epoch(record.ptr()) };
    (epoch >= 0).then_some(epoch)
}

/// For each of these partitions of a topic: the first offset that Kafka gives when it is asked for what follows the records that were read. If it is
/// lower than [`ReadUpTo::offset`], the log parts there from what was read. If Kafka gives none within `wait`, the partition is left out, and nothing
/// is known about it.
///
/// The consumer must have `auto.offset.reset=earliest` and `enable.partition.eof`. Whatever it read before is stopped. Blocks.
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
    let sought = seek_with_epochs(consumer, topic, read)?;
    let (mut first_offsets, started) = (BTreeMap::new(), Instant::now());
    while first_offsets.len() < sought.len() && started.elapsed() < wait {
        let (partition, offset) = match reader.next(POLL_TIMEOUT)? {
            Next::Record(record) => (record.partition(), record.offset()),
            Next::End { partition, offset } => (partition, offset),
            Next::Nothing => continue,
        };
        // A partition whose seek failed is read without an epoch, so its first offset tells nothing.
        if sought.contains(&partition) {
            first_offsets.entry(partition).or_insert(offset);
        }
    }
    drop(reader);
    consumer.unassign().context("partitions cannot be given back")?;
    Ok(first_offsets)
}

/// Makes librdkafka ask the leaders whether their logs still have what was read. Returns the partitions for which it does so.
#[expect(unsafe_code, reason = "the safe wrapper's seek names no epoch")]
fn seek_with_epochs(
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
        let without_error = elements.iter().filter(|element| element.error().is_ok());
        return Ok(without_error.map(|element| element.partition()).collect());
    }
    // SAFETY: the error is ours, and given back once.
    let code = unsafe {
        let code = native::rd_kafka_error_code(error);
        native::rd_kafka_error_destroy(error);
        code
    };
    bail!("kafka's client does not seek: {code:?}")
}
