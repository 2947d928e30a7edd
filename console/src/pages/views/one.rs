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
use crate::snapshot::kafka::KafkaFacts;
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
    let share = snapshot
        .kafka
        .value
        .as_ref()
        .and_then(|kafka| filled_share(kafka, view, rebuild));
    html! {
        h3 { "Rebuild" }
        p {
            "Generation " code { (rebuild.generation) } " is being filled since " (show::moment(rebuild.started_at)) ": "
            @match share {
                Some((filled, all)) => { strong { (show::count(filled)) } " of " (show::count(all)) " offsets." }
                None => "nobody knows how far."
            }
        }
        @if let Some((filled, all)) = share.filter(|(_, all)| *all > 0) { (chart::meter("filled", filled as f64 / all as f64)) }
        p.quiet { "If nothing fills it, the rebuild was interrupted: begin it again, and it goes on." }
    }
}

/// How many of the offsets that the topics have now it is filled with, and how many they have. `None`: Kafka does not tell now.
fn filled_share(kafka: &KafkaFacts, view: &ViewFacts, rebuild: &Rebuild) -> Option<(i64, i64)> {
    let (mut filled, mut all) = (0, 0);
    for topic in &view.topics {
        for facts in kafka.topics.get(topic)? {
            let (beginning, end) = facts.beginning.zip(facts.end)?;
            let place = (topic.clone(), facts.partition);
            let up_to = rebuild.filled.get(&place).copied().unwrap_or(beginning);
            filled += up_to.min(end).saturating_sub(beginning).max(0);
            all += end - beginning;
        }
    }
    Some((filled, all))
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::filled_share;
    use crate::snapshot::kafka::{KafkaFacts, PartitionFacts};
    use crate::snapshot::views::{Rebuild, ViewFacts};

    #[test]
    fn events_that_the_topic_has_no_more_are_not_of_a_rebuilds_share() {
        let partition = |partition, beginning, end| PartitionFacts {
            partition,
            beginning: Some(beginning),
            end: Some(end),
            why: None,
        };
        let kafka = KafkaFacts {
            topics: BTreeMap::from([("t".to_owned(), vec![partition(0, 100, 200), partition(1, 50, 60)])]),
            rates: BTreeMap::new(),
        };
        let mut view = ViewFacts {
            name: "v".to_owned(),
            topics: vec!["t".to_owned()],
            table_sql: String::new(),
            apply_sql: String::new(),
            replaced: 0,
            pause: None,
            rebuild: None,
            tables: Vec::new(),
        };
        let rebuild = Rebuild {
            generation: "v_2".to_owned(),
            started_at: time::OffsetDateTime::now_utc(),
            filled: BTreeMap::from([(("t".to_owned(), 0), 120)]),
        };
        assert_eq!(filled_share(&kafka, &view, &rebuild), Some((20, 110)));
        view.topics.push("gone".to_owned());
        assert_eq!(filled_share(&kafka, &view, &rebuild), None);
    }
}
