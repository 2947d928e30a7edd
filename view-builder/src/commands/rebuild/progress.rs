//! How far a rebuild is, for people: a bar on a terminal, a line every few seconds elsewhere.

use std::cell::Cell;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

/// How often a line says how far it is, where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// One rebuild's progress, in events.
pub(super) struct Progress {
    bar: ProgressBar,
    /// When the last line was written.
    line_at: Cell<Instant>,
}

impl Progress {
    pub(super) fn new(view: &str) -> Self {
        let style = ProgressStyle::with_template(
            "{prefix} {wide_bar} {human_pos} of {human_len} events, {per_sec}, {eta_precise} left",
        );
        // The template is a constant; a wrong one falls back to the plain bar.
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        Self {
            bar: ProgressBar::new(0).with_style(style).with_prefix(view.to_owned()),
            line_at: Cell::new(Instant::now()),
        }
    }

    pub(super) fn set_total(&self, events: u64) {
        self.bar.set_length(events);
        self.bar.reset();
    }

    pub(super) fn show_left(&self, events: u64) {
        // The bar always has a length; it grows where events have come since.
        let all = self.bar.length().unwrap_or(0).max(events);
        self.bar.set_length(all);
        self.bar.set_position(all - events);
        if !std::io::stderr().is_terminal() && self.line_at.get().elapsed() > LINE_INTERVAL {
            self.line_at.set(Instant::now());
            let (done, eta) = (all - events, HumanDuration(self.bar.eta()).to_string());
            tracing::info!(done, of = all, eta, "filling the new generation");
        }
    }

    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
