//! The metrics and their names.

use metrics::{counter, gauge};
use service::clock;

// Three families and not one with a label `stage`: their sum over a label would count the first two twice.
pub(crate) const COMMIT_TO_READ: &str = "view_commit_to_read_seconds";
pub(crate) const READ_TO_VIEW: &str = "view_read_to_view_seconds";
pub(crate) const COMMIT_TO_VIEW: &str = "view_commit_to_view_seconds";

/// Whom an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    Postgres,
    Kafka,
    /// A batch that Postgres refuses again and again.
    Batch,
    /// An event that cannot be applied.
    Event,
    /// A view that was paused since Postgres does not let it be kept.
    View,
}

impl Trouble {
    const ALL: [Self; 5] = [Self::Postgres, Self::Kafka, Self::Batch, Self::Event, Self::View];

    /// The kind as the metric has it.
    const fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Kafka => "kafka",
            Self::Batch => "batch",
            Self::Event => "event",
            Self::View => "view",
        }
    }

    fn gauge(self) -> metrics::Gauge {
        gauge!("view_last_error_timestamp_seconds", "kind" => self.name())
    }

    /// There is such an error now.
    pub fn note(self) {
        #[expect(clippy::cast_precision_loss, reason = "exact up to 285 years")]
        self.gauge().set(clock::now_us() as f64 / 1e6);
    }
}

/// Tells what each metric is.
pub fn describe() {
    metrics::describe_gauge!(
        "view_last_error_timestamp_seconds",
        "when there was last an error of this kind, in seconds since 1970; 0: not since the process began"
    );
    // Every kind has a series from the beginning.
    for trouble in Trouble::ALL {
        trouble.gauge().set(0.0);
    }
    metrics::describe_counter!(
        "view_events_applied_total",
        "events whose transaction has committed, by topic"
    );
    metrics::describe_counter!("view_batches_total", "transactions that have committed");
    metrics::describe_histogram!("view_batch_events", "events in a transaction");
    metrics::describe_histogram!(
        COMMIT_TO_READ,
        "from an event's commit at the source until view-builder had it from Kafka, in seconds, by topic; replays are left out"
    );
    metrics::describe_histogram!(
        READ_TO_VIEW,
        "from when view-builder had an event from Kafka until the view's commit, in seconds, by topic; replays are left out"
    );
    metrics::describe_histogram!(
        COMMIT_TO_VIEW,
        "from an event's commit at the source until the view's commit, in seconds, by topic; replays are left out"
    );
    metrics::describe_gauge!("view_partitions_assigned", "partitions that this process holds");
    metrics::describe_gauge!(
        "view_partitions_paused",
        "partitions that this process holds and does not read, by reason"
    );
    metrics::describe_gauge!(
        "view_partitions_waiting",
        "partitions that this process holds and whose events wait in Kafka, since Kafka does not give them now, by reason"
    );
    metrics::describe_gauge!(
        "view_partition_notices",
        "partitions of this process of which an operator has to know something, by what it is"
    );
    metrics::describe_counter!(
        "view_dead_letters_total",
        "events found that cannot be applied, by topic; a replay counts them again"
    );
    metrics::describe_gauge!(
        "view_dead_letters",
        "events that wait in view_dead_letters, parked ones included; 100,000 stand for as many or more"
    );
    metrics::describe_counter!(
        "view_fenced_total",
        "how many times this process gave up what it was doing because another builder owns a partition"
    );
    metrics::describe_counter!(
        "view_batch_failures_total",
        "transactions of batches that failed, by SQLSTATE (connection: lost); most are tried again"
    );
    metrics::describe_gauge!(
        "view_batch_stuck",
        "1 while a batch that failed again and again is not applied, else 0"
    );
    metrics::describe_gauge!("view_paused", "1 while the view is paused, by view");
    metrics::describe_counter!(
        "view_conflicts_total",
        "transactions tried again after a deadlock or a serialization failure"
    );
}

/// 0 where the source's clock is ahead of this machine's.
#[expect(clippy::cast_precision_loss, reason = "exact up to 285 years")]
pub(crate) fn seconds(from_us: i64, to_us: i64) -> f64 {
    (to_us - from_us).max(0) as f64 / 1e6
}

pub fn conflict() {
    counter!("view_conflicts_total").increment(1);
}

/// A batch's transaction, or a part's of one, has failed with this SQLSTATE.
pub fn failed(state: &str) {
    counter!("view_batch_failures_total", "sqlstate" => state.to_owned()).increment(1);
}

/// Whether a batch fails again and again.
pub fn stuck(is_stuck: bool) {
    gauge!("view_batch_stuck").set(if is_stuck { 1.0 } else { 0.0 });
}

/// Whether the view is paused.
pub fn paused(view: &str, is_paused: bool) {
    gauge!("view_paused", "view" => view.to_owned()).set(if is_paused { 1.0 } else { 0.0 });
}

pub fn fenced() {
    counter!("view_fenced_total").increment(1);
}

pub fn dead_letter(topic: &str) {
    counter!("view_dead_letters_total", "topic" => topic.to_owned()).increment(1);
    Trouble::Event.note();
}

pub fn letters(count: i64) {
    #[expect(clippy::cast_precision_loss, reason = "a table has fewer than 2^52 rows")]
    gauge!("view_dead_letters").set(count as f64);
}

pub fn partitions(assigned: usize) {
    #[expect(clippy::cast_precision_loss, reason = "a process holds fewer than 2^52 partitions")]
    gauge!("view_partitions_assigned").set(assigned as f64);
}
