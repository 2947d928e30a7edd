//! The metrics and their names.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use metrics::{counter, gauge, histogram};

use crate::batch::{Batch, TopicPartition};

/// Microseconds since 1970.
#[must_use]
pub fn now_us() -> i64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_1970.as_micros()).unwrap_or(i64::MAX)
}

/// Tells what each metric is.
pub fn describe() {
    metrics::describe_counter!(
        "view_events_applied_total",
        "events whose transaction has committed, by topic"
    );
    metrics::describe_counter!("view_batches_total", "transactions that have committed");
    metrics::describe_histogram!("view_batch_events", "events in a transaction");
    metrics::describe_histogram!(
        "view_commit_to_view_seconds",
        "from the commit at the source to the commit of the view, by topic"
    );
    metrics::describe_gauge!(
        "view_partition_lag_events",
        "offsets between the view's position and the topic's end"
    );
    metrics::describe_gauge!("view_partitions_assigned", "partitions that this process holds");
    metrics::describe_counter!(
        "view_dead_letters_total",
        "events found that cannot be applied, by topic; a replay counts them again"
    );
    metrics::describe_gauge!(
        "view_dead_letters",
        "events that wait in view_dead_letters, parked ones included"
    );
    metrics::describe_counter!(
        "view_fenced_total",
        "batches given up because another builder owns a partition"
    );
    metrics::describe_counter!(
        "view_conflicts_total",
        "transactions tried again after a deadlock or a serialization failure"
    );
}

/// The batch's transaction has committed just now.
pub fn applied(batch: &Batch) {
    let now = now_us();
    let mut topics: HashMap<&str, (u64, metrics::Histogram)> = HashMap::new();
    for part in &batch.parts {
        let (count, latency) = topics.entry(&part.place.topic).or_insert_with(|| {
            (
                0,
                histogram!("view_commit_to_view_seconds", "topic" => part.place.topic.to_string()),
            )
        });
        for event in &part.events {
            *count += 1;
            #[expect(clippy::cast_precision_loss, reason = "exact up to 285 years")]
            latency.record((now - event.committed_us).max(0) as f64 / 1e6);
        }
    }
    for (topic, (count, _)) in topics {
        counter!("view_events_applied_total", "topic" => topic.to_owned()).increment(count);
    }
    counter!("view_batches_total").increment(1);
    histogram!("view_batch_events").record(u32::try_from(batch.event_count()).unwrap_or(u32::MAX));
}

pub fn conflict() {
    counter!("view_conflicts_total").increment(1);
}

pub fn fenced() {
    counter!("view_fenced_total").increment(1);
}

/// How far the view's position is behind the topic's end.
pub fn lag(place: &TopicPartition, events: i64) {
    let labels = [
        ("topic", place.topic.to_string()),
        ("partition", place.partition.to_string()),
    ];
    #[expect(clippy::cast_precision_loss, reason = "a lag is far below 2^52")]
    gauge!("view_partition_lag_events", &labels).set(events as f64);
}

pub fn dead_letter(topic: &str) {
    counter!("view_dead_letters_total", "topic" => topic.to_owned()).increment(1);
}

pub fn letters(count: i64) {
    #[expect(clippy::cast_precision_loss, reason = "a table has fewer than 2^52 rows")]
    gauge!("view_dead_letters").set(count as f64);
}

pub fn partitions(assigned: usize) {
    gauge!("view_partitions_assigned").set(u32::try_from(assigned).unwrap_or(u32::MAX));
}
