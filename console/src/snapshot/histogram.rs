//! How long events took, out of the buckets of a histogram.

use std::collections::VecDeque;

use super::exposition::Sample;

/// How many values are not above each bound, since the program began.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram(Vec<(f64, f64)>);

/// A few quantiles, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency {
    /// Half of the values are not above this.
    pub p50: f64,
    pub p99: f64,
}

impl Histogram {
    /// The buckets of all series of this histogram together.
    #[must_use]
    pub fn read(samples: &[Sample<'_>], name: &str) -> Self {
        let bucket = format!("{name}_bucket");
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for sample in samples.iter().filter(|sample| sample.name == bucket) {
            let bound = sample.label("le").parse().unwrap_or(f64::INFINITY);
            match buckets.iter_mut().find(|(known, _)| *known == bound) {
                Some((_, count)) => *count += sample.value,
                None => buckets.push((bound, sample.value)),
            }
        }
        buckets.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        Self(buckets)
    }

    /// The quantiles of the values since `earlier`. `None`: there was none, or the program began anew.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Option<Latency> {
        let before = |bound: f64| {
            earlier
                .0
                .iter()
                .find(|(known, _)| *known == bound)
                .map_or(0.0, |(_, count)| *count)
        };
        let counts: Vec<(f64, f64)> = self
            .0
            .iter()
            .map(|(bound, count)| (*bound, count - before(*bound)))
            .collect();
        let all = counts.last()?.1;
        if all <= 0.0 || counts.iter().any(|(_, count)| *count < 0.0) {
            return None;
        }
        Some(Latency {
            p50: quantile(&counts, all * 0.5),
            p99: quantile(&counts, all * 0.99),
        })
    }
}

/// As Prometheus does it: the values of a bucket lie evenly between its bounds.
fn quantile(counts: &[(f64, f64)], rank: f64) -> f64 {
    let (mut lower, mut below) = (0.0, 0.0);
    for (bound, count) in counts {
        if *count >= rank {
            if bound.is_infinite() {
                return lower;
            }
            let share = if *count > below {
                (rank - below) / (count - below)
            } else {
                1.0
            };
            return lower + (bound - lower) * share;
        }
        (lower, below) = (*bound, *count);
    }
    lower
}

/// The histograms of the last minutes, for the quantiles of these minutes.
#[derive(Debug, Default)]
pub struct Recent(VecDeque<Histogram>);

/// So many are kept: five minutes.
const KEPT: usize = 60;

impl Recent {
    /// Adds the newest, and tells the quantiles since the oldest.
    pub fn add(&mut self, newest: Histogram) -> Option<Latency> {
        let latency = self.0.front().and_then(|oldest| newest.since(oldest));
        // A program that began anew counts from 0: what was kept says nothing any more.
        if self
            .0
            .back()
            .is_some_and(|last| last.0.last().map(|last| last.1) > newest.0.last().map(|last| last.1))
        {
            self.0.clear();
        }
        self.0.push_back(newest);
        if self.0.len() > KEPT {
            self.0.pop_front();
        }
        latency
    }
}

#[cfg(test)]
mod tests {
    use super::super::exposition::samples;
    use super::{Histogram, Recent};

    fn histogram(at_10ms: u32, at_100ms: u32, all: u32) -> Histogram {
        let text = format!(
            "h_bucket{{topic=\"a\",le=\"0.01\"}} {at_10ms}\nh_bucket{{topic=\"a\",le=\"0.1\"}} {at_100ms}\nh_bucket{{topic=\"a\",le=\"+Inf\"}} {all}\nh_bucket{{topic=\"b\",le=\"0.01\"}} 0\n"
        );
        Histogram::read(&samples(&text), "h")
    }

    #[test]
    fn quantiles_are_those_of_the_time_between() {
        let latency = histogram(1_090, 1_100, 1_100)
            .since(&histogram(1_000, 1_000, 1_000))
            .unwrap();
        assert!((latency.p50 - 0.005_55).abs() < 0.001, "{latency:?}");
        assert!(latency.p99 > 0.08 && latency.p99 < 0.1, "{latency:?}");
        assert_eq!(histogram(5, 5, 5).since(&histogram(5, 5, 5)), None);
    }

    #[test]
    fn a_program_that_began_anew_is_noticed() {
        let mut recent = Recent::default();
        assert_eq!(recent.add(histogram(10, 10, 10)), None);
        assert_eq!(recent.add(histogram(1, 1, 1)), None, "it counts from 0 again");
        assert!(recent.add(histogram(3, 3, 3)).is_some());
    }
}
