//! How old the oldest row is that is not published, as far as this relay knows: the metric `relay_oldest_unpublished_seconds`.
//!
//! The stream tells when each transaction was committed, so Postgres is not asked. The age is computed when somebody scrapes, so it grows also while
//! the loop is busy, and while the relay waits for Kafka. A relay that does not stream does not know which rows have come since. So it exports the age
//! of the row that it knew last, and nothing if everything was published by then. A standby exports nothing: another relay publishes.

use std::sync::atomic::{AtomicI64, Ordering};

use service::clock::now_us;
use service::exporter;

/// Nobody knows: the relay does not stream.
const UNKNOWN: i64 = -1;
/// Everything that was read is published.
const NOTHING: i64 = 0;
/// Commit time of the oldest row that is not published, microseconds since 1970, or one of the two values above. One for the process, like the recorder
/// of its metrics.
static OLDEST_US: AtomicI64 = AtomicI64::new(UNKNOWN);

/// Notes when the oldest row was committed that is read and not published, in microseconds since 1970. `None`: there is no such row.
pub(super) fn note(oldest_us: Option<i64>) {
    OLDEST_US.store(oldest_us.map_or(NOTHING, |oldest| oldest.max(1)), Ordering::Relaxed);
}

/// The stream has ended. A row that was not published by then is known to be unpublished until the next stream tells more.
pub(super) fn forget_unless_unpublished() {
    let _kept = OLDEST_US.compare_exchange(NOTHING, UNKNOWN, Ordering::Relaxed, Ordering::Relaxed);
}

/// Another relay has the slot, and may publish the row that this one knew last.
pub(super) fn forget() {
    OLDEST_US.store(UNKNOWN, Ordering::Relaxed);
}

/// The gauge in Prometheus' text format. Empty if nobody knows.
#[must_use]
pub fn render() -> String {
    let age_seconds = match OLDEST_US.load(Ordering::Relaxed) {
        UNKNOWN => None,
        NOTHING => Some(0.0),
        oldest_us => Some(seconds_since(oldest_us)),
    };
    exporter::gauge(
        "relay_oldest_unpublished_seconds",
        "Age of the oldest row that this relay has read and not published, from its commit in Postgres, in seconds; 0 where there is none.",
        age_seconds.map(|age| (String::new(), age)).into_iter(),
    )
}

/// Seconds from a time stamp (microseconds since 1970) until now; 0 where the clocks disagree.
pub(super) fn seconds_since(timestamp_us: i64) -> f64 {
    (now_us() - timestamp_us).max(0) as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use service::clock;

    use super::{NOTHING, OLDEST_US, forget, forget_unless_unpublished, render};

    /// One test, since there is one gauge.
    #[test]
    fn the_age_grows_until_the_row_is_published_and_is_not_told_where_nobody_knows() {
        assert_eq!(render(), "", "no stream yet");
        OLDEST_US.store(clock::now_us() - 5_000_000, Ordering::Relaxed);
        forget_unless_unpublished();
        let text = render();
        let age: f64 = text.rsplit(' ').next().unwrap().trim().parse().unwrap();
        assert!((5.0..60.0).contains(&age), "{text}");
        OLDEST_US.store(NOTHING, Ordering::Relaxed);
        assert!(
            render().ends_with("relay_oldest_unpublished_seconds 0\n"),
            "{}",
            render()
        );
        forget_unless_unpublished();
        assert_eq!(render(), "");
        OLDEST_US.store(clock::now_us() - 5_000_000, Ordering::Relaxed);
        forget();
        assert_eq!(render(), "", "another relay may have published the row");
    }
}
