//! What the commands `status` of all programs have in common: a verdict, the problems with the commands that mend them, and the frame around them.
//!
//! A program fills a struct with its own figures, and [`Report`] puts the common part around it. `--json` prints the report as one line, and
//! [`table`] writes figures for people. docs/status.md documents both.

pub mod table;
pub mod watch;

use std::fmt::Write as _;
use std::time::Instant;

use serde::Serialize;

use crate::clock;

/// Version of the JSON. It grows when a field changes its meaning or goes away, and not when one is added.
pub const FORMAT: u32 = 1;

/// How the program's part of the pipeline is, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It does its work, and is not behind.
    Well,
    /// It does its work, and is behind, or a part of its work waits for a person.
    Behind,
    /// An operator, or the program itself, has paused it.
    Paused,
    /// Nobody does the work.
    Stopped,
    /// A server does not answer, so it is not known how the work is.
    Away,
}

impl State {
    /// The word as the JSON and the table have it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Well => "well",
            Self::Behind => "behind",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Away => "away",
        }
    }
}

/// The one line that a person reads first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    pub state: State,
    /// A whole sentence without the word of the state. It has no line break.
    pub text: String,
}

impl Verdict {
    /// The verdict where a server does not answer. For each server there is its name and why it is away, if it is. `still_known` is what is known
    /// nevertheless, without a point. `None`: no server is away.
    #[must_use]
    pub fn away(servers: [(&str, &Option<String>); 2], still_known: &str) -> Option<Self> {
        let away = servers
            .iter()
            .filter_map(|(name, because)| because.as_ref().map(|_| *name));
        let away: Vec<&str> = away.collect();
        (!away.is_empty()).then(|| Self {
            state: State::Away,
            text: format!("no answer from {}; {still_known}", away.join(" and ")),
        })
    }
}

/// How much a problem matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// It works, but somebody has to look.
    Warning,
    /// Something does not work.
    Problem,
}

/// One thing that is wrong, with what mends it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    pub severity: Severity,
    /// The part of the pipeline, such as `slot`.
    pub stage: &'static str,
    /// What is wrong and what to do, in the words of `check`, `/readyz` and the program's last line.
    pub text: String,
    /// The commands that the text names, in their order. The first is the one to try first.
    pub commands: Vec<String>,
    /// The exit code with which a program ends for this reason. `None`: it does not end.
    pub exit_code: Option<u8>,
}

impl Problem {
    /// Something that does not work.
    #[must_use]
    pub fn new(stage: &'static str, text: impl Into<String>) -> Self {
        let text = text.into();
        Self {
            severity: Severity::Problem,
            stage,
            commands: commands_in(&text),
            text,
            exit_code: None,
        }
    }

    /// Something that works, and that somebody has to look at.
    #[must_use]
    pub fn warning(stage: &'static str, text: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::new(stage, text)
        }
    }

    /// The same problem, with the exit code with which a program ends for it.
    #[must_use]
    pub fn with_exit_code(self, exit_code: u8) -> Self {
        Self {
            exit_code: Some(exit_code),
            ..self
        }
    }
}

/// What a command in a text begins with.
const COMMANDS: [&str; 6] = [
    "outbox-relay ",
    "view-builder ",
    "kafka-",
    "select ",
    "alter ",
    "grant ",
];

/// The commands that a text names: what stands between backticks and begins with one of [`COMMANDS`]. Each comes once.
#[must_use]
pub fn commands_in(text: &str) -> Vec<String> {
    let quoted = text.split('`').skip(1).step_by(2);
    let mut commands: Vec<String> = Vec::new();
    for command in quoted.filter(|quoted| COMMANDS.iter().any(|begin| quoted.starts_with(begin))) {
        if !commands.iter().any(|known| known == command) {
            commands.push(command.to_owned());
        }
    }
    commands
}

/// What `status` tells: the common part, and the program's own figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report<F> {
    pub format: u32,
    pub program: &'static str,
    pub version: &'static str,
    /// When the look was over, RFC 3339 in UTC.
    pub at: String,
    /// How long the look took.
    pub took_milliseconds: u64,
    /// The exit code of the command.
    pub exit_code: u8,
    pub verdict: Verdict,
    pub problems: Vec<Problem>,
    #[serde(flatten)]
    pub figures: F,
}

/// The program that reports.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    pub name: &'static str,
    pub version: &'static str,
}

/// What follows from the figures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    pub verdict: Verdict,
    pub problems: Vec<Problem>,
    pub exit_code: u8,
}

impl<F: Serialize> Report<F> {
    /// The report of a look that began at `began`.
    #[must_use]
    pub fn new(program: Program, began: Instant, judgement: Judgement, figures: F) -> Self {
        Self {
            format: FORMAT,
            program: program.name,
            version: program.version,
            at: clock::rfc3339(clock::now_us()),
            // A look lasts seconds at most.
            took_milliseconds: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            exit_code: judgement.exit_code,
            verdict: judgement.verdict,
            problems: judgement.problems,
            figures,
        }
    }

    /// The report as one line of JSON.
    ///
    /// # Errors
    /// A figure cannot be JSON.
    pub fn json_line(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string(self)? + "\n")
    }

    /// The report for people: the verdict, the problems, and `figures`, which the program has written.
    #[must_use]
    pub fn text(&self, figures: &str) -> String {
        let mut text = format!("{}: {}\n", self.verdict.state.word(), self.verdict.text);
        for problem in &self.problems {
            let mark = match problem.severity {
                Severity::Warning => "warning",
                Severity::Problem => "PROBLEM",
            };
            let code = problem
                .exit_code
                .map_or_else(String::new, |code| format!(" (exit code {code})"));
            // Writing to a String cannot fail.
            let _ = writeln!(text, "\n{mark} {}{code}: {}", problem.stage, problem.text);
            for command in &problem.commands {
                let _ = writeln!(text, "    {command}");
            }
        }
        let _ = writeln!(
            text,
            "\n{figures}\n{} {}, at {}, in {} ms, exit code {}",
            self.program, self.version, self.at, self.took_milliseconds, self.exit_code
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use super::{Problem, Verdict, commands_in};

    #[test]
    fn the_servers_that_are_away_are_named() {
        let why = Some("refused".to_owned());
        let text = |postgres, kafka| {
            let servers = [("Postgres", postgres), ("Kafka", kafka)];
            Verdict::away(servers, "nothing is known").map(|verdict| verdict.text)
        };
        assert_eq!(text(&None, &None), None);
        assert_eq!(
            text(&None, &why).as_deref(),
            Some("no answer from Kafka; nothing is known")
        );
        assert_eq!(
            text(&why, &why).as_deref(),
            Some("no answer from Postgres and Kafka; nothing is known")
        );
    }

    #[test]
    fn the_commands_of_a_text_are_between_backticks_and_each_comes_once() {
        let text = "slot `relay` of `a b` is gone; `outbox-relay recover` goes on, or `outbox-relay init --accept-new-slot`; `outbox-relay recover`";
        assert_eq!(
            commands_in(text),
            ["outbox-relay recover", "outbox-relay init --accept-new-slot"]
        );
        assert!(commands_in("nothing to type").is_empty());
        let command = "kafka-configs.sh --alter --entity-name c";
        assert_eq!(
            Problem::new("topics", format!("mend it by `{command}`")).commands,
            [command]
        );
    }
}
