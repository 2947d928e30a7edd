//! The page `/jobs/{number}`: a command that runs or has run, and what it prints.

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Redirect, Response};
use axum::routing::{get, post};
use maud::html;

use super::parts;
use crate::app::App;
use crate::programs::JobState;
use crate::web::access::Change;
use crate::web::layout::{self, Current, Shell};
use crate::web::show;

/// Its routes.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/jobs/{number}", get(page))
        .route("/jobs/{number}/stop", post(stop))
}

async fn page(State(app): State<App>, Path(number): Path<u64>, shell: Shell) -> Response {
    let Some(job) = app.jobs.find(number) else {
        let content =
            html! { p { "There is no such command any more. " a href="/audit" { "The audit" } " has all of them." } };
        return layout::page_with(
            StatusCode::NOT_FOUND,
            &shell,
            "No such command",
            Current::Other,
            &content,
        );
    };
    let state = job.state();
    let output = job.output();
    let content = html! {
        div.card {
            p { code { (job.command.for_people()) } }
            p role="status" {
                (parts::job_badge(state)) " begun by " (job.person) " " (show::moment(job.began_at))
                @if let JobState::Ended { at, .. } = state { ", ended " (show::moment(at)) }
            }
            @if output.is_empty() {
                p.quiet { @if state == JobState::Running { "It has printed nothing yet." } @else { "It has printed nothing." } }
            } @else {
                pre.output tabindex="0" aria-label="What the command prints" { (output) }
            }
        }
    };
    let content = html! {
        @if state == JobState::Running { (layout::live("job", content)) } @else { div id="job" { (content) } }
        @if state == JobState::Running && shell.may_change() {
            form method="post" action=(format!("/jobs/{number}/stop")) {
                (shell.csrf())
                button.danger type="submit" { "Stop the command" }
            }
        }
        p {
            @if state == JobState::Running { a.button href=(format!("/jobs/{number}")) { "Look again" } " " }
            a.button href=(job.back) { "Back" }
        }
    };
    layout::page(&shell, &job.title, Current::Other, content)
}

/// Asks the command to stop. Its row in the audit tells who has wanted it, by the command's output.
async fn stop(State(app): State<App>, Path(number): Path<u64>, change: Change) -> Response {
    if let Some(job) = app.jobs.find(number) {
        job.stop(&format!("{} stops it", change.operator.name));
        tracing::info!(person = change.operator.name, number, "a command is to stop");
    }
    Redirect::to(&format!("/jobs/{number}")).into_response()
}
