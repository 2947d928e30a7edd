//! The pages `/views` and `/views/{name}`.

mod changes;
mod one;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use maud::{Markup, html};

use super::parts;
use crate::app::App;
use crate::snapshot::Snapshot;
use crate::snapshot::verdict;
use crate::web::layout::{self, Current, Shell};
use crate::web::show;

/// Their routes.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/views", get(page))
        .merge(one::routes())
        .merge(changes::routes())
}

async fn page(State(app): State<App>, shell: Shell) -> Response {
    let snapshot = app.store.snapshot();
    let content = html! {
        (layout::live("away", parts::away(&snapshot)))
        p.lead { "A view is a table that events keep. How old is what you see: the column “behind”." }
        (layout::live("views", table(&snapshot)))
        (changes::verify_form(&app, &shell))
        (parts::jobs(&app, "/views"))
    };
    layout::page(&shell, "Views", Current::Views, content)
}

fn table(snapshot: &Snapshot) -> Markup {
    let Some(facts) = snapshot.views.value.as_ref() else {
        return html! { p.card { "Nothing is known of the views yet." } };
    };
    let content = html! {
        @if !facts.is_made {
            p.card { "No builder has made its tables here yet: start " code { "view-builder run" } "." }
        } @else {
            div.card.scroll tabindex="0" role="region" aria-label="Views" {
                table {
                    caption { "Views" }
                    thead {
                        tr {
                            th scope="col" { "View" } th scope="col" { "State" } th.number scope="col" { "Behind" } th.number scope="col" { "Events behind" }
                            th.number scope="col" { "Rows" } th scope="col" { "SQL" } th scope="col" { "Topics" }
                        }
                    }
                    tbody {
                        @for view in &facts.views {
                            @let lag = verdict::freshness(snapshot, view);
                            @let verdict = verdict::of_view(snapshot, view);
                            tr {
                                th scope="row" { a href=(format!("/views/{}", view.name)) { (view.name) } br; span.quiet { (view.summary()) } }
                                td { (parts::badge_of(&verdict)) @if !verdict.line.is_empty() { br; (verdict.line) } }
                                td.number { (parts::lag_seconds(lag)) }
                                td.number { (parts::lag_events(lag)) }
                                td.number { @match view.rows() { Some(rows) => { "about " (show::count(rows)) } None => "?" } }
                                td { "text " (view.replaced + 1) @if view.rebuild.is_some() { ", being rebuilt" } }
                                td { (view.topics.join(", ")) }
                            }
                        }
                    }
                }
            }
            @for line in facts.stuck.iter().chain(&facts.notices) { p.advice { (parts::sentence(line)) } }
        }
    };
    parts::figures(&snapshot.views, &content)
}
