//! Reads a program's `/metrics`, in Prometheus' text format.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use stack::Program;

/// One answer of `/metrics`.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    samples: Vec<Sample>,
    /// The type of each metric by name: `counter`, `gauge` or `histogram`.
    pub types: BTreeMap<String, String>,
    /// The help text of each metric, by name.
    pub helps: BTreeMap<String, String>,
}

/// One line of the answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// For a line of a histogram, the name ends with `_bucket`, `_sum` or `_count`.
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

impl Metrics {
    /// Asks the program.
    ///
    /// # Errors
    /// It does not answer, or with something else.
    pub async fn of(program: &Program) -> anyhow::Result<Self> {
        let answer = reqwest::get(program.url("/metrics")).await?.error_for_status()?;
        Self::parse(&answer.text().await?)
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut metrics = Self::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let about = line.strip_prefix("# ").and_then(|about| about.split_once(' '));
            match about.and_then(|(what, rest)| Some((what, rest.split_once(' ')?))) {
                Some(("TYPE", (name, kind))) => {
                    let before = metrics.types.insert(name.to_owned(), kind.to_owned());
                    ensure!(before.is_none(), "{name} has two types");
                }
                Some(("HELP", (name, help))) => {
                    metrics.helps.insert(name.to_owned(), help.to_owned());
                }
                _ => metrics
                    .samples
                    .push(Sample::parse(line).with_context(|| format!("no sample: {line}"))?),
            }
        }
        Ok(metrics)
    }

    /// All series of all metrics.
    #[must_use]
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// All series of this metric.
    pub fn series(&self, name: &str) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |sample| sample.name == name)
    }

    /// The value of the only series with this name and this label. It is 0 if there is no such series yet.
    ///
    /// # Panics
    /// There are several.
    #[must_use]
    pub fn value(&self, name: &str, label: Option<(&str, &str)>) -> f64 {
        let is_wanted = |sample: &&Sample| {
            label.is_none_or(|(label, value)| sample.labels.get(label).is_some_and(|found| found == value))
        };
        let found: Vec<&Sample> = self.series(name).filter(is_wanted).collect();
        assert!(found.len() <= 1, "{name} with {label:?} has several series: {found:?}");
        found.first().map_or(0.0, |sample| sample.value)
    }

    /// The names of the metric's labels, without the `le` of a bucket.
    #[must_use]
    pub fn labels(&self, name: &str) -> Vec<&str> {
        let is_of = |sample: &&Sample| {
            let rest = sample.name.strip_prefix(name);
            rest.is_some_and(|rest| ["", "_bucket", "_sum", "_count"].contains(&rest))
        };
        let samples = self.samples.iter().filter(is_of);
        let mut labels: Vec<&str> = samples
            .flat_map(|sample| sample.labels.keys())
            .map(String::as_str)
            .collect();
        labels.sort_unstable();
        labels.dedup();
        labels.retain(|label| *label != "le");
        labels
    }
}

impl Sample {
    fn parse(line: &str) -> Option<Self> {
        let (series, value) = line.rsplit_once(' ')?;
        let (name, labels) = match series.split_once('{') {
            Some((name, labels)) => (name, labels.strip_suffix('}')?),
            None => (series, ""),
        };
        Some(Self {
            name: name.to_owned(),
            labels: parse_labels(labels)?,
            value: value.parse().ok()?,
        })
    }
}

/// Parses `a="b",c="d"`. No value here contains a quotation mark.
fn parse_labels(text: &str) -> Option<BTreeMap<String, String>> {
    let (mut labels, mut rest) = (BTreeMap::new(), text);
    while !rest.is_empty() {
        let (name, after) = rest.split_once("=\"")?;
        let (value, after) = after.split_once('"')?;
        labels.insert(name.to_owned(), value.to_owned());
        rest = after.strip_prefix(',').unwrap_or(after);
    }
    Some(labels)
}

#[cfg(test)]
mod tests {
    use super::Metrics;

    #[test]
    fn an_answer_is_read() {
        let metrics = Metrics::parse(
            "# HELP a_seconds how long it takes\n# TYPE a_seconds histogram\n\
             a_seconds_bucket{route=\"/x/{id}\",le=\"+Inf\"} 2\n\na_seconds_count{route=\"/x/{id}\"} 2\nplain NaN\n",
        )
        .expect("metrics");
        assert_eq!(metrics.types["a_seconds"], "histogram");
        assert_eq!(metrics.helps["a_seconds"], "how long it takes");
        assert!((metrics.value("a_seconds_count", Some(("route", "/x/{id}"))) - 2.0).abs() < 1e-9);
        assert!(metrics.value("a_seconds_count", Some(("route", "/y"))).abs() < 1e-9);
        assert!(metrics.value("plain", None).is_nan());
        assert_eq!(metrics.labels("a_seconds"), ["route"]);
    }
}
