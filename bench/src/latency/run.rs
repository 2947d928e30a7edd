//! What was measured at one rate on one way, and how it is reported.

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::parts_in_use::PartsInUse;
use crate::statistics::{quantile_ms, thousands};

pub(super) const HEADINGS: [&str; 14] = [
    "from commit to",
    "wanted/s",
    "made/s",
    "p50 ms",
    "p99 ms",
    "max ms",
    "cores: relay",
    "user-api",
    "view-builder",
    "PostgreSQL",
    "Kafka",
    "load",
    "RSS MB: relay",
    "view-builder",
];

/// One rate on one way.
pub(super) struct Run {
    /// "Kafka" or "view".
    pub(super) way: &'static str,
    /// Changes per second that were asked for.
    pub(super) rate: u32,
    /// Changes per second that were made.
    pub(super) achieved_rate: f64,
    pub(super) latencies_us: Histogram<u64>,
    pub(super) parts: PartsInUse,
}

impl Run {
    pub(super) fn table_row(&self) -> Vec<String> {
        let tenths = |value: f64| format!("{value:.1}");
        let mut cells = vec![
            self.way.to_owned(),
            thousands(f64::from(self.rate)),
            thousands(self.achieved_rate),
            tenths(quantile_ms(&self.latencies_us, 0.5)),
            tenths(quantile_ms(&self.latencies_us, 0.99)),
            tenths(self.latencies_us.max() as f64 / 1000.0),
        ];
        cells.extend(self.parts.cores.iter().map(|(_, cores)| format!("{cores:.2}")));
        cells.extend([self.parts.relay_memory_mb, self.parts.view_builder_memory_mb].map(tenths));
        cells
    }

    pub(super) fn json(&self) -> Value {
        let cores = self.parts.cores.iter();
        let cores = cores.map(|(part, cores)| ((*part).to_owned(), json!(cores)));
        json!({
            "from_commit_to": self.way,
            "rate": self.rate,
            "achieved_rate": self.achieved_rate,
            "changes": self.latencies_us.len(),
            "p50_ms": quantile_ms(&self.latencies_us, 0.5),
            "p99_ms": quantile_ms(&self.latencies_us, 0.99),
            "max_ms": self.latencies_us.max() as f64 / 1000.0,
            "cores": Value::Object(cores.collect()),
            "relay_memory_mb": self.parts.relay_memory_mb,
            "view_builder_memory_mb": self.parts.view_builder_memory_mb,
        })
    }
}
