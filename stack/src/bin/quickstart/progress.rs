//! Shows how far a count is: by a bar on a terminal, otherwise by a plain line every few seconds.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanCount, ProgressBar, ProgressState, ProgressStyle};

const LINE_INTERVAL: Duration = Duration::from_secs(5);
const TEMPLATE: &str = "  {prefix} [{bar:30}] {human_pos}/{human_len}  {rate}  {eta} left";

#[derive(Debug)]
pub(crate) struct Progress {
    what: &'static str,
    total: u64,
    start: Instant,
    bar: Option<ProgressBar>,
    last_line: Instant,
}

impl Progress {
    pub(crate) fn start(what: &'static str, total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
            let style = style.with_key("rate", |state: &ProgressState, line: &mut dyn std::fmt::Write| {
                // If the terminal cannot be written to, it shows no rate.
                let _ = write!(line, "{}/s", HumanCount(state.per_sec() as u64));
            });
            ProgressBar::new(total)
                .with_style(style.progress_chars("=> "))
                .with_prefix(what)
        });
        Self {
            what,
            total,
            start: Instant::now(),
            bar,
            last_line: Instant::now(),
        }
    }

    pub(crate) fn set(&mut self, done: u64) {
        match &self.bar {
            Some(bar) => bar.set_position(done),
            None if self.last_line.elapsed() >= LINE_INTERVAL => {
                self.last_line = Instant::now();
                tracing::info!("{}", line(self.what, done, self.total, self.start.elapsed()));
            }
            None => {}
        }
    }

    pub(crate) fn finish(&mut self, done: u64) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(done);
                bar.abandon();
            }
            None => tracing::info!("{}", line(self.what, done, self.total, self.start.elapsed())),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}

fn line(what: &str, done: u64, total: u64, elapsed: Duration) -> String {
    let rate = done as f64 / elapsed.as_secs_f64().max(0.001);
    let left = if done == 0 || done >= total {
        String::new()
    } else {
        format!(", {:.0} s left", (total - done) as f64 / rate)
    };
    format!(
        "  {what}: {} of {}, {}/s{left}",
        HumanCount(done),
        HumanCount(total),
        HumanCount(rate as u64)
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::line;

    #[test]
    fn a_plain_line_has_rate_and_time_left() {
        assert_eq!(
            line("users created", 5_000, 20_000, Duration::from_secs(10)),
            "  users created: 5,000 of 20,000, 500/s, 30 s left"
        );
        assert_eq!(
            line("users created", 20_000, 20_000, Duration::from_secs(10)),
            "  users created: 20,000 of 20,000, 2,000/s"
        );
    }
}
