//! What a running stream counts.

use crate::kafka::Amount;

pub(super) struct StreamMetrics {
    pub(super) records: metrics::Counter,
    pub(super) transactions: metrics::Counter,
    pub(super) skipped: metrics::Counter,
    pub(super) commit_seconds: metrics::Histogram,
    pub(super) commit_to_kafka_seconds: metrics::Histogram,
    pub(super) unconfirmed_bytes: metrics::Gauge,
}

impl StreamMetrics {
    pub(super) fn new() -> Self {
        metrics::describe_counter!(
            "relay_published_records_total",
            "Records in committed Kafka transactions."
        );
        metrics::describe_counter!(
            "relay_topic_records_total",
            "Records of rows in committed Kafka transactions, by topic."
        );
        metrics::describe_counter!(
            "relay_topic_bytes_total",
            "Bytes of the keys and values of these records, before compression, by topic."
        );
        metrics::describe_counter!(
            "relay_transactions_total",
            "Committed Kafka transactions, idle checkpoints included."
        );
        metrics::describe_counter!(
            "relay_skipped_rows_total",
            "Rows that the slot sent again and that were published already."
        );
        metrics::describe_histogram!(
            "relay_kafka_commit_seconds",
            "From the order to commit until the broker's answer, in seconds."
        );
        metrics::describe_histogram!(
            "relay_commit_to_kafka_seconds",
            "From the commit in Postgres of a transaction's newest row until it is visible to a read_committed reader, in seconds."
        );
        metrics::describe_gauge!(
            "relay_unconfirmed_bytes",
            "WAL that was read and is not confirmed yet, in bytes."
        );
        metrics::describe_gauge!("relay_leader", "1 while this relay has the slot and streams.");
        metrics::describe_counter!(
            "relay_restarts_total",
            "Cycles that began again at the checkpoint after trouble."
        );
        Self {
            records: metrics::counter!("relay_published_records_total"),
            transactions: metrics::counter!("relay_transactions_total"),
            skipped: metrics::counter!("relay_skipped_rows_total"),
            commit_seconds: metrics::histogram!("relay_kafka_commit_seconds"),
            commit_to_kafka_seconds: metrics::histogram!("relay_commit_to_kafka_seconds"),
            unconfirmed_bytes: metrics::gauge!("relay_unconfirmed_bytes"),
        }
    }
}

/// Counts what a committed Kafka transaction has for each topic.
pub(super) fn count_by_topic(by_topic: &[(String, Amount)]) {
    for (topic, amount) in by_topic {
        metrics::counter!("relay_topic_records_total", "topic" => topic.clone()).increment(amount.records);
        metrics::counter!("relay_topic_bytes_total", "topic" => topic.clone()).increment(amount.bytes);
    }
}
