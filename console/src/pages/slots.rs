//! The page `/slots`: each slot with the WAL that is kept for it, and the relay that reads it.

use axum::Router;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::{get, post};
use maud::{Markup, html};

use super::parts;
use crate::actions::{self, Action, Probe};
use crate::app::App;
use crate::programs::{CommandLine, Program};
use crate::settings::Outbox;
use crate::snapshot::outbox::{OutboxFacts, SlotFacts};
use crate::snapshot::verdict;
use crate::snapshot::{OutboxParts, Snapshot};
use crate::web::access::{Change, Refusal};
use crate::web::layout::{self, Current, Shell};
use crate::web::{chart, show};

/// Its routes.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/slots", get(page))
        .route("/relays/{outbox}/check", post(check))
        .route("/relays/{outbox}/pause", post(pause))
        .route("/relays/{outbox}/resume", post(resume))
}

async fn page(State(app): State<App>, shell: Shell) -> Response {
    let snapshot = app.store.snapshot();
    let outboxes = || app.settings.pipeline.outboxes.iter().zip(&snapshot.outboxes);
    let content = html! {
        (layout::live("away", parts::away(&snapshot)))
        p.lead { "A slot makes Postgres keep its write-ahead log (WAL) until the relay has published it." }
        @for (setting, outbox) in outboxes() {
            section.lane {
                h2 { "Slot " (setting.slot) }
                (layout::live(&format!("slot-{}", setting.name), slot_card(setting, outbox, &snapshot)))
                (relay_actions(&shell, setting, outbox))
            }
        }
        (layout::live("other-slots", other_slots(&snapshot)))
        (parts::jobs(&app, "/slots"))
    };
    layout::page(&shell, "Slots", Current::Slots, content)
}

fn slot_card(setting: &Outbox, outbox: &OutboxParts, snapshot: &Snapshot) -> Markup {
    let verdict = verdict::of_slot(outbox, &setting.slot);
    let facts = outbox.database.value.as_ref();
    let content = match facts.and_then(|facts| Some((facts, facts.slot.as_ref()?))) {
        Some((facts, slot)) => slot_figures(facts, slot, outbox, snapshot),
        None => html! { p { "No figures of this slot." } },
    };
    html! {
        div.card {
            p { (parts::badge_of(&verdict)) " in " code { (setting.database.target.database) } }
            (parts::figures(&outbox.database, &content))
            (parts::advice(&verdict))
        }
    }
}

fn slot_figures(facts: &OutboxFacts, slot: &SlotFacts, outbox: &OutboxParts, snapshot: &Snapshot) -> Markup {
    let retained = snapshot.trends.of(&format!("retained/{}", outbox.name));
    html! {
        div.columns {
            div {
                p.big {
                    strong { (show::bytes(slot.retained_bytes)) } " "
                    span { "of WAL kept" @if let Some(limit) = facts.limit_bytes { ", the limit is " (show::bytes(limit)) } }
                }
                @if let Some(limit) = facts.limit_bytes.filter(|limit| *limit > 0) {
                    (chart::meter("WAL kept, of the limit", slot.retained_bytes as f64 / limit as f64))
                }
                (chart::trend("WAL kept", &retained, |bytes| show::bytes(bytes as i64)))
                p { (at_the_limit(facts, slot)) }
                p { strong { (safe_to_drop(slot)) } }
            }
            dl.wide {
                dt { "read by" } dd { @match slot.reader { Some(pid) => { "process " (pid) " of Postgres" } None => "nobody" } }
                dt { "end of the WAL" } dd { code { (facts.wal_end) } }
                dt { "confirmed_flush_lsn" } dd { code { (slot.confirmed_lsn) } " (" (show::bytes(slot.unconfirmed_bytes)) " before the end)" }
                dt { "restart_lsn" } dd { code { (slot.restart_lsn) } }
                dt { "wal_status" } dd { (slot.wal_status) " " span.quiet { (wal_status_text(&slot.wal_status)) } }
                dt { "may still be written" } dd { (may_still_be_written(slot)) }
                dt { "failover" } dd { (failover_text(slot)) }
                dt { "plugin" } dd { (slot.plugin) }
            }
        }
    }
}

/// What happens when the kept WAL meets its limit.
fn at_the_limit(facts: &OutboxFacts, slot: &SlotFacts) -> String {
    if slot.wal_status == "lost" {
        return "The slot is lost: Postgres has removed WAL that it needs. Rows that are still in the outbox can be published by `outbox-relay recover`.".to_owned();
    }
    match (facts.limit_bytes, slot.safe_bytes) {
        (None, _) => "max_slot_wal_keep_size sets no limit: if the relay is away for long, WAL grows until the server's disk is full, and then all writes fail.".to_owned(),
        (Some(_), Some(safe)) if safe > 0 => format!(
            "At the limit (max_slot_wal_keep_size) Postgres removes the WAL and the slot is lost; {} are left until then. Rows that are still in the outbox can be published by `outbox-relay recover`.",
            show::bytes(safe)
        ),
        (Some(_), _) => "The limit (max_slot_wal_keep_size) is reached: Postgres loses the slot at its next checkpoint. Rows that are still in the outbox can be published by `outbox-relay recover`.".to_owned(),
    }
}

/// How much WAL may be written until the slot is lost.
fn may_still_be_written(slot: &SlotFacts) -> String {
    match slot.safe_bytes {
        _ if slot.wal_status == "lost" => "nothing: the slot is lost".to_owned(),
        Some(bytes) => show::bytes(bytes),
        None => "no limit".to_owned(),
    }
}

/// Whether the slot may be dropped.
fn safe_to_drop(slot: &SlotFacts) -> String {
    if slot.reader.is_some() {
        "Not safe to drop: a relay reads it, and Postgres refuses.".to_owned()
    } else if slot.wal_status == "lost" {
        "It holds nothing any more; `outbox-relay recover` drops it and makes it anew.".to_owned()
    } else {
        "Not safe to drop: everything behind confirmed_flush_lsn that is not published would have to be found in the outbox table.".to_owned()
    }
}

fn wal_status_text(status: &str) -> &'static str {
    match status {
        "reserved" => "the WAL is within max_wal_size",
        "extended" => "more than max_wal_size is kept, and nothing is lost",
        "unreserved" => "it is lost at the next checkpoint",
        "lost" => "WAL that it needs is gone",
        _ => "",
    }
}

fn failover_text(slot: &SlotFacts) -> &'static str {
    match slot.is_failover {
        Some(_) if slot.is_synced => "this server is a standby, and the slot is a copy of the primary's",
        Some(true) => "standbys keep a copy: a promoted standby can go on",
        Some(false) => "no: after a promotion the slot is missing, and the relay stops",
        None => "PostgreSQL before 17 has none",
    }
}

fn relay_actions(shell: &Shell, setting: &Outbox, outbox: &OutboxParts) -> Markup {
    let verdict = verdict::of_relay(outbox);
    let is_paused = outbox.relay.value.as_ref().is_some_and(|relay| relay.is_paused);
    let address = |verb: &str| format!("/relays/{}/{verb}", setting.name);
    html! {
        div.card id=(format!("relay-{}", setting.name)) {
            h3 { "Relay " (setting.name) " " (parts::badge_of(&verdict)) }
            (parts::advice(&verdict))
            @if shell.may_change() {
                div.actions {
                    form method="post" action=(address("check")) {
                        (shell.csrf())
                        button type="submit" { "Check everything" }
                    }
                    @if is_paused {
                        form method="post" action=(address("resume")) {
                            (shell.csrf())
                            button.primary type="submit" { "Resume publishing" }
                        }
                    } @else {
                        form method="post" action=(address("pause")) {
                            (shell.csrf())
                            @let id = format!("reason-{}", setting.name);
                            label for=(id) { "Reason for a pause" }
                            input id=(id) name="reason" required maxlength="500";
                            button type="submit" { "Pause publishing" }
                        }
                    }
                }
                p.quiet { "While the relay is paused, it keeps the slot, and Postgres keeps all WAL." }
            } @else { (shell.why_no_buttons()) }
        }
    }
}

fn other_slots(snapshot: &Snapshot) -> Markup {
    let ours: Vec<&str> = snapshot
        .outboxes
        .iter()
        .filter_map(|outbox| Some(outbox.database.value.as_ref()?.slot.as_ref()?.name.as_str()))
        .collect();
    let mut others: Vec<&SlotFacts> = Vec::new();
    for slot in snapshot
        .outboxes
        .iter()
        .filter_map(|outbox| outbox.database.value.as_ref())
        .flat_map(|facts| &facts.other_slots)
    {
        if !ours.contains(&slot.name.as_str()) && !others.iter().any(|known| known.name == slot.name) {
            others.push(slot);
        }
    }
    html! {
        @if !others.is_empty() {
            div.card.scroll tabindex="0" role="region" aria-label="Other slots" {
                table {
                    caption { "Other slots of these servers, which this console knows nothing of" }
                    thead { tr { th scope="col" { "Slot" } th scope="col" { "Database" } th scope="col" { "Plugin" } th scope="col" { "Read" } th.number scope="col" { "WAL kept" } } }
                    tbody {
                        @for slot in others {
                            tr { th scope="row" { (slot.name) } td { (slot.database) } td { (slot.plugin) } td { (if slot.reader.is_some() { "yes" } else { "no" }) } td.number { (show::bytes(slot.retained_bytes)) } }
                        }
                    }
                }
            }
        }
    }
}

async fn check(State(app): State<App>, Path(outbox): Path<String>, change: Change) -> Response {
    relay_command(&app, change, &outbox, "Check", &["check"]).await
}

async fn pause(State(app): State<App>, Path(outbox): Path<String>, change: Change) -> Result<Response, Refusal> {
    let reason = actions::reason_flag(change.fields.text("reason"))?;
    Ok(relay_command(&app, change, &outbox, "Pause", &["pause", &reason]).await)
}

async fn resume(State(app): State<App>, Path(outbox): Path<String>, change: Change) -> Response {
    relay_command(&app, change, &outbox, "Resume", &["resume"]).await
}

async fn relay_command(app: &App, change: Change, outbox: &str, verb: &str, arguments: &[&str]) -> Response {
    let action = Action {
        title: format!("{verb} relay {outbox}"),
        command: CommandLine::new(
            Program::OutboxRelay {
                outbox: outbox.to_owned(),
            },
            arguments,
        ),
        probe: Probe::Relay(outbox.to_owned()),
        reason: change.fields.text("reason").to_owned(),
        back: "/slots".to_owned(),
    };
    actions::perform(app, &change.operator, action).await
}

#[cfg(test)]
mod tests {
    use super::{at_the_limit, may_still_be_written, safe_to_drop};
    use crate::snapshot::outbox::{OutboxFacts, SlotFacts};

    #[test]
    fn a_lost_slot_is_not_said_to_be_lost_later() {
        let slot = SlotFacts {
            name: "users_relay".to_owned(),
            plugin: "pgoutput".to_owned(),
            database: "users_db".to_owned(),
            reader: None,
            restart_lsn: String::new(),
            confirmed_lsn: "0/1".to_owned(),
            retained_bytes: 0,
            unconfirmed_bytes: 0,
            safe_bytes: None,
            wal_status: "lost".to_owned(),
            invalidation_reason: "wal_removed".to_owned(),
            is_failover: None,
            is_synced: false,
        };
        let facts = OutboxFacts {
            inserted: 0,
            insert_rate: None,
            rows: 0,
            wal_end: "0/1".to_owned(),
            limit_bytes: Some(1 << 30),
            slot: None,
            other_slots: Vec::new(),
        };
        assert!(at_the_limit(&facts, &slot).starts_with("The slot is lost"));
        assert_eq!(may_still_be_written(&slot), "nothing: the slot is lost");
        assert!(safe_to_drop(&slot).starts_with("It holds nothing"));
    }
}
