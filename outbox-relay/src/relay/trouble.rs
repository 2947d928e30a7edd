//! What ended a cycle, by kind: the metric `relay_last_error_timestamp_seconds`.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use service::clock::now_us;

use crate::kafka::{RefusedRecord, TopicError};
use kafka_client::Refused;
use pg_replication::PgError;

/// Whom the error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Postgres,
    Kafka,
    /// A record that the broker refused.
    Row,
    /// A stop: a person has to act.
    Stop,
    /// None of these.
    Other,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Postgres, Self::Kafka, Self::Row, Self::Stop, Self::Other];

    /// The kind as the metric has it.
    const fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Kafka => "kafka",
            Self::Row => "row",
            Self::Stop => "stop",
            Self::Other => "other",
        }
    }

    /// The kind of an error that is worth another try. Its causes tell, and else its words.
    pub(super) fn of(err: &anyhow::Error) -> Self {
        if RefusedRecord::cause_of(err).is_some() {
            return Self::Row;
        }
        let has = |is: fn(&(dyn std::error::Error + 'static)) -> bool| err.chain().any(is);
        // librdkafka's errors are none of the operating system, so such an error is of a session with Postgres.
        if PgError::code_of(err).is_some() || has(|cause| cause.is::<std::io::Error>()) {
            return Self::Postgres;
        }
        if has(|cause| {
            cause.is::<KafkaError>()
                || cause.is::<RDKafkaErrorCode>()
                || cause.is::<Refused>()
                || cause.is::<TopicError>()
        }) {
            return Self::Kafka;
        }
        let words = format!("{err:#}");
        let says = |words_of_kind: &[&str]| words_of_kind.iter().any(|word| words.contains(word));
        if says(&["kafka", "topic", "producer"]) {
            Self::Kafka
        } else if says(&["server", "slot", "replication stream", "connect"]) {
            Self::Postgres
        } else {
            Self::Other
        }
    }
}

/// Says what the metric is. Every kind has a series from the beginning.
pub(super) fn describe() {
    metrics::describe_gauge!(
        "relay_last_error_timestamp_seconds",
        "When a cycle of the relay last ended by an error of this kind, in seconds since 1970; 0: not since the process began."
    );
    for kind in Kind::ALL {
        gauge(kind).set(0.0);
    }
}

/// A cycle has ended by an error of this kind.
pub(super) fn note(kind: Kind) {
    gauge(kind).set(now_us() as f64 / 1e6);
}

fn gauge(kind: Kind) -> metrics::Gauge {
    metrics::gauge!("relay_last_error_timestamp_seconds", "kind" => kind.name())
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;
    use rdkafka::error::{KafkaError, RDKafkaErrorCode};

    use super::Kind;

    #[test]
    fn an_error_is_told_by_its_cause_and_else_by_its_words() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let postgres = Err::<(), _>(refused).context("cannot connect to localhost:5432");
        let code = RDKafkaErrorCode::OperationTimedOut;
        let kafka = Err::<(), _>(KafkaError::MetadataFetch(code)).context("cannot read the end of the topic");
        for (err, kind) in [
            (postgres.unwrap_err(), Kind::Postgres),
            (kafka.unwrap_err(), Kind::Kafka),
            (
                anyhow::anyhow!("the connection to kafka was disturbed: the producers are replaced"),
                Kind::Kafka,
            ),
            (anyhow::anyhow!("the server has been silent for 60 s"), Kind::Postgres),
            (anyhow::anyhow!("decoding paused at no row"), Kind::Other),
        ] {
            assert_eq!(Kind::of(&err), kind, "{err:#}");
        }
    }
}
