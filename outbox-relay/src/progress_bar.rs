//! How far a long command is, for people: a bar on a terminal, a log line every few seconds elsewhere.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// The progress of one command, in rows.
pub(crate) struct RowsProgress {
    bar: ProgressBar,
    what: &'static str,
    line_due: Instant,
}

impl RowsProgress {
    /// `what` is being done to `total` rows.
    pub(crate) fn start(what: &'static str, total: u64) -> Self {
        let style = ProgressStyle::with_template(
            "{prefix} {wide_bar} {human_pos} of {human_len} rows, {per_sec}, {eta_precise} left",
        );
        // The template is a constant; a wrong one falls back to the plain bar.
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        Self {
            bar: ProgressBar::new(total).with_style(style).with_prefix(what),
            what,
            line_due: Instant::now() + LINE_INTERVAL,
        }
    }

    /// So many rows more are done.
    pub(crate) fn advance(&mut self, rows: u64) {
        self.bar.inc(rows);
        if !std::io::stderr().is_terminal() && Instant::now() >= self.line_due {
            self.line_due = Instant::now() + LINE_INTERVAL;
            tracing::info!(
                rows.done = self.bar.position(),
                rows.total = self.bar.length(),
                time_left = HumanDuration(self.bar.eta()).to_string(),
                "{}",
                self.what
            );
        }
    }

    /// Takes the bar from the terminal.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
