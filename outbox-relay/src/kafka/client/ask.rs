//! Asks a cluster that may be slow, and gives up at once where it refuses.

use std::time::{Duration, Instant};

use kafka_client::ReaderContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};

/// The first try of a question; each further one takes twice as long, so that a slow broker is not asked again and again.
const FIRST_TRY: Duration = Duration::from_millis(500);
/// How long events are served after a try; longer than what `debug=all` reports of it takes.
const SERVE_EVENTS: Duration = Duration::from_millis(50);

/// Asks Kafka by a reader that has no partitions assigned, for up to `patience`; a refusal ends it at once. Blocks.
pub(in crate::kafka) fn ask<T>(
    reader: &BaseConsumer<ReaderContext>,
    patience: Duration,
    question: impl Fn(Duration) -> KafkaResult<T>,
) -> anyhow::Result<T> {
    let started = Instant::now();
    let mut try_for = FIRST_TRY;
    loop {
        let left = patience.saturating_sub(started.elapsed());
        let is_last = left <= try_for;
        let reasons = reader.context().reasons();
        let err = match question(left.min(try_for)) {
            Ok(answer) => {
                // What was reported before explains no later silence.
                reasons.forget();
                return Ok(answer);
            }
            Err(err) => err,
        };
        // What was reported meanwhile waits in the reader's queue. A poll serves one event and does not tell whether there was one.
        let polled = Instant::now();
        while polled.elapsed() < SERVE_EVENTS && reasons.refused().is_none() {
            reader.poll(Duration::from_millis(1));
        }
        if let Some(refused) = reasons.refused() {
            return Err(refused.into());
        }
        if !is_silence(&err) || is_last {
            return Err(reasons.explain(err));
        }
        try_for *= 2;
    }
}

/// Whether nobody has answered in time. Where a client has no connection by then, librdkafka says that all brokers are down, although it may
/// have come no further than to the first of them.
fn is_silence(err: &KafkaError) -> bool {
    matches!(
        err.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::OperationTimedOut
        )
    )
}

#[cfg(test)]
mod tests {
    use rdkafka::error::{KafkaError, RDKafkaErrorCode};

    use super::is_silence;

    #[test]
    fn a_client_that_has_no_connection_yet_asks_again() {
        let says = |code| is_silence(&KafkaError::MetadataFetch(code));
        assert!(says(RDKafkaErrorCode::AllBrokersDown) && says(RDKafkaErrorCode::OperationTimedOut));
        assert!(!says(RDKafkaErrorCode::TopicAuthorizationFailed));
    }
}
