//! A relay, by its admin port.

use std::collections::BTreeMap;

use super::admin_port::AdminAnswer;
use super::exposition::sum;
use super::histogram::{Histogram, Latency};

/// What a relay says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct RelayFacts {
    pub is_ready: bool,
    /// Why it is not ready, by part.
    pub reasons: BTreeMap<String, String>,
    /// What somebody has to look at, by part.
    pub warnings: BTreeMap<String, String>,
    /// It has the slot and streams.
    pub is_leader: bool,
    pub is_paused: bool,
    /// Records that it has published since it began.
    pub published: f64,
    /// Records published each second since the last look.
    pub publish_rate: Option<f64>,
    /// Age of the oldest row that is not published. `None`: this relay does not tell.
    pub oldest_unpublished_seconds: Option<f64>,
    /// WAL that it has read and not confirmed.
    pub unconfirmed_bytes: f64,
    pub parked_rows: f64,
    /// Why it has stopped for good.
    pub stopped_exit_code: Option<f64>,
    /// From the commit until a reader sees the record, in the last minutes.
    pub latency: Option<Latency>,
}

impl RelayFacts {
    pub(super) fn read(answer: &AdminAnswer) -> (Self, Histogram) {
        let samples = answer.samples();
        let value = |name| sum(&samples, name);
        let facts = Self {
            is_ready: answer.readiness.ready,
            reasons: answer.readiness.reasons.clone(),
            warnings: answer.readiness.warnings.clone(),
            is_leader: value("relay_leader") == Some(1.0),
            is_paused: value("relay_paused") == Some(1.0),
            published: value("relay_published_records_total").unwrap_or_default(),
            publish_rate: None,
            oldest_unpublished_seconds: value("relay_oldest_unpublished_seconds"),
            unconfirmed_bytes: value("relay_unconfirmed_bytes").unwrap_or_default(),
            parked_rows: value("relay_parked_rows").unwrap_or_default(),
            stopped_exit_code: value("relay_stopped_exit_code"),
            latency: None,
        };
        (facts, Histogram::read(&samples, "relay_commit_to_kafka_seconds"))
    }
}
