//! Takes over the words of the programs' own `status`.

use super::{Health, Mend, Verdict};
use crate::snapshot::status::StatusFacts;

/// The verdict in the words of the command, if it has a problem with one of these stages. A button of the console stays: it does the same.
#[must_use]
pub(super) fn in_its_words(facts: Option<&StatusFacts>, stages: &[&str], verdict: Verdict) -> Verdict {
    let problems = facts.iter().flat_map(|facts| &facts.problems);
    let mut problems = problems.filter(|problem| stages.contains(&problem.stage.as_str()));
    let Some(problem) = problems.next() else {
        return verdict;
    };
    let health = if problem.severity == "problem" {
        Health::Bad
    } else {
        Health::Warning
    };
    let command = problem.commands.first().map(|command| Mend::Command(command.clone()));
    let is_page = matches!(verdict.mend, Some(Mend::Page { .. }));
    Verdict {
        word: if verdict.health == Health::Good {
            "look here".to_owned()
        } else {
            verdict.word
        },
        health: verdict.health.max(health),
        line: problem.text.clone(),
        mend: if is_page {
            verdict.mend
        } else {
            command.or(verdict.mend)
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Health, Mend, Verdict};
    use super::in_its_words;
    use crate::snapshot::status::StatusFacts;

    const ANSWER: &str = r#"{"format": 1, "program": "outbox-relay", "verdict": {"state": "stopped", "text": "x"}, "exit_code": 13,
        "problems": [{"severity": "problem", "stage": "slot", "text": "the slot is gone", "commands": ["outbox-relay recover", "b"], "exit_code": 13},
                     {"severity": "warning", "stage": "parking", "text": "3 rows are parked", "commands": [], "exit_code": null}], "slot": null}"#;

    fn good() -> Verdict {
        Verdict {
            health: Health::Good,
            word: "healthy".to_owned(),
            line: String::new(),
            mend: None,
        }
    }

    #[test]
    fn a_problem_of_a_stage_is_told_in_the_words_of_the_command() {
        let facts = StatusFacts::parse(ANSWER).unwrap();
        let slot = in_its_words(Some(&facts), &["slot"], good());
        assert_eq!((slot.health, slot.line.as_str()), (Health::Bad, "the slot is gone"));
        assert_eq!(slot.mend, Some(Mend::Command("outbox-relay recover".to_owned())));
        let relay = in_its_words(Some(&facts), &["relay", "parking"], good());
        assert_eq!((relay.health, relay.mend), (Health::Warning, None));
        assert_eq!(in_its_words(Some(&facts), &["kafka"], good()), good());
        assert_eq!(in_its_words(None, &["slot"], good()), good());
    }
}
