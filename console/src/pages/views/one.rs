//! The page of one view: how fresh it is, its tables, its SQL.

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use maud::{Markup, html};

use super::changes;
use crate::app::App;
use crate::pages::parts;
use crate::snapshot::Snapshot;
use crate::snapshot::verdict;
use crate::snapshot::views::{Rebuild, ViewFacts};
use crate::web::layout::{self, Current, Shell};
use crate::web::{chart, show};

pub(super) fn routes() -> Router<App> {
    Router::new().route("/views/{name}", get(page))
}

async fn page(State(app): State<App>, Path(name): Path<String>, shell: Shell) -> Response {
    let snapshot = app.store.snapshot();
    let Some(view) = snapshot.views.value.as_ref().and_then(|facts| facts.view(&name)) else {
        let content = html! {
            (parts::away(&snapshot))
            p { "The views' database has told of no view of this name. " a href="/views" { "All views" } }
        };
        let status = if snapshot.views.fresh().is_some() {
            StatusCode::NOT_FOUND
        } else {
            StatusCode::OK
        };
        return layout::page_with(status, &shell, &name, Current::Views, &content);
    };
    let content = html! {
        (layout::live("away", parts::away(&snapshot)))
        @if !view.summary().is_empty() { p.lead { (view.summary()) } }
        (layout::live("figures", parts::figures(&snapshot.views, &figures(&snapshot, view))))
        (changes::forms(&app, &shell, view))
        (parts::jobs(&app, &format!("/views/{name}")))
        (sql(view))
    };
    layout::page(&shell, &view.name, Current::Views, content)
}

fn figures(snapshot: &Snapshot, view: &ViewFacts) -> Markup {
    let lag = verdict::freshness(snapshot, view);
    let verdict = verdict::of_view(snapshot, view);
    html! {
        div.card {
            p { (parts::badge_of(&verdict)) " keeps " (view.topics.join(", ")) }
            (parts::advice(&verdict))
            div.columns {
                div {
                    p.big { strong { (parts::lag_seconds(lag)) } " " span { "behind, " (parts::lag_events(lag)) " events" } }
                    @for topic in &view.topics {
                        (chart::trend(&format!("age of {topic}"), &snapshot.trends.of(&format!("age/{topic}")), show::seconds))
                    }
                }
                div.scroll tabindex="0" role="region" aria-label="Tables" {
                    table {
                        caption { "Its tables" }
                        thead { tr { th scope="col" { "Table" } th.number scope="col" { "Rows, about" } th.number scope="col" { "With indexes" } } }
                        tbody {
                            @for table in &view.tables {
                                tr { th scope="row" { (table.name) } td.number { (show::count(table.rows)) } td.number { (show::bytes(table.bytes)) } }
                            }
                        }
                    }
                }
            }
            dl {
                dt { "text of its SQL" } dd { "number " (view.replaced + 1) }
                @if let Some(pause) = &view.pause { dt { "paused" } dd { "by " (pause.by) ", " (show::moment(pause.since)) } }
            }
            @if let Some(rebuild) = &view.rebuild { (progress(snapshot, view, rebuild)) }
        }
    }
}

fn progress(snapshot: &Snapshot, view: &ViewFacts, rebuild: &Rebuild) -> Markup {
    let kafka = snapshot.kafka.value.as_ref();
    let all: Option<i64> = view.topics.iter().map(|topic| kafka?.end_of_topic(topic)).sum();
    html! {
        h3 { "Rebuild" }
        p {
            "Generation " code { (rebuild.generation) } " is being filled since " (show::moment(rebuild.started_at)) ": "
            strong { (show::count(rebuild.filled)) } @if let Some(all) = all { " of " (show::count(all)) } " offsets."
        }
        @if let Some(all) = all.filter(|all| *all > 0) { (chart::meter("filled", rebuild.filled as f64 / all as f64)) }
        p.quiet { "If nothing fills it, the rebuild was interrupted: begin it again, and it goes on." }
    }
}

fn sql(view: &ViewFacts) -> Markup {
    html! {
        section.card {
            h2 { "Its SQL, as the builders apply it" }
            h3 { "apply.sql" }
            pre.sql tabindex="0" aria-label="apply.sql" { (view.apply_sql) }
            details { summary { "table.sql" } pre.sql { (view.table_sql) } }
        }
    }
}
