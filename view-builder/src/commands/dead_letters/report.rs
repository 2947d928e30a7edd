//! The report of a command on dead letters: what it has done so far, as texts for the operator.

use std::fmt::Write as _;

use tokio_postgres::Error;

use crate::postgres::refusal;
use crate::process::failure::Failure;

/// So many lines are printed for letters, at most. Further letters are only counted.
const LINES_MAX: u64 = 1_000;

/// What has become of the letters so far.
#[derive(Debug, Default)]
pub(super) struct Report {
    lines: String,
    line_count: u64,
    applied: u64,
    discarded: u64,
    still_dead: u64,
    former: i64,
}

impl Report {
    pub(super) fn applied(&mut self, letter: &str) {
        self.applied += 1;
        self.add(format_args!("applied {letter}"));
    }

    pub(super) fn discarded(&mut self, letter: &str) {
        self.discarded += 1;
        self.add(format_args!("discarded {letter}"));
    }

    pub(super) fn gone(&mut self, letter: &str) {
        self.add(format_args!("gone meanwhile {letter}"));
    }

    pub(super) fn still_dead(&mut self, letter: &str, reason: &str) {
        self.still_dead += 1;
        self.add(format_args!("still dead {letter}: {reason}"));
    }

    /// It waits behind the letter with this id.
    pub(super) fn behind(&mut self, letter: &str, first: i64) {
        self.still_dead += 1;
        self.add(format_args!(
            "still waits {letter}: {first} of the same key stands before it"
        ));
    }

    /// So many letters of former topics wait, which a retry of all leaves alone.
    pub(super) fn former(&mut self, count: i64) {
        self.former = count;
    }

    fn add(&mut self, line: std::fmt::Arguments<'_>) {
        self.line_count += 1;
        if self.line_count <= LINES_MAX {
            let _ = writeln!(self.lines, "{line}");
        }
    }

    /// Returns what to print, and whether letters still wait. `ended`: how the command has ended.
    pub(super) fn finish(self, ended: Result<(), Failure>) -> Result<(String, bool), Failure> {
        match ended {
            Ok(()) => Ok((self.lines(), self.still_dead > 0)),
            Err(failure) => Err(self.interrupted(failure)),
        }
    }

    /// Does the same as [`Report::finish`], and adds the numbers of letters below their lines.
    pub(super) fn finish_with_numbers(self, ended: Result<(), Failure>) -> Result<(String, bool), Failure> {
        let numbers = if self.line_count == 0 {
            "no dead letters\n".to_owned()
        } else {
            format!("{} applied, {} still dead\n", self.applied, self.still_dead)
        };
        let former = self.former;
        let (mut said, left) = self.finish(ended)?;
        said += &numbers;
        if former > 0 {
            said += &format!(
                "{former} letters of topics that were made anew are left alone: retry or discard them by their ids, see view-builder dead-letters list\n"
            );
        }
        Ok((said, left))
    }

    /// A line for each letter.
    fn lines(&self) -> String {
        let more = if self.line_count > LINES_MAX { "...\n" } else { "" };
        format!("{}{more}", self.lines)
    }

    /// What the operator reads where the command has failed in the middle: what was done before stays done.
    fn interrupted(&self, failure: Failure) -> Failure {
        if self.line_count == 0 {
            return failure;
        }
        let done = format!(
            "before that, and this stays so: {} applied, {} discarded, {} still dead; the letters of the transaction under way were ended all \
             together or not at all, and all others wait as before\n{}",
            self.applied,
            self.discarded,
            self.still_dead,
            self.lines().trim_end()
        );
        match failure {
            Failure::Setting(reason) => Failure::Setting(format!("{reason}; {done}")),
            other => anyhow::anyhow!("{other}; {done}").into(),
        }
    }
}

/// Postgres has failed a statement of a command that may have ended letters before: [`Report::of`] says which.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub(super) fn stopped(err: Error) -> Failure {
    anyhow::anyhow!("postgres does not do it: {}", refusal::line(&err)).into()
}

pub(super) fn paused(view: &str) -> Failure {
    Failure::Setting(format!(
        "view {view} is paused and reads this topic, so that it would never get the event: view-builder resume {view}, or view-builder drop \
         {view}, and then retry"
    ))
}

pub(super) fn other_views() -> Failure {
    Failure::Setting(
        "a view was paused, resumed, changed or rebuilt meanwhile: run the command again, it goes on where it is"
            .to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::{LINES_MAX, Report};
    use crate::process::failure::Failure;

    #[test]
    fn a_failure_in_the_middle_tells_what_was_done_and_keeps_its_exit_code() {
        let mut report = Report::default();
        report.applied("7 (item-events/0 offset 3)");
        report.still_dead("8 (item-events/0 offset 4)", "too long");
        let failure = report.interrupted(Failure::Setting("a view is paused".to_owned()));
        let text = failure.to_string();
        assert!(matches!(failure, Failure::Setting(_)));
        assert!(text.starts_with("a view is paused; before that"), "{text}");
        assert!(text.contains("1 applied, 0 discarded, 1 still dead"), "{text}");
        assert!(
            text.ends_with("still dead 8 (item-events/0 offset 4): too long"),
            "{text}"
        );
    }

    #[test]
    fn a_failure_at_once_is_told_as_it_is() {
        let failure = Report::default().interrupted(Failure::Setting("a view is paused".to_owned()));
        assert_eq!(failure.to_string(), "a view is paused");
    }

    #[test]
    fn a_thousand_letters_have_a_line_each_and_the_others_are_counted() {
        let mut report = Report::default();
        for _ in 0..=LINES_MAX {
            report.applied("one");
        }
        let (text, left) = report.finish_with_numbers(Ok(())).unwrap();
        assert!(!left);
        assert_eq!(text.lines().filter(|line| *line == "applied one").count(), 1_000);
        assert!(text.ends_with("...\n1001 applied, 0 still dead\n"), "{text}");
    }
}
