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
    problems.extend(untold_group(figures));
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

/// Kafka answers, and does not tell who keeps the views.
fn untold_group(figures: &Figures) -> Option<Problem> {
    let is_untold = figures.kafka.away_because.is_none() && figures.group.members.is_none();
    is_untold.then(|| {
        let name = &figures.group.name;
        Problem::warning(
            "builders",
            format!("whether a builder keeps the views is not known: kafka does not tell of group `{name}`"),
        )
    })
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
    let is_old = figures
        .total
        .lag_seconds
        .filter(|seconds| *seconds > BEHIND_AFTER_SECONDS);
    let of_unknown_age = waiting_with_unknown_age(figures);
    // What keeps the builders is told already.
    let is_explained = so_far.iter().any(|problem| problem.severity == Severity::Problem);
    let text = match (is_explained, is_old) {
        (true, _) => return None,
        (false, Some(seconds)) => format!(
            "the oldest event that is not in its views is {} old; docs/metrics.md tells where the time may go",
            table::seconds(seconds)
        ),
        (false, None) if of_unknown_age > 0 => format!(
            "{of_unknown_age} events are not in their views, and kafka did not send the oldest in time, so their age is not known; docs/metrics.md tells where the time may go"
        ),
        (false, None) => return None,
    };
    Some(Problem::new("partitions", text).with_exit_code(BEHIND_OR_NO_BUILDER))
}

/// How many events wait in partitions whose oldest event Kafka did not send.
fn waiting_with_unknown_age(figures: &Figures) -> i64 {
    let partitions = figures.partitions.iter();
    let of_unknown_age = partitions.filter(|partition| partition.lag_seconds.is_none());
    of_unknown_age.filter_map(|partition| partition.lag_events).sum()
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
    let servers = [
        ("Postgres", &figures.postgres.away_because),
        ("Kafka", &figures.kafka.away_because),
    ];
    if let Some(away) = Verdict::away(servers, &still_known(figures)) {
        return away;
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
        (Some(events), None) => {
            format!("{events} events are not in their views yet; how old the oldest is, is not known")
        }
        (None, _) => "how far the views are behind is not known".to_owned(),
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
mod tests;
