//! How old events were when they were read and applied, as metrics.

use std::collections::HashMap;

use metrics::{Histogram, counter, histogram};
use service::clock::now_us;

use crate::contract::batch::Batch;
use crate::process::measure::{COMMIT_TO_READ, COMMIT_TO_VIEW, READ_TO_VIEW, seconds};

/// One topic's share of a batch.
struct Share {
    events: usize,
    commit_to_read: Histogram,
    read_to_view: Histogram,
    commit_to_view: Histogram,
}

impl Share {
    fn of(topic: &str) -> Self {
        let histogram = |name: &'static str| histogram!(name, "topic" => topic.to_owned());
        Self {
            events: 0,
            commit_to_read: histogram(COMMIT_TO_READ),
            read_to_view: histogram(READ_TO_VIEW),
            commit_to_view: histogram(COMMIT_TO_VIEW),
        }
    }
}

/// The batch's transaction has committed just now. A replay's events count as applied, but their age is not how long they took: the
/// histograms have each event once.
pub(super) fn applied(batch: &Batch) {
    let now = now_us();
    let mut topics: HashMap<&str, Share> = HashMap::new();
    for part in &batch.parts {
        let topic = &*part.place.topic;
        let share = topics.entry(topic).or_insert_with(|| Share::of(topic));
        share.events += part.events.len();
        for event in &part.events {
            // A replay's event has none.
            let Some(read_us) = event.read_us else { continue };
            share.commit_to_read.record(seconds(event.committed_us, read_us));
            share.read_to_view.record(seconds(read_us, now));
            share.commit_to_view.record(seconds(event.committed_us, now));
        }
    }
    for (topic, share) in topics {
        counter!("view_events_applied_total", "topic" => topic.to_owned()).increment(share.events as u64);
    }
    counter!("view_batches_total").increment(1);
    #[expect(clippy::cast_precision_loss, reason = "BATCH_ROWS bounds a batch")]
    histogram!("view_batch_events").record(batch.event_count() as f64);
}
