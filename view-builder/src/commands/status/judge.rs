//! What follows from the figures: the problems, the verdict and the exit code. Pure.

use service::status::{Judgement, Problem, Severity, State, Verdict, table};

use super::figures::Figures;
use crate::letters;
use crate::process::failure::{AWAY, BEHIND_OR_NO_BUILDER, Failure};

/// Views whose oldest event that is missing is older are behind, in seconds.
const BEHIND_AFTER_SECONDS: f64 = 10.0;

/// What was found besides the figures, each in the words of `/readyz`.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    /// Postgres answers, and does not tell the positions.
    pub(super) no_positions_because: Option<String>,
    pub(super) paused_partitions: Vec<String>,
    /// Partitions that the topic no longer has.
    pub(super) gone: Vec<String>,
    /// Partitions of which Kafka does not tell now.
    pub(super) untold: Vec<String>,
    pub(super) notices: Vec<String>,
    pub(super) paused_views: Vec<String>,
    /// Batches that fail again and again.
    pub(super) stuck: Vec<String>,
}

/// A problem that has an exit code of its own.
fn with_code_of(problem: Problem, failure: &Failure) -> Problem {
    problem.with_exit_code(failure.code())
}

/// What follows from the figures and from what was found.
pub(super) fn judge(figures: &Figures, found: &Found) -> Judgement {
    let mut problems = Vec::new();
    let away = [
        ("postgres", &figures.postgres.away_because),
        ("kafka", &figures.kafka.away_because),
    ];
    problems.extend(away.iter().filter_map(|(stage, why)| {
        let why = why.as_ref()?;
        Some(Problem::new(stage, why).with_exit_code(AWAY))
    }));
    problems.extend(no_builder(figures, found));
    let paused_partitions = found
        .paused_partitions
        .iter()
        .map(|text| Problem::new("partitions", text));
    problems.extend(paused_partitions.map(|problem| with_code_of(problem, &Failure::Continuity)));
    let paused_views = found.paused_views.iter().map(|text| Problem::new("views", text));
    problems.extend(paused_views.map(|problem| with_code_of(problem, &Failure::Paused)));
    problems.extend(
        waiting_letters(figures)
            .map(|text| with_code_of(Problem::warning("dead_letters", text), &Failure::DeadLetters)),
    );
    problems.extend(untold(found));
    problems.extend(
        found
            .stuck
            .iter()
            .map(|text| Problem::new("builders", text).with_exit_code(BEHIND_OR_NO_BUILDER)),
    );
    problems.extend(is_behind(figures, &problems));
    problems.extend(said_by_the_builder(figures, &problems));
    problems.extend(rebuilds_without_a_process(figures));
    let known = found.gone.iter().map(|text| Problem::warning("partitions", text));
    problems.extend(known);
    problems.extend(found.notices.iter().map(|text| Problem::warning("partitions", text)));
    let exit_code = problems.iter().find_map(|problem| problem.exit_code).unwrap_or(0);
    Judgement {
        verdict: verdict(figures, found, &problems),
        problems,
        exit_code,
    }
}

/// Nobody keeps the views. Where Kafka does not tell of the group, this is not known.
fn no_builder(figures: &Figures, found: &Found) -> Option<Problem> {
    let text = match &found.no_positions_because {
        Some(why) => format!("no positions, has a builder run yet? {why}; `view-builder run` makes what is missing"),
        None if figures.group.members == Some(0) => format!(
            "no builder keeps the views: group `{}` has no members; `view-builder run` goes on from the positions",
            figures.group.name
        ),
        None => return None,
    };
    Some(Problem::new("builders", text).with_exit_code(BEHIND_OR_NO_BUILDER))
}

/// The sentence of the events that wait since they cannot be applied. `None`: there is no such event, or Postgres is away.
fn waiting_letters(figures: &Figures) -> Option<String> {
    let count = figures.total.dead_letters.filter(|count| *count > 0)?;
    Some(letters::waiting(count))
}

/// The partitions of which Kafka does not tell.
fn untold(found: &Found) -> Option<Problem> {
    if found.untold.is_empty() {
        return None;
    }
    let text = format!("kafka does not tell of all partitions: {}", found.untold.join("; "));
    Some(Problem::new("partitions", text).with_exit_code(1))
}

fn is_behind(figures: &Figures, so_far: &[Problem]) -> Option<Problem> {
    let seconds = figures.total.lag_seconds?;
    // What keeps the builders is told already.
    let is_explained = so_far.iter().any(|problem| problem.severity == Severity::Problem);
    (seconds > BEHIND_AFTER_SECONDS && !is_explained).then(|| {
        let text = format!(
            "the oldest event that is not in its views is {} old; docs/metrics.md tells where the time may go",
            table::seconds(seconds)
        );
        Problem::new("partitions", text).with_exit_code(BEHIND_OR_NO_BUILDER)
    })
}

/// What the builder's process says of itself and nobody has said yet.
fn said_by_the_builder(figures: &Figures, so_far: &[Problem]) -> Vec<Problem> {
    let Some(builder) = &figures.builder else {
        return Vec::new();
    };
    let is_new = |text: &str| {
        !so_far
            .iter()
            .any(|problem| problem.text.contains(text) || text.contains(&problem.text))
    };
    let reasons = builder.reasons.iter().filter(|(_, text)| is_new(text));
    let reasons = reasons
        .map(|(part, text)| Problem::new("builders", format!("{part}: {text}")).with_exit_code(BEHIND_OR_NO_BUILDER));
    reasons.collect()
}

/// Generations that were begun and that nobody fills.
fn rebuilds_without_a_process(figures: &Figures) -> Vec<Problem> {
    let begun = figures.views.iter().filter_map(|view| {
        let rebuild = view.rebuild.as_ref().filter(|rebuild| !rebuild.is_running)?;
        Some(Problem::warning(
            "views",
            format!(
                "a rebuild of view {0} was begun at {1}, and nobody goes on with it; `view-builder rebuild {0}` goes on, and `view-builder rebuild {0} --abandon` gives it up",
                view.view, rebuild.started_at
            ),
        ))
    });
    begun.collect()
}

fn verdict(figures: &Figures, found: &Found, problems: &[Problem]) -> Verdict {
    let with = |state, text: String| Verdict { state, text };
    let away = [
        ("Postgres", &figures.postgres.away_because),
        ("Kafka", &figures.kafka.away_because),
    ];
    let away: Vec<&str> = away
        .iter()
        .filter_map(|(name, away)| away.as_ref().map(|_| *name))
        .collect();
    if !away.is_empty() {
        return with(
            State::Away,
            format!("no answer from {}; {}", away.join(" and "), still_known(figures)),
        );
    }
    if found.no_positions_because.is_some() || figures.group.members == Some(0) {
        return with(State::Stopped, "no builder keeps the views".to_owned());
    }
    let total = &figures.total;
    let lag = match (total.lag_events, total.lag_seconds) {
        (Some(0), _) => "the views have every event".to_owned(),
        (Some(events), Some(seconds)) => format!(
            "{events} events are not in their views yet, the oldest is {} old",
            table::seconds(seconds)
        ),
        _ => "how far the views are behind is not known".to_owned(),
    };
    let counts = [
        (found.paused_partitions.len(), "partitions are paused"),
        (found.paused_views.len(), "views are paused"),
    ];
    let paused: Vec<String> = counts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    if !paused.is_empty() {
        return with(State::Paused, format!("{}; of the others: {lag}", paused.join(" and ")));
    }
    if let Some(letters) = waiting_letters(figures) {
        return with(State::Behind, format!("{letters}; of the others: {lag}"));
    }
    let works = problems.iter().all(|problem| problem.severity == Severity::Warning);
    with(if works { State::Well } else { State::Behind }, lag)
}

/// What is known although a server is away.
fn still_known(figures: &Figures) -> String {
    let total = &figures.total;
    let positions = total.dead_letters.map(|letters| {
        format!(
            "positions of {} partitions are known, and {letters} dead letters",
            total.partitions
        )
    });
    let members = figures
        .group
        .members
        .map(|members| format!("group {} has {members} members", figures.group.name));
    let known: Vec<String> = positions.into_iter().chain(members).collect();
    if known.is_empty() {
        "nothing else is known".to_owned()
    } else {
        known.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use service::status::State;

    use super::{Found, judge};
    use crate::commands::status::figures::{Figures, Rebuild, View};

    fn healthy() -> Figures {
        let mut figures = Figures::default();
        figures.group.members = Some(1);
        figures.total.partitions = 8;
        figures.total.lag_events = Some(0);
        figures.total.lag_seconds = Some(0.0);
        figures
    }

    /// State, exit code, and the commands of the first problem.
    fn judged(figures: &Figures, found: &Found) -> (State, u8, Vec<String>) {
        let judged = judge(figures, found);
        let commands = judged.problems.first().map(|problem| problem.commands.clone());
        (judged.verdict.state, judged.exit_code, commands.unwrap_or_default())
    }

    fn one(text: &str) -> Vec<String> {
        vec![text.to_owned()]
    }

    #[test]
    fn builders_that_keep_up_are_well_and_slow_ones_are_behind() {
        let mut figures = healthy();
        assert_eq!(judged(&figures, &Found::default()), (State::Well, 0, vec![]));
        (figures.total.lag_events, figures.total.lag_seconds) = (Some(5), Some(9.0));
        assert_eq!(judged(&figures, &Found::default()).1, 0);
        figures.total.lag_seconds = Some(11.0);
        assert_eq!(judged(&figures, &Found::default()).0, State::Behind);
        assert_eq!(judged(&figures, &Found::default()).1, 8);
    }

    #[test]
    fn without_a_builder_the_command_is_named_and_where_nobody_tells_of_the_group_nothing_is_said() {
        let mut figures = healthy();
        figures.group.members = Some(0);
        assert_eq!(
            judged(&figures, &Found::default()),
            (State::Stopped, 8, one("view-builder run"))
        );
        figures.group.members = None;
        assert_eq!(judged(&figures, &Found::default()), (State::Well, 0, vec![]));
    }

    #[test]
    fn what_an_operator_has_to_decide_has_the_codes_of_always() {
        let partition = Found {
            paused_partitions: one("a/0 is paused; to go on: `view-builder accept a/0 --from beginning`"),
            ..Found::default()
        };
        let accept = one("view-builder accept a/0 --from beginning");
        assert_eq!(judged(&healthy(), &partition), (State::Paused, 4, accept));
        let view = Found {
            paused_views: one("view v is paused; mend that, then: `view-builder resume v`"),
            ..Found::default()
        };
        assert_eq!(
            judged(&healthy(), &view),
            (State::Paused, 7, one("view-builder resume v"))
        );
        let mut letters = healthy();
        letters.total.dead_letters = Some(3);
        let list = one("view-builder dead-letters list");
        assert_eq!(judged(&letters, &Found::default()), (State::Behind, 6, list));
        let untold = Found {
            untold: one("a/0 has no leader in kafka"),
            ..Found::default()
        };
        assert_eq!(judged(&healthy(), &untold).1, 1);
    }

    #[test]
    fn a_server_that_is_away_is_named_first_with_what_is_known_all_the_same() {
        let mut figures = healthy();
        figures.total.dead_letters = Some(3);
        figures.kafka.away_because = Some("kafka does not answer".to_owned());
        figures.group.members = None;
        let judgement = judge(&figures, &Found::default());
        assert_eq!((judgement.verdict.state, judgement.exit_code), (State::Away, 9));
        assert_eq!(
            judgement.verdict.text,
            "no answer from Kafka; positions of 8 partitions are known, and 3 dead letters"
        );
    }

    #[test]
    fn a_rebuild_that_nobody_goes_on_with_is_told_and_no_failure() {
        let mut figures = healthy();
        let rebuild = |is_running| View {
            view: "v".to_owned(),
            rebuild: Some(Rebuild {
                is_running,
                ..Rebuild::default()
            }),
            ..View::default()
        };
        figures.views = vec![rebuild(true)];
        assert_eq!(judge(&figures, &Found::default()).problems, []);
        figures.views = vec![rebuild(false)];
        let (state, code, commands) = judged(&figures, &Found::default());
        assert_eq!((state, code), (State::Well, 0));
        assert_eq!(commands, ["view-builder rebuild v", "view-builder rebuild v --abandon"]);
    }
}
