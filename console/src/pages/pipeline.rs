//! The page `/`: each stage of the way of an event, from the outbox to the views.

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use maud::{Markup, html};

use super::parts;
use crate::app::App;
use crate::settings::Outbox;
use crate::snapshot::verdict::{self, Health, Verdict};
use crate::snapshot::{OutboxParts, Snapshot};
use crate::web::layout::{self, Current, Shell};
use crate::web::{chart, show};

/// Its routes.
pub(super) fn routes() -> Router<App> {
    Router::new().route("/", get(page))
}

async fn page(State(app): State<App>, shell: Shell) -> Response {
    app.store.note_look();
    let snapshot = app.store.snapshot();
    let outboxes = app.settings.pipeline.outboxes.iter().zip(&snapshot.outboxes);
    let content = html! {
        (summary(&app, &snapshot))
        (parts::away(&snapshot))
        @for (setting, outbox) in outboxes {
            section.lane {
                h2 { "From outbox " em { (outbox.name) } }
                div.stages {
                    (outbox_card(setting, outbox, &snapshot))
                    (slot_card(setting, outbox, &snapshot))
                    (relay_card(outbox, &snapshot))
                    @for topic in &outbox.topics { (topic_card(topic, &snapshot)) }
                }
            }
        }
        section.lane {
            h2 { "Into the views" }
            div.stages { (builder_cards(&snapshot)) (view_cards(&snapshot)) }
        }
    };
    layout::page(&shell, "Pipeline", Current::Pipeline, layout::live("pipeline", content))
}

/// One sentence for the whole pipeline. Screen readers hear it when it changes.
fn summary(app: &App, snapshot: &Snapshot) -> Markup {
    let outboxes = app.settings.pipeline.outboxes.iter().zip(&snapshot.outboxes);
    let mut verdicts: Vec<(String, Verdict)> = Vec::new();
    for (setting, outbox) in outboxes {
        verdicts.push((format!("outbox {}", outbox.name), verdict::of_outbox(outbox)));
        verdicts.push((
            format!("slot {}", setting.slot),
            verdict::of_slot(outbox, &setting.slot),
        ));
        if setting.relay.is_some() {
            verdicts.push((outbox.relay.name.clone(), verdict::of_relay(outbox)));
        }
        verdicts.extend(
            outbox
                .topics
                .iter()
                .map(|topic| (format!("topic {topic}"), verdict::of_topic(snapshot, topic))),
        );
    }
    verdicts.extend(
        snapshot
            .builders
            .iter()
            .map(|builder| (builder.name.clone(), verdict::of_builder(snapshot, builder))),
    );
    let views = snapshot.views.value.iter().flat_map(|facts| &facts.views);
    verdicts.extend(views.map(|view| (format!("view {}", view.name), verdict::of_view(snapshot, view))));
    // Of several that are as bad, the first on the way of an event: the others may follow from it.
    let worst = verdicts.iter().rev().max_by_key(|(_, verdict)| verdict.health);
    html! {
        p.summary aria-live="polite" {
            @match worst {
                Some((name, verdict)) if verdict.health != Health::Good => {
                    (parts::badge_of(verdict)) " " strong { (name) }
                    @if !verdict.line.is_empty() { ": " (verdict.line) }
                    @let others = verdicts.iter().filter(|(_, verdict)| verdict.health != Health::Good).count() - 1;
                    @if others > 0 { span.quiet { " and " (others) " more" } }
                }
                _ => { (layout::badge(Health::Good, "all is well")) " every event is on its way, or in the views" }
            }
        }
    }
}

/// A stage: what it is, its figures, its verdict.
fn card(kind: &str, name: &str, verdict: &Verdict, content: &Markup) -> Markup {
    html! {
        article.card.stage {
            header {
                p.kind { (kind) }
                h3 { (name) }
                (parts::badge_of(verdict))
            }
            (content)
            (parts::advice(verdict))
        }
    }
}

fn big(value: &str, what: &str) -> Markup {
    html! { p.big { strong { (value) } " " span { (what) } } }
}

fn outbox_card(setting: &Outbox, outbox: &OutboxParts, snapshot: &Snapshot) -> Markup {
    let facts = outbox.database.value.as_ref();
    let content = html! {
        (big(&parts::rate(facts.and_then(|facts| facts.insert_rate)), "rows written"))
        (chart::trend("rows written", &snapshot.trends.of(&format!("insert/{}", outbox.name)), show::rate))
        @if let Some(facts) = facts {
            dl { dt { "rows in the table" } dd { "about " (show::count(facts.rows)) } }
        }
    };
    card(
        "outbox",
        &setting.table,
        &verdict::of_outbox(outbox),
        &parts::figures(&outbox.database, &content),
    )
}

fn slot_card(setting: &Outbox, outbox: &OutboxParts, snapshot: &Snapshot) -> Markup {
    let facts = outbox.database.value.as_ref();
    let slot = facts.and_then(|facts| facts.slot.as_ref());
    let content = html! {
        (big(&slot.map_or_else(|| "?".to_owned(), |slot| show::bytes(slot.unconfirmed_bytes)), "not confirmed"))
        (chart::trend("WAL not confirmed", &snapshot.trends.of(&format!("unconfirmed/{}", outbox.name)), |bytes| show::bytes(bytes as i64)))
        @if let Some(slot) = slot {
            dl {
                dt { "kept for it" }
                dd {
                    (show::bytes(slot.retained_bytes))
                    @if let Some(limit) = facts.and_then(|facts| facts.limit_bytes) { " of " (show::bytes(limit)) }
                }
            }
        }
        p { a href="/slots" { "All of the slot" } }
    };
    card(
        "slot",
        &setting.slot,
        &verdict::of_slot(outbox, &setting.slot),
        &parts::figures(&outbox.database, &content),
    )
}

fn relay_card(outbox: &OutboxParts, snapshot: &Snapshot) -> Markup {
    let facts = outbox.relay.value.as_ref();
    let content = html! {
        (big(&parts::rate(facts.and_then(|facts| facts.publish_rate)), "published"))
        (chart::trend("records published", &snapshot.trends.of(&format!("publish/{}", outbox.name)), show::rate))
        @if let Some(facts) = facts {
            dl {
                @if let Some(seconds) = facts.oldest_unpublished_seconds {
                    dt { "oldest not published" } dd { (show::seconds(seconds)) }
                }
                dt { "commit to Kafka" }
                dd {
                    @match facts.latency {
                        Some(latency) => { "p50 " (milliseconds(latency.p50)) ", p99 " (milliseconds(latency.p99)) }
                        None => { "no events lately" }
                    }
                }
                @if facts.parked_rows > 0.0 { dt { "parked rows" } dd { (show::count(facts.parked_rows as i64)) } }
            }
        }
    };
    card(
        "relay",
        &outbox.name,
        &verdict::of_relay(outbox),
        &parts::figures(&outbox.relay, &content),
    )
}

fn topic_card(topic: &str, snapshot: &Snapshot) -> Markup {
    let facts = snapshot.kafka.value.as_ref();
    let partitions = facts.and_then(|facts| facts.topics.get(topic));
    let content = html! {
        (big(&parts::rate(facts.and_then(|facts| facts.rates.get(topic).copied())), "into the topic"))
        (chart::trend("offsets into the topic", &snapshot.trends.of(&format!("topic/{topic}")), show::rate))
        @if let Some(partitions) = partitions {
            dl {
                dt { "partitions" } dd { (partitions.len()) }
                dt { "offsets" } dd { (show::count(partitions.iter().filter_map(|facts| Some(facts.end? - facts.beginning?)).sum::<i64>())) }
            }
        }
        p { a href=(format!("/events?topic={topic}")) { "Its events" } }
    };
    card(
        "topic",
        topic,
        &verdict::of_topic(snapshot, topic),
        &parts::figures(&snapshot.kafka, &content),
    )
}

fn builder_cards(snapshot: &Snapshot) -> Markup {
    html! {
        @for builder in &snapshot.builders {
            @let facts = builder.value.as_ref();
            @let applied = facts.filter(|facts| !facts.rates.is_empty()).map(|facts| facts.rates.values().sum::<f64>());
            @let content = html! {
                (big(&parts::rate(applied), "applied"))
                @if let Some(facts) = facts {
                    dl {
                        dt { "behind" }
                        dd { (show::count(facts.lag.values().map(|(events, _)| events).sum::<i64>())) " events" }
                        dt { "oldest of them" }
                        dd { (show::seconds(facts.lag.values().map(|(_, seconds)| *seconds).fold(0.0, f64::max))) }
                        dt { "commit to view" }
                        dd {
                            @match facts.latency {
                                Some(latency) => { "p50 " (milliseconds(latency.p50)) ", p99 " (milliseconds(latency.p99)) }
                                None => { "no events lately" }
                            }
                        }
                    }
                }
                p { a href="/groups" { "Lag by partition" } }
            };
            (card("view-builder", &builder.name, &verdict::of_builder(snapshot, builder), &parts::figures(builder, &content)))
        }
    }
}

fn view_cards(snapshot: &Snapshot) -> Markup {
    let views = snapshot.views.value.iter().flat_map(|facts| &facts.views);
    html! {
        @for view in views {
            @let lag = verdict::freshness(snapshot, view);
            @let content = html! {
                (big(&parts::lag_seconds(lag), "behind"))
                @for topic in &view.topics {
                    (chart::trend(&format!("age of {topic} in the view"), &snapshot.trends.of(&format!("age/{topic}")), show::seconds))
                }
                dl {
                    dt { "events behind" } dd { (parts::lag_events(lag)) }
                    @if let Some(rows) = view.rows() { dt { "rows" } dd { "about " (show::count(rows)) } }
                }
                p { a href=(format!("/views/{}", view.name)) { "Its SQL, rebuild, pause" } }
            };
            (card("view", &view.name, &verdict::of_view(snapshot, view), &parts::figures(&snapshot.views, &content)))
        }
    }
}

/// A short time: `12 ms`, `1.4 s`.
fn milliseconds(seconds: f64) -> String {
    if seconds < 1.0 {
        format!("{:.0} ms", seconds * 1000.0)
    } else {
        show::seconds(seconds)
    }
}
