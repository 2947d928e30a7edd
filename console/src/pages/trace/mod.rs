//! The page `/trace`: one event's way from the outbox row to each view's row.

mod steps;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use maud::{Markup, html};
use serde::Deserialize;

use crate::app::App;
use crate::trace::{Ask, Sources};
use crate::web::layout::{self, Current, Shell};

/// The fields of the three forms, as they were typed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Form {
    id: String,
    topic: String,
    key: String,
    partition: String,
    offset: String,
}

/// Its routes.
pub(super) fn routes() -> Router<App> {
    Router::new().route("/trace", get(show))
}

async fn show(State(app): State<App>, shell: Shell, Query(form): Query<Form>) -> Response {
    let topics = app.settings.pipeline.topics();
    let ask = match ask_of(&form, &topics) {
        Ok(Some(ask)) => ask,
        Ok(None) => return layout::page(&shell, "Trace", Current::Trace, forms(&form, &topics)),
        Err(wrong) => {
            let content = html! {
                (forms(&form, &topics))
                p.notice.bad role="alert" { (wrong) }
            };
            return layout::page_with(
                StatusCode::UNPROCESSABLE_ENTITY,
                &shell,
                "Trace",
                Current::Trace,
                &content,
            );
        }
    };
    let snapshot = app.store.snapshot();
    let sources = Sources {
        pipeline: &app.settings.pipeline,
        databases: &app.databases,
        readers: &app.readers,
        snapshot: &snapshot,
    };
    let trace = sources.trace(&ask).await;
    let content = html! {
        (steps::way(&ask, &trace, &app.settings.pipeline.mask))
        (forms(&form, &topics))
    };
    layout::page(&shell, "Trace", Current::Trace, content)
}

/// What the form asks for. None: nothing yet.
///
/// # Errors
/// Says what is missing or wrong.
fn ask_of(form: &Form, topics: &[&str]) -> Result<Option<Ask>, String> {
    let id = form.id.trim();
    if !id.is_empty() {
        return Ok(Some(Ask::Id(id.to_owned())));
    }
    if form.key.is_empty() && form.partition.is_empty() && form.offset.is_empty() {
        return Ok(None);
    }
    let topic = match form.topic.as_str() {
        "" => topics.first().copied().unwrap_or_default(),
        topic if topics.contains(&topic) => topic,
        _ => return Err(format!("Topic: expected one of {}.", topics.join(", "))),
    };
    if !form.key.is_empty() {
        return Ok(Some(Ask::Key {
            topic: topic.to_owned(),
            key: form.key.clone(),
        }));
    }
    let partition: Option<i32> = form.partition.trim().parse().ok().filter(|number| *number >= 0);
    let offset: Option<i64> = form.offset.trim().parse().ok().filter(|number| *number >= 0);
    match (partition, offset) {
        (Some(partition), Some(offset)) => Ok(Some(Ask::Place {
            topic: topic.to_owned(),
            partition,
            offset,
        })),
        _ => Err("Partition and offset: expected two numbers from 0.".to_owned()),
    }
}

fn forms(form: &Form, topics: &[&str]) -> Markup {
    let topic = html! {
        label {
            span { "Topic" }
            select name="topic" { @for topic in topics { option value=(topic) selected[*topic == form.topic] { (topic) } } }
        }
    };
    html! {
        h2 { "Follow an event" }
        div.forms {
            form.search method="get" action="/trace" {
                fieldset {
                    legend { "By its id" }
                    label { span { "Event id" } input type="text" name="id" value=(form.id) required placeholder="8f1a2b3c-0000-4000-8000-000000000001" autocomplete="off" spellcheck="false"; }
                }
                p.actions { button type="submit" { "Trace the event" } }
            }
            form.search method="get" action="/trace" {
                fieldset {
                    legend { "The latest of a key" }
                    (topic)
                    label { span { "Key" } input type="text" name="key" value=(form.key) required placeholder="7" autocomplete="off" spellcheck="false"; }
                }
                p.actions { button type="submit" { "Trace the latest" } }
            }
            form.search method="get" action="/trace" {
                fieldset {
                    legend { "A record" }
                    (topic)
                    label { span { "Partition" } input type="text" inputmode="numeric" name="partition" value=(form.partition) required placeholder="3"; }
                    label { span { "Offset" } input type="text" inputmode="numeric" name="offset" value=(form.offset) required placeholder="1000"; }
                }
                p.actions { button type="submit" { "Trace the record" } }
            }
        }
        details {
            summary { "How a trace finds an event" }
            p {
                "The outbox row is found by its primary key. Its commit time and key lead to the record: Kafka has an index of times, the relay gives each record the time of "
                "its commit, and all records of a key are in one partition. The record's place leads to the views' positions and dead letters."
            }
            p {
                "The latest event of a key is found by the view's row, which has the event's version and time, and by the records behind the views' position."
            }
            p {
                "When the outbox row is gone, its id alone leads nowhere: trace the event by its place or key, or search the topic by the id."
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Form, ask_of};
    use crate::trace::Ask;

    #[test]
    fn a_trace_needs_an_id_or_a_key_or_a_whole_place() {
        let topics = ["user-events", "post-events"];
        let ask = |form: Form| ask_of(&form, &topics);
        let form = |key: &str, partition: &str, offset: &str| Form {
            key: key.to_owned(),
            partition: partition.to_owned(),
            offset: offset.to_owned(),
            ..Form::default()
        };
        assert_eq!(ask(Form::default()), Ok(None));
        assert_eq!(
            ask(Form {
                id: " x ".to_owned(),
                ..Form::default()
            }),
            Ok(Some(Ask::Id("x".to_owned())))
        );
        let key = Ask::Key {
            topic: "user-events".to_owned(),
            key: "7".to_owned(),
        };
        assert_eq!(ask(form("7", "", "")), Ok(Some(key)));
        let place = Ask::Place {
            topic: "user-events".to_owned(),
            partition: 3,
            offset: 9,
        };
        assert_eq!(ask(form("", "3", "9")), Ok(Some(place)));
        for wrong in [form("", "3", ""), form("", "x", "9"), form("", "-1", "9")] {
            assert!(ask(wrong).is_err());
        }
        assert!(
            ask(Form {
                topic: "secrets".to_owned(),
                ..form("7", "", "")
            })
            .is_err()
        );
    }
}
