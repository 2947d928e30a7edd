//! One record by its link.

use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use maud::{Markup, html};

use super::record;
use crate::app::App;
use crate::search::{ReadError, Record};
use crate::web::layout::{self, Current, Shell};

/// From the request until the page says that Kafka does not answer.
const TIME_LIMIT: Duration = Duration::from_millis(900);

pub(super) async fn show_record(
    State(app): State<App>,
    shell: Shell,
    Path((topic, partition, offset)): Path<(String, i32, i64)>,
) -> Response {
    if !app.settings.pipeline.topics().contains(&topic.as_str()) {
        let content = html! { p { "The console shows the topics of its settings, and this one is none of them." } };
        return layout::page_with(
            StatusCode::NOT_FOUND,
            &shell,
            "No such topic",
            Current::Events,
            &content,
        );
    }
    let name = topic.clone();
    let read = app
        .readers
        .run(TIME_LIMIT, move |reader| reader.record_at(&name, partition, offset))
        .await;
    let (status, content) = answer(&app, &topic, partition, offset, read);
    let title = format!("Record {partition}/{offset} of {topic}");
    layout::page_with(status, &shell, &title, Current::Events, &content)
}

fn answer(
    app: &App,
    topic: &str,
    partition: i32,
    offset: i64,
    read: Result<Option<Record>, ReadError>,
) -> (StatusCode, Markup) {
    match read {
        Ok(Some(record)) if record.offset == offset => {
            let content = html! {
                p.actions {
                    a href=(record::trace_address_of(topic, partition, offset)) { "Trace its way" }
                    @if offset > 0 { " · " a href=(place_address(topic, partition, offset - 1, "newest")) { "Records before it" } }
                    " · " a href=(place_address(topic, partition, offset + 1, "oldest")) { "Records after it" }
                }
                (record::whole(&record, &app.settings.pipeline.mask))
            };
            (StatusCode::OK, content)
        }
        Ok(next) => {
            let content = html! {
                p {
                    "Nothing can be read at this offset. It is the end of a transaction, or compaction or the topic's retention has removed the record, or the "
                    "partition does not reach so far."
                }
                @if let Some(next) = next {
                    p { "The next record of the partition is " a href=(record::address(&next)) { (next.partition) "/" (next.offset) } "." }
                }
            };
            (StatusCode::NOT_FOUND, content)
        }
        Err(err) => {
            let content = html! { p.notice.bad role="alert" { "The record cannot be shown: " (err) "." } };
            (StatusCode::SERVICE_UNAVAILABLE, content)
        }
    }
}

fn place_address(topic: &str, partition: i32, offset: i64, order: &str) -> String {
    format!("/events?topic={topic}&partition={partition}&offset={offset}&order={order}")
}
