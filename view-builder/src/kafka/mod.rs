//! Kafka, as the builder uses it. Its consumer is a member of the group, but [`crate::builder`] says at which offsets it starts to read.
//!
//! librdkafka tells a new assignment in a callback. The callback only stores it. Nothing is fetched until `assign` is called with the positions
//! from Postgres, so no record from another offset can slip in. A revocation takes effect at once.

mod clients;
mod end;
mod group;
pub mod servers;

use std::time::Duration;

use kafka_client::ReaderContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, StreamConsumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::contract::place::TopicPartition;
use crate::contract::position::Reached;
use crate::process::faults;

pub(crate) use clients::{admin, observer_of_group, observer_with, parting_observer, uncommitted_observer};
pub use clients::{consumer, observer};
pub use end::End;
pub use group::GroupContext;
pub(crate) use group::lock;

/// Timeout of each request that this program makes itself.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

pub type GroupConsumer = StreamConsumer<GroupContext>;

/// A client that only looks at topics and groups. It joins no group.
pub type Observer = BaseConsumer<ReaderContext>;

/// Assigns partitions with explicit offsets.
///
/// # Errors
/// The assignment was revoked meanwhile.
pub fn assign<'a>(
    consumer: &GroupConsumer,
    offsets: impl Iterator<Item = (&'a TopicPartition, i64)>,
) -> KafkaResult<()> {
    kafka_client::assign(consumer, &partition_list(offsets)?)?;
    consumer.context().note_that_reading_begins_anew();
    Ok(())
}

/// Answers an assignment, but takes none of its partitions. If an assignment got no answer at all, librdkafka would never join the group again.
pub fn decline(consumer: &GroupConsumer) {
    if let Err(err) = consumer.assign(&TopicPartitionList::new()) {
        tracing::warn!(error = %err, "an assignment cannot be declined");
    }
}

/// Commits the group's offsets to Kafka and waits for the answer. Returns what Kafka has acknowledged.
#[must_use]
pub fn commit(consumer: &GroupConsumer, offsets: Vec<Reached>) -> Vec<Reached> {
    if offsets.is_empty() {
        return Vec::new();
    }
    let sent = between_failpoints(|| {
        let list = partition_list(offsets.iter().map(|reached| (&reached.place, reached.next_offset)))?;
        consumer.commit(&list, CommitMode::Sync)
    });
    match sent {
        Ok(()) => offsets,
        Err(err) => {
            tracing::debug!(error = %err, "the group's offsets are not committed to kafka");
            Vec::new()
        }
    }
}

/// Makes librdkafka's list of partitions with offsets.
///
/// # Errors
/// An offset is out of range.
pub fn partition_list<'a>(offsets: impl Iterator<Item = (&'a TopicPartition, i64)>) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for (place, offset) in offsets {
        list.add_partition_offset(&place.topic, place.partition, Offset::Offset(offset))?;
    }
    Ok(list)
}

/// Sends the request. A test can make one of the two failpoints fail: then the request is not sent, or its answer is lost.
fn between_failpoints(commit: impl FnOnce() -> KafkaResult<()>) -> KafkaResult<()> {
    if !faults::request("group-commit.before") {
        return Err(KafkaError::Canceled);
    }
    commit()?;
    if !faults::request("group-commit.after") {
        return Err(KafkaError::Canceled);
    }
    Ok(())
}
