//! The result of a storm.

use std::fmt;
use std::time::Duration;

use super::Options;
use super::schedule::Part;
use crate::ledger::Ledger;

/// One kill, and how long it took until newer rows came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovery {
    pub part: Part,
    /// From the kill until a read_committed consumer saw a row that was written after it. `None`: it saw none.
    pub took: Option<Duration>,
}

/// The storm's result.
#[derive(Debug)]
pub struct Outcome {
    pub options: Options,
    /// The time from the first write to the comparison.
    pub elapsed: Duration,
    pub transactions: u64,
    /// How many rows the clients were told are committed.
    pub committed: usize,
    /// How many rows were rolled back or refused, or never sent for commit.
    pub failed: usize,
    /// How many rows had a COMMIT during which the connection broke.
    pub unknown: usize,
    /// Rows that differ from what their client was told.
    pub broken_answers: Vec<String>,
    pub ledger: Ledger,
    /// Records that a read_uncommitted consumer sees, and a read_committed consumer does not.
    pub aborted_copies: usize,
    pub recoveries: Vec<Recovery>,
    /// How often relays were started again.
    pub restarts: u64,
    /// The time until every row was published. It begins when the writers and the operators have ended, after the last kill.
    pub drained_in: Duration,
    /// Rows whose only record is a retry of a parked row.
    pub parked: usize,
    /// How often an operator published parked rows again.
    pub retries: u64,
    /// How many passwords were replaced.
    pub rotations: u64,
    /// A relay that stopped for good, rows that were not all published in time, or a panic.
    pub trouble: Vec<String>,
    /// The versions of the servers.
    pub servers: String,
}

/// What the result means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything is there once, in order, and every part was killed.
    Exact,
    /// The relay broke its promise.
    Broken,
    /// Nothing was broken, but some part was never killed, or nothing was parked or replaced.
    Inconclusive,
}

impl Outcome {
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        if !self.ledger.is_exact() || !self.trouble.is_empty() || !self.broken_answers.is_empty() {
            return Verdict::Broken;
        }
        let parts = &self.options.parts;
        let all_killed = !parts.is_empty() && parts.iter().all(|part| self.kill_count(Some(*part)) > 0);
        let all_happened =
            all_killed && (!self.options.parking || self.parked > 0) && (!self.options.rotation || self.rotations > 0);
        if all_happened && self.ledger.rows > 0 {
            Verdict::Exact
        } else {
            Verdict::Inconclusive
        }
    }

    fn kill_count(&self, part: Option<Part>) -> usize {
        let kills = self.recoveries.iter();
        kills.filter(|kill| part.is_none_or(|part| part == kill.part)).count()
    }

    /// How long it took to recover from the kills of one part, or of all parts, in ascending order.
    fn recovery_times(&self, part: Option<Part>) -> Vec<Duration> {
        let kills = self.recoveries.iter();
        let mut times: Vec<Duration> = kills
            .filter(|kill| part.is_none_or(|part| part == kill.part))
            .filter_map(|kill| kill.took)
            .collect();
        times.sort_unstable();
        times
    }
}

/// The smallest of the ascending `times` that is not below `percent` percent of them, as text.
fn percentile(times: &[Duration], percent: usize) -> String {
    let index = (times.len() * percent).div_ceil(100).clamp(1, times.len().max(1)) - 1;
    times
        .get(index)
        .map_or("-".to_owned(), |time| format!("{:.2} s", time.as_secs_f64()))
}

/// Writes `1234567` as `1,234,567`.
fn with_thousands_separators(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { options, ledger, .. } = self;
        let changes = self.committed + self.failed + self.unknown;
        let seconds = self.elapsed.as_secs_f64();
        let lines = [
            ("seed", options.seed.to_string()),
            ("servers", self.servers.clone()),
            (
                "changes",
                format!(
                    "{} rows in {} transactions, {:.0} rows/s for {seconds:.0} s",
                    with_thousands_separators(changes),
                    with_thousands_separators(usize::try_from(self.transactions).unwrap_or(usize::MAX)),
                    changes as f64 / seconds.max(1.0)
                ),
            ),
            (
                "answers",
                format!(
                    "{} committed, {} not, {} unknown; not kept by the database: {}",
                    with_thousands_separators(self.committed),
                    with_thousands_separators(self.failed),
                    with_thousands_separators(self.unknown),
                    self.broken_answers.len()
                ),
            ),
            ("rows in outbox", with_thousands_separators(ledger.rows)),
            ("committed records", with_thousands_separators(ledger.records)),
            ("lost", with_thousands_separators(ledger.lost.len())),
            ("duplicate", with_thousands_separators(ledger.duplicates.len())),
            ("reordered", with_thousands_separators(ledger.reordered.len())),
            ("invented", with_thousands_separators(ledger.invented.len())),
            ("altered", with_thousands_separators(ledger.altered.len())),
            ("aborted copies hidden", with_thousands_separators(self.aborted_copies)),
            (
                "parked",
                format!(
                    "{} rows, published by {} retries",
                    with_thousands_separators(self.parked),
                    self.retries
                ),
            ),
            ("passwords replaced", self.rotations.to_string()),
            (
                "relay restarts",
                format!(
                    "{}{}",
                    self.restarts,
                    if options.standby { ", of two relays" } else { "" }
                ),
            ),
            (
                "drained after the last kill",
                format!("{:.1} s", self.drained_in.as_secs_f64()),
            ),
        ];
        for (name, value) in lines {
            writeln!(f, "{name:<28} {value}")?;
        }
        writeln!(
            f,
            "\n{:<10} {:>6} {:>14} {:>9} {:>9}",
            "killed", "times", "recovery p50", "p99", "max"
        )?;
        let parts = options.parts.iter().map(|part| (part.name(), Some(*part)));
        for (name, part) in parts.chain([("all", None)]) {
            let times = self.recovery_times(part);
            let (p50, p99, max) = (percentile(&times, 50), percentile(&times, 99), percentile(&times, 100));
            writeln!(f, "{name:<10} {:>6} {p50:>14} {p99:>9} {max:>9}", self.kill_count(part))?;
        }
        if !self.ledger.is_exact() {
            writeln!(f, "\n{ledger}")?;
        }
        for trouble in &self.trouble {
            writeln!(f, "\ntrouble: {trouble}")?;
        }
        writeln!(
            f,
            "\n{}",
            match self.verdict() {
                Verdict::Exact => "exactly once",
                Verdict::Broken => "BROKEN",
                Verdict::Inconclusive => "inconclusive: something that was asked for never happened",
            }
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{percentile, with_thousands_separators};

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let times: Vec<Duration> = (1..=200).map(Duration::from_secs).collect();
        assert_eq!(percentile(&times, 50), "100.00 s");
        assert_eq!(percentile(&times, 99), "198.00 s");
        assert_eq!(percentile(&times, 100), "200.00 s");
        assert_eq!(percentile(&times[..1], 50), "1.00 s");
        assert_eq!(percentile(&[], 99), "-");
    }

    #[test]
    fn digits_of_large_numbers_are_in_groups_of_three() {
        assert_eq!(
            [7, 1_000, 1_234_567].map(with_thousands_separators),
            ["7", "1,000", "1,234,567"]
        );
    }
}
