//! What `/metrics` prints: the metrics of the process's recorder, and gauges that can disappear again.

use std::fmt::{self, Write as _};
use std::time::Duration;

use anyhow::Context;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Upper bounds of latency histograms, in seconds.
const LATENCY_BUCKETS_S: [f64; 14] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0,
];
/// Upper bounds of histograms that count things.
const COUNT_BUCKETS: [f64; 12] = [
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0,
];
/// How often the values that histograms have recorded are added up.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Prints the metrics in Prometheus' text format.
#[derive(Clone)]
pub struct Exporter {
    recorder: PrometheusHandle,
    print_more: fn() -> String,
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exporter").finish_non_exhaustive()
    }
}

impl From<PrometheusHandle> for Exporter {
    fn from(recorder: PrometheusHandle) -> Self {
        Self {
            recorder,
            print_more: String::new,
        }
    }
}

impl Exporter {
    /// Adds what `print_more` returns, in the same format. This is for series that come and go. The recorder itself never forgets a series, and
    /// prints its last value for ever.
    #[must_use]
    pub fn with(self, print_more: fn() -> String) -> Self {
        Self { print_more, ..self }
    }

    pub(crate) fn render(&self) -> String {
        self.recorder.render() + &(self.print_more)()
    }
}

/// Installs the process's metrics recorder. Every metric whose name ends in `_seconds` is a histogram with `LATENCY_BUCKETS_S`, every
/// other histogram has `COUNT_BUCKETS`. They are histograms, since buckets of several processes can be added up and the quantiles of a summary
/// cannot.
///
/// # Errors
/// A recorder is installed already.
pub fn install() -> anyhow::Result<PrometheusHandle> {
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &LATENCY_BUCKETS_S)
        .and_then(|builder| builder.set_buckets(&COUNT_BUCKETS))
        .context("invalid histogram buckets")?
        .install_recorder()
        .context("cannot install the metrics recorder")?;
    // A histogram keeps each value in memory until it is added up. Without this thread that would only happen when somebody asks for /metrics.
    let recorder_to_keep_up = recorder.clone();
    std::thread::Builder::new()
        .name("metrics".to_owned())
        .spawn(move || {
            loop {
                std::thread::sleep(UPKEEP_INTERVAL);
                recorder_to_keep_up.run_upkeep();
            }
        })
        .context("cannot start the metrics' upkeep")?;
    Ok(recorder)
}

/// Prints a gauge with one series for each of `values`. A value comes with the text of its labels, such as `topic="a",partition="0"`, or none. Without
/// values the result is empty.
#[must_use]
pub fn gauge(name: &str, help: &str, values: impl Iterator<Item = (String, f64)>) -> String {
    let mut text = String::new();
    for (labels, value) in values {
        if text.is_empty() {
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n");
        }
        let labels = if labels.is_empty() {
            labels
        } else {
            format!("{{{labels}}}")
        };
        let _ = writeln!(text, "{name}{labels} {value}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Exporter, gauge, install};

    fn resident_bytes() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
    }

    /// One test, since a process has one recorder.
    #[test]
    fn histograms_have_buckets_and_their_values_need_no_reader_to_be_forgotten() {
        let exporter =
            Exporter::from(install().unwrap()).with(|| gauge("more", "more", [(String::new(), 1.5)].into_iter()));
        metrics::histogram!("a_seconds", "topic" => "a").record(0.003);
        metrics::histogram!("a_batch").record(7.0);
        let text = exporter.render();
        for line in [
            "# TYPE a_seconds histogram",
            r#"a_seconds_bucket{topic="a",le="0.002"} 0"#,
            r#"a_seconds_bucket{topic="a",le="0.005"} 1"#,
            r#"a_seconds_bucket{topic="a",le="+Inf"} 1"#,
            r#"a_seconds_count{topic="a"} 1"#,
            r#"a_batch_bucket{le="10"} 1"#,
            "more 1.5",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }

        // 16,000,000 values are 128 MB; no more than those of some seconds are kept at once.
        let histogram = metrics::histogram!("a_seconds", "topic" => "b");
        let before = resident_bytes();
        let start = Instant::now();
        for part in 1..=32 {
            for _ in 0..500_000 {
                histogram.record(0.5);
            }
            std::thread::sleep((Duration::from_millis(200) * part).saturating_sub(start.elapsed()));
        }
        let grown = resident_bytes().saturating_sub(before);
        assert!(grown < 80_000_000, "{grown} bytes");
    }

    #[test]
    fn a_gauge_without_series_is_not_there() {
        assert_eq!(gauge("lag", "how far", std::iter::empty()), "");
        assert_eq!(
            gauge("lag", "how far", [(r#"a="1""#.to_owned(), 0.25)].into_iter()),
            "# HELP lag how far\n# TYPE lag gauge\nlag{a=\"1\"} 0.25\n"
        );
    }
}
