//! What an operator can do with views: pause, resume, rebuild, verify.

use axum::Router;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::post;
use maud::{Markup, html};

use crate::actions::{self, Action, Probe};
use crate::app::App;
use crate::programs::{CommandLine, Program};
use crate::snapshot::views::ViewFacts;
use crate::web::access::{Change, Refusal};
use crate::web::layout::Shell;

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/verify", post(verify))
        .route("/views/{name}/pause", post(pause))
        .route("/views/{name}/resume", post(resume))
        .route("/views/{name}/rebuild", post(rebuild))
        .route("/views/{name}/abandon", post(abandon))
}

/// The form that compares all views with their sources.
pub(super) fn verify_form(app: &App, shell: &Shell) -> Markup {
    html! {
        section.card {
            h2 { "Are the views right?" }
            p { "`view-builder verify` compares them with the tables that they are made from, while everything runs. It tells lag from a real difference, and changes nothing." }
            @if app.settings.pipeline.views.verify_sources.is_empty() {
                p.quiet { "The settings name no sources (" code { "[views.verify_sources]" } "), so there is nothing to compare with." }
            } @else if shell.may_change() {
                form method="post" action="/verify" { (shell.csrf()) button.primary type="submit" { "Verify the views" } }
            } @else { (shell.why_no_buttons()) }
        }
    }
}

/// The forms of one view.
pub(super) fn forms(app: &App, shell: &Shell, view: &ViewFacts) -> Markup {
    let address = |verb: &str| format!("/views/{}/{verb}", view.name);
    html! {
        section.card {
            h2 { "Change it" }
            @if !shell.may_change() { (shell.why_no_buttons()) } @else {
                div.actions {
                    @if view.pause.is_some() {
                        form method="post" action=(address("resume")) {
                            (shell.csrf())
                            button.primary type="submit" { "Resume" }
                            p.quiet { "The events since the pause are read again." }
                        }
                    } @else {
                        form method="post" action=(address("pause")) {
                            (shell.csrf())
                            label for="pause-reason" { "Reason for a pause" }
                            input id="pause-reason" name="reason" required maxlength="500";
                            button type="submit" { "Pause" }
                        }
                    }
                    form method="post" action=(address("rebuild")) {
                        (shell.csrf())
                        h3 { "Rebuild" }
                        p { "It is filled anew from the topics, by the SQL in " code { (app.settings.views.display()) } ", beside the live one, and then takes its place." }
                        label { input type="checkbox" name="accept_truncated" value="yes"; " Rows may be missing that only removed events describe" }
                        label { input type="checkbox" name="accept_compacted" value="yes"; " Rows may be missing of keys with dead letters" }
                        label for="rebuild-confirm" { "Type the view's name, " code { (view.name) } ", to confirm" }
                        input id="rebuild-confirm" name="confirm" required autocomplete="off";
                        button.danger type="submit" { "Rebuild" }
                    }
                    @if view.rebuild.is_some() {
                        form method="post" action=(address("abandon")) {
                            (shell.csrf())
                            h3 { "Abandon the rebuild" }
                            p { "What it has filled is dropped. The live view stays as it is." }
                            label for="abandon-confirm" { "Type the view's name, " code { (view.name) } ", to confirm" }
                            input id="abandon-confirm" name="confirm" required autocomplete="off";
                            button.danger type="submit" { "Abandon" }
                        }
                    }
                }
            }
        }
    }
}

async fn verify(State(app): State<App>, change: Change) -> Response {
    let action = Action {
        title: "Verify the views".to_owned(),
        command: CommandLine::new(Program::Verify, &["verify"]),
        probe: Probe::Letters(Vec::new()),
        reason: String::new(),
        back: "/views".to_owned(),
    };
    actions::perform(&app, &change.operator, action).await
}

async fn pause(State(app): State<App>, Path(name): Path<String>, change: Change) -> Result<Response, Refusal> {
    let reason = actions::reason_flag(change.fields.text("reason"))?;
    view_command(&app, &change, &name, "Pause", &["pause", &reason]).await
}

async fn resume(State(app): State<App>, Path(name): Path<String>, change: Change) -> Result<Response, Refusal> {
    view_command(&app, &change, &name, "Resume", &["resume"]).await
}

async fn rebuild(State(app): State<App>, Path(name): Path<String>, change: Change) -> Result<Response, Refusal> {
    change.fields.confirmed(&name)?;
    let mut arguments = vec!["rebuild"];
    for (field, flag) in [
        ("accept_truncated", "--accept-truncated"),
        ("accept_compacted", "--accept-compacted"),
    ] {
        if change.fields.text(field) == "yes" {
            arguments.push(flag);
        }
    }
    view_command(&app, &change, &name, "Rebuild", &arguments).await
}

async fn abandon(State(app): State<App>, Path(name): Path<String>, change: Change) -> Result<Response, Refusal> {
    change.fields.confirmed(&name)?;
    view_command(
        &app,
        &change,
        &name,
        "Abandon the rebuild of",
        &["rebuild", "--abandon"],
    )
    .await
}

/// Runs `view-builder` with these arguments and the view's name. Only a view that is known has commands.
async fn view_command(
    app: &App,
    change: &Change,
    name: &str,
    verb: &str,
    arguments: &[&str],
) -> Result<Response, Refusal> {
    let snapshot = app.store.snapshot();
    if snapshot
        .views
        .value
        .as_ref()
        .is_none_or(|facts| facts.view(name).is_none())
    {
        return Err(Refusal::Field(format!("there is no view `{name}`")));
    }
    let action = Action {
        title: format!("{verb} {name}"),
        command: CommandLine::new(Program::ViewBuilder, &[arguments, &[name]].concat()),
        probe: Probe::View(name.to_owned()),
        reason: change.fields.text("reason").to_owned(),
        back: format!("/views/{name}"),
    };
    Ok(actions::perform(app, &change.operator, action).await)
}
