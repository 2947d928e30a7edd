//! A view-builder, by its admin port.

use std::collections::BTreeMap;

use super::admin_port::AdminAnswer;
use super::histogram::{Histogram, Latency};

/// What a builder says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct BuilderFacts {
    pub is_ready: bool,
    /// Why it is not ready, by part.
    pub reasons: BTreeMap<String, String>,
    /// What somebody has to look at, by part.
    pub warnings: BTreeMap<String, String>,
    /// Events that it has applied since it began, by topic.
    pub applied: BTreeMap<String, f64>,
    /// Events applied each second since the last look, by topic.
    pub rates: BTreeMap<String, f64>,
    /// Of each partition that it holds: events and seconds behind.
    pub lag: BTreeMap<(String, i32), (i64, f64)>,
    /// From the commit at the source until the view's commit, in the last minutes.
    pub latency: Option<Latency>,
}

impl BuilderFacts {
    pub(super) fn read(answer: &AdminAnswer) -> (Self, Histogram) {
        let samples = answer.samples();
        let mut applied: BTreeMap<String, f64> = BTreeMap::new();
        let mut lag: BTreeMap<(String, i32), (i64, f64)> = BTreeMap::new();
        for sample in &samples {
            let place = || {
                Some((
                    sample.label("topic").to_owned(),
                    sample.label("partition").parse().ok()?,
                ))
            };
            match sample.name {
                "view_events_applied_total" => {
                    *applied.entry(sample.label("topic").to_owned()).or_default() += sample.value;
                }
                "view_partition_lag_events" => {
                    if let Some(place) = place() {
                        lag.entry(place).or_default().0 = sample.value as i64;
                    }
                }
                "view_partition_lag_seconds" => {
                    if let Some(place) = place() {
                        lag.entry(place).or_default().1 = sample.value;
                    }
                }
                _ => {}
            }
        }
        let facts = Self {
            is_ready: answer.readiness.ready,
            reasons: answer.readiness.reasons.clone(),
            warnings: answer.readiness.warnings.clone(),
            applied,
            rates: BTreeMap::new(),
            lag,
            latency: None,
        };
        (facts, Histogram::read(&samples, "view_commit_to_view_seconds"))
    }
}
