//! librdkafka's events.

use std::time::Duration;

use rdkafka::producer::BaseProducer;

use crate::kafka::client::Health;

/// Serves what librdkafka has to report, all of it: a poll serves one event.
pub(in crate::kafka) fn serve_events(producer: &BaseProducer<Health>, health: &Health) {
    let mut in_vain = 0;
    // Events that our context does not see count for nothing, so one poll in vain is not yet the end.
    while in_vain < 2 {
        let before = health.events_served();
        producer.poll(Duration::ZERO);
        in_vain = if health.events_served() == before {
            in_vain + 1
        } else {
            0
        };
    }
}
