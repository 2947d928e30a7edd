//! The rows that relays have put aside, on the page of the letters.

use maud::{Markup, html};

use crate::search::ReadError;
use crate::search::parked::{PARKING_TOPIC, ParkedRow, ParkedRows};
use crate::search::record::for_people;
use crate::web::layout::{Health, badge};
use crate::web::show;

pub(super) fn section(parked: Result<ParkedRows, ReadError>) -> Markup {
    html! {
        section aria-labelledby="parked" {
            h2 id="parked" { "Rows that relays have parked" }
            @match parked {
                Err(err) => { p.notice.bad role="alert" { "Nothing is known now: " (err) "." } }
                Ok(parked) => {
                    @if !parked.rows.is_empty() { (table(&parked)) (what_to_type()) }
                    (without_rows(&parked))
                }
            }
        }
    }
}

/// What is to be said beside the rows: that there are none, or that there are others.
fn without_rows(parked: &ParkedRows) -> Markup {
    html! {
        @if parked.not_understood > 0 {
            p { (badge(Health::Bad, "not understood")) " Entries of " code { (PARKING_TOPIC) } " that the console does not understand: " (show::count(parked.not_understood)) "." }
        }
        @if parked.is_cut_short {
            p { (badge(Health::Unknown, "not known")) " " code { (PARKING_TOPIC) } " has more than the page has read in time, so more rows may be parked." }
        } @else if parked.rows.is_empty() && parked.not_understood == 0 {
            p { (badge(Health::Good, "none")) " No row is parked in " code { (PARKING_TOPIC) } "." }
        }
    }
}

fn table(parked: &ParkedRows) -> Markup {
    let caption = format!("Rows of outboxes that are in no topic, from {PARKING_TOPIC}");
    html! {
        div.table-frame tabindex="0" role="region" aria-label=(caption) {
            table {
                caption { (caption) }
                thead {
                    tr {
                        th scope="col" { "Position" } th scope="col" { "Database and slot" } th scope="col" { "Event id" } th scope="col" { "Topic and key" }
                        th scope="col" { "Why" } th scope="col" { "Since" }
                    }
                }
                tbody { @for row in &parked.rows { (table_row(row)) } }
            }
        }
    }
}

fn table_row(row: &ParkedRow) -> Markup {
    let text = |text: Option<&String>| text.map_or_else(|| "not known".to_owned(), |text| for_people(text.as_bytes()));
    html! {
        tr {
            th scope="row" { code { (for_people(row.position.as_bytes())) } }
            td { (for_people(row.relay.as_bytes())) }
            td { code { (text(row.id.as_ref())) } }
            td { (text(row.topic.as_ref())) " " (text(row.key.as_ref())) }
            td { (badge(Health::Bad, because(&row.parked_because))) " " (for_people(row.reason.as_bytes())) }
            td { @if let Some(at) = show::moment_of_us(row.parked_us) { (show::moment(at)) } }
        }
    }
}

/// The relay's word for why, in ours.
fn because(word: &str) -> &'static str {
    match word {
        "poison" => "cannot be published",
        "behind" => "waits behind one of its key",
        "operator" => "by an operator",
        _ => "for another reason",
    }
}

/// The console has no buttons for them: the commands need the slot, so the relay has to be stopped first.
fn what_to_type() -> Markup {
    html! {
        p {
            "Stop the relay and its standbys first, because the commands need its slot. Then type " code { "outbox-relay parked retry --all" } " or "
            code { "outbox-relay parked discard POSITION" } ", and start the relay again."
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ParkedRows, without_rows};

    #[test]
    fn that_nothing_is_parked_is_said_only_after_all_was_read_and_understood() {
        let said = |not_understood, is_cut_short| {
            let parked = ParkedRows {
                rows: Vec::new(),
                not_understood,
                is_cut_short,
            };
            without_rows(&parked).into_string().contains("No row is parked")
        };
        assert!(said(0, false));
        assert!(!said(0, true));
        assert!(!said(1, false));
    }
}
