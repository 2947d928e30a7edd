//! The runs of both programs on one backlog, and how they are reported.

use serde_json::{Value, json};

use crate::backlog::Backlog;
use crate::report::Report;
use crate::statistics::{median, thousands};

pub(super) const HEADINGS: [&str; 10] = [
    "backlog",
    "program",
    "rows/s",
    "ratio",
    "CPU us/row",
    "peak RSS MB",
    "first record s",
    "rows/transaction",
    "PostgreSQL CPU s",
    "Kafka CPU s",
];

/// All runs of both programs on one backlog. The programs took turns, pg_recvlogical first.
pub(super) struct Series {
    pub(super) backlog: Backlog,
    pub(super) pg_recvlogical: Vec<Run>,
    pub(super) relay: Vec<Run>,
}

/// One run of one of the two programs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) seconds: f64,
    /// CPU time of all processes of PostgreSQL during the run.
    pub(super) postgres_cpu_seconds: f64,
    /// None: it was a run of pg_recvlogical.
    pub(super) relay: Option<RelayRun>,
}

/// What is measured of the relay alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct RelayRun {
    /// From the process's start until the first record was counted.
    pub(super) first_record_seconds: f64,
    /// User and system time of the process, its start included.
    pub(super) cpu_seconds: f64,
    pub(super) peak_memory_mb: f64,
    pub(super) kafka_cpu_seconds: f64,
    /// Rows of a Kafka transaction, on average.
    pub(super) rows_per_transaction: f64,
}

impl Series {
    pub(super) fn write_into(&self, report: &mut Report) {
        let backlog = &self.backlog;
        for (pg_recvlogical, relay) in self.pg_recvlogical.iter().zip(&self.relay) {
            report.runs.push(pg_recvlogical.json(backlog));
            report.runs.push(relay.json(backlog));
        }
        for row in self.table_rows() {
            report.table.add_row(row);
        }
        report.notes.push(format!(
            "{}: payloads of {:.0} bytes; after each run every outbox id was in the topic exactly once.",
            backlog.shape.describe(backlog.rows),
            backlog.payload_bytes
        ));
    }

    /// The medians of both programs.
    fn table_rows(&self) -> [Vec<String>; 2] {
        let backlog = &self.backlog;
        let median_of = |runs: &[Run], value: &dyn Fn(&Run) -> f64| median(&runs.iter().map(value).collect::<Vec<_>>());
        let relay_runs: Vec<RelayRun> = self.relay.iter().filter_map(|run| run.relay).collect();
        let relay_median = |value: &dyn Fn(&RelayRun) -> f64| median(&relay_runs.iter().map(value).collect::<Vec<_>>());
        let rate = |run: &Run| run.rows_per_second(backlog);
        let (pg_recvlogical_rate, relay_rate) = (median_of(&self.pg_recvlogical, &rate), median_of(&self.relay, &rate));
        let none = || "-".to_owned();
        let pg_recvlogical = vec![
            backlog.shape.describe(backlog.rows),
            "pg_recvlogical".to_owned(),
            thousands(pg_recvlogical_rate),
            "1".to_owned(),
            none(),
            none(),
            none(),
            none(),
            format!(
                "{:.2}",
                median_of(&self.pg_recvlogical, &|run| run.postgres_cpu_seconds)
            ),
            none(),
        ];
        let relay = vec![
            String::new(),
            "outbox-relay".to_owned(),
            thousands(relay_rate),
            format!("{:.2}", relay_rate / pg_recvlogical_rate),
            format!(
                "{:.2}",
                relay_median(&|run| run.cpu_seconds * 1e6 / backlog.rows as f64)
            ),
            format!("{:.1}", relay_median(&|run| run.peak_memory_mb)),
            format!("{:.2}", relay_median(&|run| run.first_record_seconds)),
            thousands(relay_median(&|run| run.rows_per_transaction)),
            format!("{:.2}", median_of(&self.relay, &|run| run.postgres_cpu_seconds)),
            format!("{:.2}", relay_median(&|run| run.kafka_cpu_seconds)),
        ];
        [pg_recvlogical, relay]
    }
}

impl Run {
    fn rows_per_second(&self, backlog: &Backlog) -> f64 {
        backlog.rows as f64 / self.seconds
    }

    fn program(&self) -> &'static str {
        match self.relay {
            Some(_) => "outbox-relay",
            None => "pg_recvlogical",
        }
    }

    /// Says on standard error what the run has measured.
    pub(super) fn log(&self, number: u32, backlog: &Backlog) {
        let rate = thousands(self.rows_per_second(backlog));
        let of_relay = self.relay.map_or_else(String::new, |relay| {
            format!(", {:.2} s of CPU, {:.1} MB", relay.cpu_seconds, relay.peak_memory_mb)
        });
        let (program, seconds) = (self.program(), self.seconds);
        tracing::info!("  run {number}: {program:14} {seconds:.2} s, {rate} rows/s{of_relay}");
    }

    fn json(&self, backlog: &Backlog) -> Value {
        json!({
            "backlog": backlog.shape.describe(backlog.rows),
            "program": self.program(),
            "rows": backlog.rows,
            "seconds": self.seconds,
            "rows_per_second": self.rows_per_second(backlog),
            "postgres_cpu_seconds": self.postgres_cpu_seconds,
            "relay_cpu_seconds": self.relay.map(|relay| relay.cpu_seconds),
            "relay_peak_memory_mb": self.relay.map(|relay| relay.peak_memory_mb),
            "relay_first_record_seconds": self.relay.map(|relay| relay.first_record_seconds),
            "rows_per_kafka_transaction": self.relay.map(|relay| relay.rows_per_transaction),
            "kafka_cpu_seconds": self.relay.map(|relay| relay.kafka_cpu_seconds),
        })
    }
}
