//! Partitions that are assigned again and again.

use rdkafka::consumer::{Consumer, ConsumerContext};
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::TopicPartitionList;

/// Reads these partitions, each from its offset on, and no others. It may be called again at once.
///
/// librdkafka answers before it has stopped what was read before. A partition that is assigned once more until then is stopped twice, and
/// librdkafka aborts the process: `rd_kafka_assignment_partition_stopped: Assertion rktp->rktp_started failed`.
///
/// # Errors
/// An offset is out of range, or the client is closing.
pub fn assign<X: ConsumerContext>(consumer: &impl Consumer<X>, partitions: &TopicPartitionList) -> KafkaResult<()> {
    consumer.assign(partitions)?;
    wait_until_stopped(consumer)
}

/// Reads nothing any more. What was read before has stopped when it returns.
///
/// A partition's queue goes back to librdkafka at that moment. Whoever forwards the queue before has it taken away again.
pub(crate) fn stop<X: ConsumerContext>(consumer: &impl Consumer<X>) -> KafkaResult<()> {
    consumer.unassign()?;
    wait_until_stopped(consumer)
}

/// librdkafka's main thread takes one request after the other. An answer to a later request says that the requests to stop were taken, and the
/// next answer that their ends were.
fn wait_until_stopped<X: ConsumerContext>(consumer: &impl Consumer<X>) -> KafkaResult<()> {
    consumer.assignment()?;
    consumer.assignment()?;
    Ok(())
}
