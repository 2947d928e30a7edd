//! The figures of the last minutes, for the small charts.

use std::collections::{BTreeMap, VecDeque};

/// So many values are kept: 15 minutes.
const KEPT: usize = 180;

/// Series by name, such as `lag/user-events`. All have the same length: what was not known is a gap.
#[derive(Clone, Debug, Default)]
pub struct Trends {
    series: BTreeMap<String, VecDeque<Option<f64>>>,
    length: usize,
}

impl Trends {
    /// Adds the values of one round.
    pub fn add(&mut self, values: impl IntoIterator<Item = (String, Option<f64>)>) {
        let length = self.length;
        for (name, value) in values {
            let series = self
                .series
                .entry(name)
                .or_insert_with(|| std::iter::repeat_n(None, length).collect());
            if series.len() == length {
                series.push_back(value);
            }
        }
        for series in self.series.values_mut() {
            if series.len() == length {
                series.push_back(None);
            }
            if series.len() > KEPT {
                series.pop_front();
            }
        }
        self.length = (length + 1).min(KEPT);
    }

    /// The values of a series, the oldest first.
    #[must_use]
    pub fn of(&self, name: &str) -> Vec<Option<f64>> {
        self.series.get(name).into_iter().flatten().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{KEPT, Trends};

    #[test]
    fn what_was_not_known_is_a_gap_and_old_values_go() {
        let mut trends = Trends::default();
        let one = |name: &str, value: f64| (name.to_owned(), Some(value));
        trends.add([one("a", 1.0)]);
        trends.add([one("b", 2.0)]);
        assert_eq!(trends.of("a"), [Some(1.0), None]);
        assert_eq!(trends.of("b"), [None, Some(2.0)]);
        assert_eq!(trends.of("c"), []);
        for _ in 0..KEPT {
            trends.add([one("a", 3.0)]);
        }
        assert_eq!(trends.of("a").len(), KEPT);
        assert_eq!(trends.of("b").len(), KEPT);
        assert!(trends.of("a").iter().all(|value| *value == Some(3.0)));
    }
}
