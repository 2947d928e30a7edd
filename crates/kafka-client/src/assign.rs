//! Assigns partitions, again and again, without a crash of librdkafka.

use rdkafka::consumer::{Consumer, ConsumerContext};
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::TopicPartitionList;

/// Reads these partitions, each from its offset on, and no others. It may be called again at once.
///
/// librdkafka answers before it has stopped what was read before. If a partition is assigned once more before that, it is stopped twice, and
/// librdkafka aborts the process: `rd_kafka_assignment_partition_stopped: Assertion rktp->rktp_started failed`.
///
/// # Errors
/// An offset is out of range, or the client is closing.
pub fn assign<X: ConsumerContext>(consumer: &impl Consumer<X>, partitions: &TopicPartitionList) -> KafkaResult<()> {
    consumer.assign(partitions)?;
    wait_until_stopped(consumer)
}

/// Stops all reading. When this returns, all that was read before has stopped.
///
/// At that moment librdkafka takes back the queue of each partition. A queue must not be forwarded before, since that would be undone.
pub(crate) fn stop<X: ConsumerContext>(consumer: &impl Consumer<X>) -> KafkaResult<()> {
    consumer.unassign()?;
    wait_until_stopped(consumer)
}

/// librdkafka's main thread handles one request after the other. The first answer says that it has handled the requests to stop. The second answer
/// says that it has handled the ends of what was stopped.
fn wait_until_stopped<X: ConsumerContext>(consumer: &impl Consumer<X>) -> KafkaResult<()> {
    consumer.assignment()?;
    consumer.assignment()?;
    Ok(())
}
