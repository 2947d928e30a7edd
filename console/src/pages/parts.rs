//! What several pages show: parts that are away, figures that are old, verdicts, jobs.

use std::sync::Arc;

use maud::{Markup, html};

use crate::app::App;
use crate::programs::{Job, JobState};
use crate::snapshot::verdict::{Health, Mend, Verdict};
use crate::snapshot::{Lag, Part, Snapshot};
use crate::web::layout::badge;
use crate::web::show;

/// A line for each part that does not answer.
pub(super) fn away(snapshot: &Snapshot) -> Markup {
    html! {
        @for (name, away) in snapshot.away() {
            p.away role="status" {
                strong { (name) } " is away since " (show::moment(away.since)) ": " (away.why)
                ". Its figures are the last that are known."
            }
        }
    }
}

/// Figures of a part. They are marked as old while it is away.
pub(super) fn figures<T>(part: &Part<T>, content: &Markup) -> Markup {
    html! {
        @if part.away.is_some() {
            div.old {
                (content)
                p.old-note {
                    @match part.read_at {
                        Some(at) => { "last known, " (show::ago(at)) }
                        None => { "nothing is known yet" }
                    }
                }
            }
        } @else {
            (content)
        }
    }
}

/// What is wrong, and what mends it.
pub(super) fn advice(verdict: &Verdict) -> Markup {
    html! {
        @if !verdict.line.is_empty() || verdict.mend.is_some() {
            p.advice.advice-bad[verdict.health == Health::Bad] {
                @if !verdict.line.is_empty() { (sentence(&verdict.line)) " " }
                @match &verdict.mend {
                    Some(Mend::Command(command)) => { "To mend it: " code { (command) } }
                    Some(Mend::Page { label, address }) => { a.button href=(address) { (label) } }
                    None => {}
                }
            }
        }
    }
}

/// With a capital letter and a point.
pub(super) fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let begin = chars
        .next()
        .map(|char| char.to_uppercase().collect::<String>())
        .unwrap_or_default();
    let end = if text.ends_with(['.', '!', '?', ')']) { "" } else { "." };
    format!("{begin}{}{end}", chars.as_str())
}

pub(super) fn badge_of(verdict: &Verdict) -> Markup {
    badge(verdict.health, &verdict.word)
}

/// Events behind, as a number.
pub(super) fn lag_events(lag: Lag) -> String {
    match lag.events {
        Some(events) if lag.is_upper_bound => format!("at most {}", show::count(events)),
        Some(events) => show::count(events),
        None => "?".to_owned(),
    }
}

/// Seconds behind.
pub(super) fn lag_seconds(lag: Lag) -> String {
    lag.seconds.map_or_else(|| "?".to_owned(), show::seconds)
}

pub(super) fn rate(rate: Option<f64>) -> String {
    rate.map_or_else(|| "?".to_owned(), show::rate)
}

/// The commands that were begun on a page, the newest first.
pub(super) fn jobs(app: &App, page: &str) -> Markup {
    let jobs: Vec<Arc<Job>> = app.jobs.of_page(page);
    html! {
        @if !jobs.is_empty() {
            section.card {
                h2 { "Commands begun here" }
                ul.jobs {
                    @for job in jobs.iter().take(5) {
                        li {
                            a href=(format!("/jobs/{}", job.number)) { (job.title) } " "
                            (job_badge(job.state())) " "
                            span.quiet { "by " (job.person) ", " (show::ago(job.began_at)) }
                        }
                    }
                }
            }
        }
    }
}

pub(super) fn job_badge(state: JobState) -> Markup {
    match state {
        JobState::Running => badge(Health::Unknown, "running"),
        JobState::Ended { exit_code: Some(0), .. } => badge(Health::Good, "done"),
        JobState::Ended {
            exit_code: Some(code), ..
        } => badge(Health::Bad, &format!("exit code {code}")),
        JobState::Ended { exit_code: None, .. } => badge(Health::Bad, "did not end by itself"),
    }
}

#[cfg(test)]
mod tests {
    use super::sentence;

    #[test]
    fn a_line_of_a_program_becomes_a_sentence() {
        assert_eq!(sentence("postgres is away"), "Postgres is away.");
        assert_eq!(sentence("paused (by an operator)"), "Paused (by an operator)");
        assert_eq!(sentence(""), ".");
    }
}
