//! What all rounds come to: the ratio, the table and the notes.

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::Kind;
use super::round::Round;
use crate::arguments::DeadLetters;
use crate::report::Report;
use crate::statistics::{latency_histogram, median, quantile_ms, thousands};

pub(super) const HEADINGS: [&str; 9] = [
    "poison events",
    "wanted/s",
    "made/s",
    "good events",
    "p50 ms",
    "p99 ms",
    "max ms",
    "ratio of p99",
    "dead letters",
];
/// The goal: the ratio of p99 with poison to p99 without is at most this.
const RATIO_MAX: f64 = 1.1;

/// The rounds, and the latencies of each kind of round.
pub(super) struct Outcome {
    /// In the order in which they ran.
    rounds: Vec<Round>,
    without_poison_us: Histogram<u64>,
    with_poison_us: Histogram<u64>,
    /// p99 with poison, divided by p99 without.
    ratio: f64,
}

impl Outcome {
    /// # Errors
    /// Never for histograms with the same bounds.
    pub(super) fn of(rounds: Vec<Round>) -> anyhow::Result<Self> {
        let (mut without_poison_us, mut with_poison_us) = (latency_histogram()?, latency_histogram()?);
        for round in &rounds {
            match round.kind {
                Kind::WithoutPoison => without_poison_us.add(&round.latencies_us)?,
                Kind::WithPoison => with_poison_us.add(&round.latencies_us)?,
            }
        }
        Ok(Self {
            ratio: quantile_ms(&with_poison_us, 0.99) / quantile_ms(&without_poison_us, 0.99),
            rounds,
            without_poison_us,
            with_poison_us,
        })
    }

    /// Writes the rounds, the table and the notes into the report.
    pub(super) fn into_report(self, mut report: Report, options: &DeadLetters) -> Report {
        report.runs = self.rounds.iter().map(Round::json).collect();
        let ratio = format!("{:.2}", self.ratio);
        report
            .table
            .add_row(self.table_row(Kind::WithoutPoison, "none".to_owned(), String::new(), options));
        report
            .table
            .add_row(self.table_row(Kind::WithPoison, format!("{} %", options.poison), ratio, options));
        report.notes = self.notes(options);
        report
    }

    fn table_row(&self, kind: Kind, poison_events: String, ratio: String, options: &DeadLetters) -> Vec<String> {
        let latencies_us = match kind {
            Kind::WithoutPoison => &self.without_poison_us,
            Kind::WithPoison => &self.with_poison_us,
        };
        vec![
            poison_events,
            thousands(f64::from(options.rate)),
            thousands(self.median_of(kind, |round| round.achieved_rate)),
            thousands(latencies_us.len() as f64),
            format!("{:.1}", quantile_ms(latencies_us, 0.5)),
            format!("{:.1}", quantile_ms(latencies_us, 0.99)),
            format!("{:.1}", latencies_us.max() as f64 / 1e3),
            ratio,
            thousands(self.median_of(kind, |round| round.dead_letters as f64)),
        ]
    }

    fn notes(&self, options: &DeadLetters) -> Vec<String> {
        let events = self.without_poison_us.len() + self.with_poison_us.len();
        let merged_events: u64 = self.rounds.iter().map(|round| round.merged_events).sum();
        let median_p99 = |kind| self.median_of(kind, |round| quantile_ms(&round.latencies_us, 0.99));
        let mut notes = vec![
            format!(
                "All good events of {} rounds of each, in pairs whose first takes turns, of {} keys each. From the commit record at the \
                 source to the commit record of the view's transaction; both rounds of a pair measure the keys that get no poison. \
                 PostgreSQL has files of its log to use again, as one that has been running for a while.",
                options.runs,
                thousands(f64::from(options.keys))
            ),
            format!(
                "{merged_events} of {events} events came into the view together with a later one of their key, and count until then."
            ),
            format!(
                "Median of the rounds' p99: {:.1} ms without, {:.1} ms with poison.",
                median_p99(Kind::WithoutPoison),
                median_p99(Kind::WithPoison)
            ),
        ];
        if self.ratio > RATIO_MAX {
            notes.push(format!("The ratio is above {RATIO_MAX}."));
        }
        notes
    }

    /// The median over the rounds of one kind.
    fn median_of(&self, kind: Kind, value: impl Fn(&Round) -> f64) -> f64 {
        let rounds = self.rounds.iter().filter(|round| round.kind == kind);
        median(&rounds.map(value).collect::<Vec<_>>())
    }
}

impl Round {
    fn json(&self) -> Value {
        json!({
            "has_poison": self.kind == Kind::WithPoison,
            "achieved_rate": self.achieved_rate,
            "good_events": self.latencies_us.len(),
            "merged": self.merged_events,
            "dead_letters": self.dead_letters,
            "p50_ms": quantile_ms(&self.latencies_us, 0.5),
            "p99_ms": quantile_ms(&self.latencies_us, 0.99),
            "max_ms": self.latencies_us.max() as f64 / 1000.0,
        })
    }
}
