//! How far a long command is, for people: a bar on a terminal, a log line every few seconds elsewhere.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};

const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// The progress of one command, in rows.
pub(crate) struct RowsProgress {
    bar: ProgressBar,
    what: &'static str,
    /// When the next log line is due; `None` on a terminal, which has the bar.
    line_due: Option<Instant>,
}

impl RowsProgress {
    /// `what` is being done to `total` rows.
    pub(crate) fn start(what: &'static str, total: u64) -> Self {
        // It draws nothing where standard error is no terminal.
        let target = ProgressDrawTarget::stderr();
        let line_due = (!std::io::stderr().is_terminal()).then(|| Instant::now() + LINE_INTERVAL);
        Self::drawn_on(target, line_due, what, total)
    }

    fn drawn_on(target: ProgressDrawTarget, line_due: Option<Instant>, what: &'static str, total: u64) -> Self {
        let style = ProgressStyle::with_template(
            "{prefix} {wide_bar} {human_pos} of {human_len} rows, {per_sec}, {eta_precise} left",
        );
        // The template is a constant; a wrong one falls back to the plain bar.
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(Some(total), target)
            .with_style(style)
            .with_prefix(what);
        Self { bar, what, line_due }
    }

    /// So many rows more are done.
    pub(crate) fn advance(&mut self, rows: u64) {
        self.bar.inc(rows);
        let now = Instant::now();
        if self.line_due.is_some_and(|due| now >= due) {
            self.line_due = Some(now + LINE_INTERVAL);
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

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};
    use std::time::Instant;

    use indicatif::{ProgressDrawTarget, TermLike};

    use super::RowsProgress;

    const COLUMNS: u16 = 120;

    /// A terminal that remembers the line that stands on it, and every one that stood there.
    #[derive(Clone, Debug, Default)]
    struct Screen(Arc<Mutex<Lines>>);

    #[derive(Debug, Default)]
    struct Lines {
        shown: String,
        past: Vec<String>,
    }

    impl Screen {
        fn shown(&self) -> String {
            self.0.lock().unwrap().shown.clone()
        }

        fn past(&self) -> String {
            self.0.lock().unwrap().past.join("\n")
        }
    }

    impl TermLike for Screen {
        fn width(&self) -> u16 {
            COLUMNS
        }
        fn move_cursor_up(&self, _lines: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _lines: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _columns: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _columns: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(text)
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.0.lock().unwrap().shown.push_str(text);
            Ok(())
        }
        fn clear_line(&self) -> io::Result<()> {
            let mut lines = self.0.lock().unwrap();
            let shown = std::mem::take(&mut lines.shown);
            lines.past.push(shown);
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    fn bar_on(screen: &Screen, total: u64) -> RowsProgress {
        let target = ProgressDrawTarget::term_like(Box::new(screen.clone()));
        RowsProgress::drawn_on(target, None, "publishing rows", total)
    }

    #[test]
    fn a_terminal_shows_what_is_done_of_how_much_how_fast_and_for_how_long_still_and_nothing_at_the_end() {
        let screen = Screen::default();
        let mut bar = bar_on(&screen, 50_000_000);
        bar.advance(12_500_000);
        let shown = screen.shown();
        assert!(shown.starts_with("publishing rows "), "{shown}");
        assert!(shown.contains(" 12,500,000 of 50,000,000 rows, "), "{shown}");
        assert!(shown.contains("/s, ") && shown.trim_end().ends_with(" left"), "{shown}");
        assert!(shown.chars().count() <= usize::from(COLUMNS), "{shown}");
        bar.advance(37_500_000);
        bar.finish();
        assert_eq!(screen.shown().trim(), "", "nothing of it stays: {}", screen.past());
    }

    #[test]
    fn where_there_is_no_terminal_a_line_is_due_every_few_seconds_and_no_bar_is_drawn() {
        let (screen, due) = (Screen::default(), Instant::now());
        let mut bar = bar_on(&screen, 10);
        bar.advance(1);
        assert_eq!(bar.line_due, None, "a terminal gets no lines");
        let mut lines = RowsProgress::drawn_on(ProgressDrawTarget::hidden(), Some(due), "publishing rows", 10);
        lines.advance(4);
        let next = lines.line_due.expect("lines go on");
        assert!(next >= due + super::LINE_INTERVAL, "the line that was due is written");
        lines.advance(6);
        assert_eq!(lines.line_due, Some(next), "no other one so soon");
        lines.finish();
    }
}
