//! The pages `/events` and `/events/{topic}/{partition}/{offset}`: what is in the topics, one record by its link, and a topic as it grows.

mod form;
mod one;
pub(in crate::pages) mod record;
mod tail;

use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use maud::{Markup, html};
use time::OffsetDateTime;

use crate::app::App;
use crate::pages::parts;
use crate::search::request::{Form, Order, Request};
use crate::search::scan::{End, Found};
use crate::search::{ReadError, Searched, search};
use crate::web::layout::{self, Current, Shell};
use crate::web::show;

/// Before and after the search itself, Kafka is asked where partitions begin and end.
const BEYOND_TIME_LIMIT: Duration = Duration::from_secs(2);

/// How long the page waits for its first events when it is opened.
const OPENING_MAX: Duration = Duration::from_millis(700);

/// Its routes.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/events", get(list))
        .route("/events/tail", get(tail::follow))
        .route("/events/{topic}/{partition}/{offset}", get(one::show_record))
}

async fn list(State(app): State<App>, shell: Shell, Query(form): Query<Form>) -> Response {
    let pipeline = &app.settings.pipeline;
    let topics = pipeline.topics();
    let request = match form.check(&topics, &pipeline.mask, OffsetDateTime::now_utc()) {
        Ok(request) => request,
        Err(wrong) => {
            let content = html! {
                (form::fields(&form, &topics))
                div.notice.bad role="alert" {
                    p { "Nothing was searched." }
                    ul { @for line in &wrong { li { (line) } } }
                }
            };
            return layout::page_with(
                StatusCode::UNPROCESSABLE_ENTITY,
                &shell,
                "Events",
                Current::Events,
                &content,
            );
        }
    };
    // Whoever only opens the page has asked for nothing yet, and gets the form at once, whatever is away.
    let is_opened = !shell.address.contains('?');
    let snapshot = app.store.snapshot();
    if snapshot.kafka.away.is_some() {
        let content = html! { (parts::away(&snapshot)) (form::fields(&form, &topics)) p.notice { "Nothing can be searched while Kafka is away." } };
        let status = if is_opened {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        return layout::page_with(status, &shell, "Events", Current::Events, &content);
    }
    let limit = if is_opened {
        OPENING_MAX
    } else {
        request.time_limit + BEYOND_TIME_LIMIT
    };
    let asked = request.clone();
    let searched = app.readers.run(limit, move |reader| search(reader, &asked)).await;
    let status = match &searched {
        Ok(_) => StatusCode::OK,
        Err(_) if is_opened => StatusCode::OK,
        Err(ReadError::Busy) => StatusCode::TOO_MANY_REQUESTS,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    let content = html! {
        (form::fields(&form, &topics))
        @match &searched {
            Ok(Searched::Found(found)) => { (result(&app, &form, &request, found)) }
            Ok(Searched::NoTopic) => { p.notice { "Kafka has no topic " code { (request.topic) } " yet. The relay makes it when it is initialised." } }
            Ok(Searched::NoPartition(count)) => { p.notice { "The topic has the partitions 0 to " (count - 1) "." } }
            Err(err) => { p.notice.bad role="alert" { "Nothing was found out: " (err) "." } }
        }
        (tail::section(&form, &request))
    };
    layout::page_with(status, &shell, "Events", Current::Events, &content)
}

/// What was found, and how far was looked.
fn result(app: &App, form: &Form, request: &Request, found: &Found) -> Markup {
    html! {
        p.result role="status" {
            strong { (show::count(found.records.len())) @if found.records.len() == 1 { " record" } @else { " records" } }
            ". " (looked(request, found))
            @if let Some(next) = &found.next {
                " " a href=(form::address_with(form, &next.to_string())) { "Go on from there" } "."
            }
        }
        @if !found.records.is_empty() {
            (record::table(&caption(request), &found.records, &app.settings.pipeline.mask))
        } @else if found.end == End::Complete {
            p { "No record is like this." }
        }
    }
}

fn caption(request: &Request) -> String {
    let order = match request.order {
        Order::NewestFirst => "the newest first",
        Order::OldestFirst => "the oldest first",
    };
    format!("Records of {}, {order}", request.topic)
}

/// How far the search looked, in a sentence.
fn looked(request: &Request, found: &Found) -> Markup {
    let at = found
        .looked_up_to_ms
        .and_then(|ms| show::moment_of_us(ms.saturating_mul(1_000)));
    html! {
        @match found.end {
            End::Complete => { "All " (show::count(found.looked_at)) " records were looked at." }
            End::Enough => { "The search stopped when it had these. It looked at " (show::count(found.looked_at)) " records" (up_to(request, at)) "." }
            End::TimeOver => {
                "The time of " (request.time_limit.as_secs()) " s was over. The search looked at " (show::count(found.looked_at)) " records" (up_to(request, at))
                ", and there may be more like these."
            }
        }
    }
}

fn up_to(request: &Request, at: Option<OffsetDateTime>) -> Markup {
    html! {
        @if let Some(at) = at {
            @match request.order {
                Order::NewestFirst => { ", back to " (show::moment(at)) }
                Order::OldestFirst => { ", up to " (show::moment(at)) }
            }
        }
    }
}
