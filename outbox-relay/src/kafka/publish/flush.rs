//! Waiting until every record is acknowledged, without burning a core.

use std::time::Duration;

use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::types::RDKafkaRespErr;

use crate::kafka::client::Health;

/// Waits up to `wait` until the producer has nothing in flight; returns whether that is so.
///
/// The wrapper's own `flush` waits in steps of 100 ms, and its `poll(1 ms)` spins. librdkafka's function returns the moment
/// the last acknowledgement is in: at 2,000 rows/s that is the difference between 10 and 100 ms of latency.
#[expect(unsafe_code, reason = "the safe wrapper's flush costs 100 ms a commit")]
pub(in crate::kafka) fn flush(producer: &BaseProducer<Health>, wait: Duration) -> bool {
    // A longer wait ends after 24 days.
    let wait_ms = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the pointer is valid as long as the producer that is borrowed here, and rd_kafka_flush may be called from any thread.
    let outcome = unsafe { rdkafka::bindings::rd_kafka_flush(producer.client().native_ptr(), wait_ms) };
    outcome == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR
}
