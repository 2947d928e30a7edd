//! The page `/audit`: who has changed what.

use axum::Router;
use axum::extract::{Query, State};
use axum::response::Response;
use axum::routing::get;
use maud::{Markup, html};
use serde::Deserialize;

use crate::actions::audit::{self, Written};
use crate::app::App;
use crate::snapshot::verdict::Health;
use crate::web::layout::{self, Current, Shell, badge};
use crate::web::show;

/// Its routes.
pub(super) fn routes() -> Router<App> {
    Router::new().route("/audit", get(page))
}

/// Rows of one page.
const ROWS: i64 = 50;

#[derive(Deserialize)]
struct Asked {
    before: Option<i64>,
}

async fn page(State(app): State<App>, Query(asked): Query<Asked>, shell: Shell) -> Response {
    let read = audit::read(app.databases.views(), asked.before, ROWS).await;
    let content = match read {
        Ok(rows) => table(&rows),
        Err(err) => html! {
            p.away role="status" { strong { (app.store.snapshot().views.name) } " does not give the audit now: " (err) }
        },
    };
    layout::page(&shell, "Audit", Current::Audit, content)
}

fn table(rows: &[Written]) -> Markup {
    html! {
        p.lead { "Every change that was made here, the newest first. A row is written before its command begins." }
        @if rows.is_empty() {
            p.card { "Nobody has changed anything here yet." }
        } @else {
            div.card.scroll tabindex="0" role="region" aria-label="Changes" {
                table {
                    caption { "Changes, the newest first" }
                    thead { tr { th scope="col" { "When" } th scope="col" { "Who" } th scope="col" { "What" } th scope="col" { "Outcome" } th scope="col" { "Before and after" } } }
                    tbody { @for row in rows { (line(row)) } }
                }
            }
            @if let Some(last) = rows.last().filter(|_| rows.len() as i64 == ROWS) {
                p { a.button href=(format!("/audit?before={}", last.id)) { "Earlier changes" } }
            }
        }
    }
}

fn line(row: &Written) -> Markup {
    html! {
        tr id=(format!("change-{}", row.id)) {
            td { (show::moment(row.at)) }
            td { (row.who) }
            td {
                (row.action) br; code { (row.command) }
                @if !row.reason.is_empty() { br; span.quiet { "Reason: " (row.reason) } }
            }
            td {
                @match (row.ended_at, row.exit_code) {
                    (None, _) => (badge(Health::Unknown, "no end known")),
                    (Some(_), Some(0)) => (badge(Health::Good, "done")),
                    (Some(_), Some(code)) => (badge(Health::Bad, &format!("exit code {code}"))),
                    (Some(_), None) => (badge(Health::Bad, "did not end by itself")),
                }
                @if let Some(output) = row.output.as_deref().filter(|output| !output.is_empty()) {
                    details { summary { "What it printed" } pre.output { (output) } }
                }
            }
            td {
                details {
                    summary { "Show" }
                    p { "Before" } pre { (pretty(&row.before)) }
                    @if let Some(after) = &row.after { p { "After" } pre { (pretty(after)) } }
                }
            }
        }
    }
}

fn pretty(value: &serde_json::Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}
