//! Replays: first what would be read again, then the command, once the person has typed the group's name.

use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::response::Response;
use axum::routing::{get, post};
use maud::{Markup, html};
use serde::Deserialize;

use crate::actions::{self, Action, Probe};
use crate::app::App;
use crate::pages::parts;
use crate::programs::{CommandLine, Program};
use crate::web::access::{Change, Refusal};
use crate::web::layout::{self, Current, Shell};

/// How long the preview may take. `view-builder replay` asks Kafka for the offsets.
const PREVIEW_TIME_MAX: Duration = Duration::from_secs(8);

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/groups/replay", get(preview))
        .route("/groups/replay/begin", post(begin))
}

/// The form that begins with a preview.
pub(super) fn form(app: &App, shell: &Shell, topics: &[&str]) -> Markup {
    html! {
        section.card {
            h2 { "Read events again" }
            p {
                "A replay is always safe: an event that is older than a row changes nothing, and rows that somebody edited or deleted by hand are right afterwards. New events wait until the old ones have been read."
            }
            @if shell.may_change() {
                form.fields method="get" action="/groups/replay" {
                    div { label for="topic" { "Topic" } select id="topic" name="topic" { @for topic in topics { option { (topic) } } } }
                    div { label for="partition" { "Partition (empty: all)" } input id="partition" name="partition" inputmode="numeric" pattern="[0-9]*" size="6"; }
                    div {
                        label for="from" { "From" }
                        input id="from" name="from" value="earliest" required aria-describedby="from-hint";
                        p.quiet id="from-hint" { code { "earliest" } ", an offset such as " code { "1200" } ", or a time with its zone such as " code { "2026-11-25T08:00:00Z" } }
                    }
                    button.primary type="submit" { "Preview" }
                }
                p.quiet { "The preview changes nothing. Group: " code { (app.settings.pipeline.views.group) } "." }
            } @else { (shell.why_no_buttons()) }
        }
    }
}

#[derive(Deserialize)]
struct Asked {
    topic: String,
    #[serde(default)]
    partition: String,
    from: String,
}

impl Asked {
    /// The arguments of `view-builder replay`.
    fn arguments<'a>(&'a self, group: &'a str) -> Vec<&'a str> {
        let mut arguments = vec![
            "replay",
            "--group",
            group,
            "--topic",
            self.topic.trim(),
            "--from",
            self.from.trim(),
        ];
        if !self.partition.trim().is_empty() {
            arguments.extend(["--partition", self.partition.trim()]);
        }
        arguments
    }

    /// No value may be taken for a flag.
    fn check(&self) -> Result<(), Refusal> {
        let values = [
            ("topic", &self.topic),
            ("from", &self.from),
            ("partition", &self.partition),
        ];
        match values.iter().find(|(_, value)| value.trim().starts_with('-')) {
            Some((name, _)) => Err(Refusal::Field(format!("`{name}` cannot begin with `-`"))),
            None => Ok(()),
        }
    }
}

async fn preview(State(app): State<App>, shell: Shell, Query(asked): Query<Asked>) -> Result<Response, Refusal> {
    if !shell.may_change() {
        return Err(if shell.session.is_some() {
            Refusal::NotAnOperator
        } else {
            Refusal::NotLoggedIn
        });
    }
    asked.check()?;
    let group = &app.settings.pipeline.views.group;
    let command = CommandLine::new(Program::ViewBuilder, &asked.arguments(group));
    let away = app.store.snapshot().kafka.away.clone();
    let answer = match away {
        Some(away) => Err(format!("Kafka is away: {}", away.why)),
        // It says what it would do, asks, and takes `n` for an answer.
        None => command
            .ask(&app.settings, "n\n", PREVIEW_TIME_MAX)
            .await
            .map_err(|err| format!("{err:#}")),
    };
    let content = match answer {
        Ok(answer) if answer.exit_code == Some(0) => html! {
            div.card {
                p { "This is what " code { (command.for_people()) } " says that it would do:" }
                pre.output { (without_question(&answer.told)) }
                p { "The partition's position in the views' database goes back. Builders notice it within two seconds, and apply these events again. No reader sees an older state meanwhile." }
                form.fields method="post" action="/groups/replay/begin" {
                    (shell.csrf())
                    input type="hidden" name="topic" value=(asked.topic);
                    input type="hidden" name="partition" value=(asked.partition);
                    input type="hidden" name="from" value=(asked.from);
                    div {
                        label for="confirm" { "Type the group's name, " code { (group) } ", to confirm" }
                        input id="confirm" name="confirm" required autocomplete="off";
                    }
                    div { label for="reason" { "Reason (for the audit)" } input id="reason" name="reason" maxlength="500"; }
                    button.danger type="submit" { "Read these events again" }
                }
            }
        },
        Ok(answer) => html! { div.card { p { "Nothing can be replayed like this:" } pre.output { (answer.told) } } },
        Err(reason) => html! { p.away role="status" { (parts::sentence(&reason)) } },
    };
    let content = html! { (content) p { a.button href="/groups" { "Back" } } };
    Ok(layout::page(&shell, "Preview of a replay", Current::Groups, content))
}

/// What the command tells, without its question.
fn without_question(told: &str) -> &str {
    told.split("Are you sure").next().unwrap_or_default().trim()
}

async fn begin(State(app): State<App>, change: Change) -> Result<Response, Refusal> {
    let group = app.settings.pipeline.views.group.clone();
    change.fields.confirmed(&group)?;
    let asked = Asked {
        topic: change.fields.text("topic").to_owned(),
        partition: change.fields.text("partition").to_owned(),
        from: change.fields.text("from").to_owned(),
    };
    asked.check()?;
    let mut arguments = asked.arguments(&group);
    arguments.push("--yes");
    let action = Action {
        title: format!("Replay {} from {}", asked.topic, asked.from),
        command: CommandLine::new(Program::ViewBuilder, &arguments),
        probe: Probe::Positions(asked.topic.clone()),
        reason: change.fields.text("reason").to_owned(),
        back: "/groups".to_owned(),
    };
    Ok(actions::perform(&app, &change.operator, action).await)
}

#[cfg(test)]
mod tests {
    use super::{Asked, without_question};

    #[test]
    fn no_value_is_taken_for_a_flag() {
        let asked = |topic: &str, partition: &str, from: &str| Asked {
            topic: topic.to_owned(),
            partition: partition.to_owned(),
            from: from.to_owned(),
        };
        let good = asked("user-events", " 3 ", "earliest");
        assert!(good.check().is_ok());
        assert_eq!(
            good.arguments("g"),
            [
                "replay",
                "--group",
                "g",
                "--topic",
                "user-events",
                "--from",
                "earliest",
                "--partition",
                "3"
            ]
        );
        assert!(asked("--yes", "", "earliest").check().is_err());
        assert!(asked("t", "", " --yes").check().is_err());
    }

    #[test]
    fn the_question_is_not_shown() {
        assert_eq!(
            without_question("Group 'g'.\nAre you sure you want to continue? (y/N) "),
            "Group 'g'."
        );
    }
}
