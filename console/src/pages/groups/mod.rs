//! The page `/groups`: how far the views' group is in each partition.

mod replay;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use maud::{Markup, html};

use super::parts;
use crate::app::App;
use crate::snapshot::Snapshot;
use crate::snapshot::kafka::PartitionFacts;
use crate::web::layout::{self, Current, Health, Shell, badge};
use crate::web::{chart, show};

/// Its routes.
pub(super) fn routes() -> Router<App> {
    Router::new().route("/groups", get(page)).merge(replay::routes())
}

async fn page(State(app): State<App>, shell: Shell) -> Response {
    let snapshot = app.store.snapshot();
    let topics = app.settings.pipeline.topics();
    let content = html! {
        (layout::live("away", parts::away(&snapshot)))
        p.lead {
            "The builders of the views are the consumer group " code { (app.settings.pipeline.views.group) }
            ". Their positions are in the views' database, in the same transaction as the views."
        }
        @for topic in &topics {
            section.lane {
                h2 { "Topic " (topic) }
                (layout::live(&format!("lag-{topic}"), lag_of_topic(topic, &snapshot)))
            }
        }
        (replay::form(&app, &shell, &topics))
        (parts::jobs(&app, "/groups"))
    };
    layout::page(&shell, "Groups", Current::Groups, content)
}

fn lag_of_topic(topic: &str, snapshot: &Snapshot) -> Markup {
    let lag = snapshot.lag_of_topic(topic);
    let partitions = snapshot.kafka.value.as_ref().and_then(|kafka| kafka.topics.get(topic));
    let figures = html! {
        div.columns {
            div {
                p.big { strong { (parts::lag_seconds(lag)) } " " span { "behind" } }
                (chart::trend("seconds behind", &snapshot.trends.of(&format!("age/{topic}")), show::seconds))
            }
            div {
                p.big { strong { (parts::lag_events(lag)) } " " span { "events behind, " (parts::rate(snapshot.applied_rate(topic))) " applied" } }
                (chart::trend("events behind", &snapshot.trends.of(&format!("lag/{topic}")), |events| show::count(events as i64)))
            }
        }
    };
    html! {
        div.card {
            (parts::figures(&snapshot.kafka, &parts::figures(&snapshot.views, &figures)))
            @if let Some(partitions) = partitions {
                div.scroll tabindex="0" role="region" aria-label=(format!("Partitions of {topic}")) {
                    table {
                        caption { "Partitions of " (topic) }
                        thead {
                            tr {
                                th.number scope="col" { "Partition" } th.number scope="col" { "Position" } th.number scope="col" { "End" }
                                th.number scope="col" { "Behind" } th.number scope="col" { "Oldest" } th scope="col" { "State" } th scope="col" { "Owner" }
                            }
                        }
                        tbody { @for facts in partitions { (partition(topic, facts, snapshot)) } }
                    }
                }
            } @else {
                p { "Kafka has not told of the partitions of this topic." }
            }
        }
    }
}

fn partition(topic: &str, facts: &PartitionFacts, snapshot: &Snapshot) -> Markup {
    let lag = snapshot.lag(topic, facts.partition);
    let position = snapshot
        .views
        .value
        .as_ref()
        .and_then(|views| views.position(topic, facts.partition));
    html! {
        tr {
            th.number scope="row" { (facts.partition) }
            td.number { (position.map_or_else(|| "?".to_owned(), |position| show::count(position.replay_at.unwrap_or(position.applied_up_to)))) }
            td.number { (facts.end.map_or_else(|| "?".to_owned(), show::count)) }
            td.number { (parts::lag_events(lag)) }
            td.number { (parts::lag_seconds(lag)) }
            td {
                @match (position.and_then(|position| position.paused.as_ref()), facts.why) {
                    (Some(paused), _) => { (badge(Health::Bad, "paused")) " " (paused) }
                    (None, Some(why)) => { (badge(Health::Bad, "away")) " " (why) }
                    (None, None) if !snapshot.is_read(topic, facts.partition) => (badge(Health::Unknown, "no builder tells of it")),
                    (None, None) => {
                        (badge(Health::Good, "read"))
                        @if position.is_some_and(|position| position.replay_at.is_some()) { " once more, from this position on" }
                    }
                }
            }
            td.quiet { @if let Some(position) = position { (position.owner) ", epoch " (position.epoch) } }
        }
    }
}
