//! The steps of an event's way, each with its time and how long after the step before it was.

use maud::{Markup, html};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use time::OffsetDateTime;

use crate::pages::events::record;
use crate::search::Record;
use crate::search::parked::ParkedRow;
use crate::search::record::for_people;
use crate::settings::mask::Mask;
use crate::trace::{Ask, OutboxRow, RecordStep, RowStep, State, Trace, ViewRowNow, ViewState};
use crate::web::layout::{Health, badge};
use crate::web::show;

/// The whole way.
pub(super) fn way(ask: &Ask, trace: &Trace, mask: &Mask) -> Markup {
    let record = match &trace.record {
        RecordStep::Found(record) => Some(record),
        _ => None,
    };
    let committed = committed_at(trace);
    html! {
        p.result role="status" { (headline(ask, trace)) }
        ol.way {
            li { h2 { "Outbox row" } (row_step(trace)) }
            li { h2 { "Commit" } (commit_step(trace, committed)) }
            li { h2 { "Record in the topic" } (record_step(ask, trace, committed)) }
            li { h2 { "Views" } (views_step(trace, committed)) }
        }
        @if let Some(record) = record {
            section aria-label="The event" { (record::headers(&record.headers)) h2 { "Value" } (record::value(record.value.as_deref(), mask)) }
        }
    }
}

/// Where the event is now, in a sentence.
fn headline(ask: &Ask, trace: &Trace) -> Markup {
    let what = match ask {
        Ask::Id(id) => format!("Event {}", for_people(id.as_bytes())),
        Ask::Place {
            topic,
            partition,
            offset,
        } => format!("Record {partition}/{offset} of {topic}"),
        Ask::Key { topic, key } => format!("The latest event of key {} in {topic}", for_people(key.as_bytes())),
    };
    let (health, word) = match &trace.record {
        RecordStep::Found(_) => reached(trace),
        RecordStep::Parked(_) => (Health::Bad, "parked by the relay"),
        RecordStep::NotFound(_) => (Health::Warning, "not found in its topic"),
        RecordStep::Unknown(_) => (Health::Unknown, "not known now"),
    };
    html! { (badge(health, word)) " " (what) }
}

fn reached(trace: &Trace) -> (Health, &'static str) {
    let Ok(views) = &trace.views else {
        return (Health::Unknown, "published; the views do not answer");
    };
    let any = |is_like: fn(&State) -> bool| views.iter().any(|view| is_like(&view.state));
    if any(|state| matches!(state, State::Dead { .. })) {
        (Health::Bad, "a dead letter")
    } else if any(|state| matches!(state, State::Parked { .. })) {
        (Health::Bad, "waits behind a dead letter")
    } else if any(|state| matches!(state, State::Discarded { .. })) {
        (Health::Warning, "discarded")
    } else if any(|state| matches!(state, State::ViewPaused(_) | State::PartitionPaused(_))) {
        (Health::Warning, "waits for something paused")
    } else if any(|state| matches!(state, State::Waiting(_) | State::Unread)) {
        (Health::Warning, "published, on its way to the views")
    } else if views.is_empty() {
        (Health::Good, "published; no view reads this topic")
    } else {
        (Health::Good, "in all views")
    }
}

/// When the event's transaction committed: as the record says, or as the database does.
fn committed_at(trace: &Trace) -> Option<OffsetDateTime> {
    let of_record = match &trace.record {
        RecordStep::Found(record) => record.position().map(|position| position.commit_timestamp_us),
        RecordStep::Parked(row) => Some(row.committed_us),
        _ => None,
    };
    let of_row = match &trace.row {
        RowStep::Found(row) => row.committed_at,
        _ => None,
    };
    of_record.and_then(show::moment_of_us).or(of_row)
}

fn row_step(trace: &Trace) -> Markup {
    html! {
        @match &trace.row {
            RowStep::Found(row) => { (row_facts(trace, row)) }
            RowStep::Gone(names) => {
                p { (badge(Health::Unknown, "no row")) " The outbox " (names.join(" and ")) " has no row of this id: it was removed after it was published, as rows are after a while, or it never was." }
            }
            RowStep::Unknown(why) => { p { (badge(Health::Unknown, "not known")) " " (why) "." } }
        }
    }
}

fn row_facts(trace: &Trace, row: &OutboxRow) -> Markup {
    html! {
        dl.facts {
            @if let Some(outbox) = &trace.outbox { dt { "Outbox" } dd { (outbox) } }
            dt { "Id" } dd { code { (for_people(row.id.as_bytes())) } }
            dt { "Aggregate" } dd { (for_people(row.aggregate_type.as_bytes())) " " code { (for_people(row.aggregate_id.as_bytes())) } }
            dt { "Type" } dd { (for_people(row.event_type.as_bytes())) }
            dt { "Written" } dd { (show::moment(row.created_at)) }
        }
    }
}

fn commit_step(trace: &Trace, committed: Option<OffsetDateTime>) -> Markup {
    let position = match &trace.record {
        RecordStep::Found(record) => record.position(),
        _ => None,
    };
    let created = match &trace.row {
        RowStep::Found(row) => Some(row.created_at),
        _ => None,
    };
    html! {
        dl.facts {
            @if let Some(position) = position {
                dt { "Commit LSN and index" }
                dd { code { (format!("{:X}/{:X}", position.commit_lsn >> 32, position.commit_lsn & 0xFFFF_FFFF)) } " index " (show::count(position.index)) }
            } @else if let RecordStep::Parked(row) = &trace.record {
                dt { "Commit LSN and index" } dd { code { (for_people(row.position.as_bytes())) } }
            }
            dt { "Committed" }
            dd {
                @match committed {
                    Some(at) => { (show::moment(at)) @if let Some(created) = created { " " (after(created, at, "the row was written")) } }
                    None => { "not known: neither the record nor the database says so" }
                }
            }
        }
    }
}

fn record_step(ask: &Ask, trace: &Trace, committed: Option<OffsetDateTime>) -> Markup {
    html! {
        @match &trace.record {
            RecordStep::Found(record) => { (record_facts(record, committed)) }
            RecordStep::Parked(row) => { (parked(row)) }
            RecordStep::NotFound(why) => { p { (badge(Health::Warning, "not found")) " " (why) } (search_links(ask, trace)) }
            RecordStep::Unknown(why) => { p { (badge(Health::Unknown, "not known")) " " (why) "." } }
        }
    }
}

fn record_facts(record: &Record, committed: Option<OffsetDateTime>) -> Markup {
    let at = record
        .timestamp_ms
        .and_then(|ms| show::moment_of_us(ms.saturating_mul(1_000)));
    // The relay gives a record the time of its commit, cut to milliseconds. Another time is the broker's.
    let is_of_commit = at
        .zip(committed)
        .is_some_and(|(at, committed)| (0..1_000_000).contains(&(committed - at).whole_nanoseconds()));
    html! {
        dl.facts {
            dt { "Topic" } dd { (record.topic) }
            dt { "Partition and offset" } dd { a href=(record::address(record)) { (record.partition) "/" (record.offset) } }
            dt { "Key" } dd { code { (for_people(record.key.as_deref().unwrap_or_default())) } }
            dt { "Time of the record" }
            dd {
                (record::time_of(record))
                @if is_of_commit {
                    " – the time of the commit, as the relay sets it. Kafka keeps no time of its own for it, so when it was published is only known to lie between commit and view."
                } @else if let (Some(at), Some(committed)) = (at, committed) {
                    " " (after(committed, at, "the commit"))
                }
            }
        }
    }
}

fn parked(row: &ParkedRow) -> Markup {
    html! {
        p { (badge(Health::Bad, "parked")) " The relay has put the row aside, so it is in no topic." }
        dl.facts {
            dt { "Why" } dd { (for_people(row.reason.as_bytes())) }
            @if let Some(at) = show::moment_of_us(row.parked_us) { dt { "Parked" } dd { (show::moment(at)) } }
            dt { "Type, with the relay stopped" } dd { code { "outbox-relay parked retry " (for_people(row.position.as_bytes())) } }
        }
    }
}

/// Searches that go further than a trace.
fn search_links(ask: &Ask, trace: &Trace) -> Markup {
    let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let search = match (ask, &trace.row) {
        (_, RowStep::Found(row)) => Some((
            format!(
                "/events?id={}&from={}&order=oldest&seconds=30",
                encoded(&row.id),
                encoded(&machine_time(row.created_at))
            ),
            "Search by the id from the time of the row on",
        )),
        (Ask::Id(id), _) => Some((
            format!("/events?id={}&seconds=30", encoded(id)),
            "Search the topic by the id",
        )),
        (Ask::Key { topic, key }, _) => Some((
            format!("/events?topic={}&key={}&seconds=30", encoded(topic), encoded(key)),
            "Search the topic by the key",
        )),
        (
            Ask::Place {
                topic,
                partition,
                offset,
            },
            _,
        ) => Some((
            format!("/events?topic={}&partition={partition}&offset={offset}", encoded(topic)),
            "Show what comes behind this offset",
        )),
    };
    html! { @if let Some((address, text)) = search { p { a href=(address) { (text) } } } }
}

fn machine_time(at: OffsetDateTime) -> String {
    at.format(&time::format_description::well_known::Rfc3339)
        .unwrap_or_default()
}

fn views_step(trace: &Trace, committed: Option<OffsetDateTime>) -> Markup {
    html! {
        @match &trace.views {
            Err(why) => { p { (badge(Health::Unknown, "not known")) " " (why) "." } }
            Ok(views) if views.is_empty() && matches!(trace.record, RecordStep::Found(_)) => { p { "No view reads this topic." } }
            Ok(views) if views.is_empty() => { p { "Without a record there is nothing in a view." } }
            Ok(views) => { (views_table(views, committed)) }
        }
    }
}

fn views_table(views: &[ViewState], committed: Option<OffsetDateTime>) -> Markup {
    html! {
        div.table-frame tabindex="0" role="region" aria-label="What each view has made of the event" {
            table {
                caption { "What each view has made of the event" }
                thead { tr { th scope="col" { "View" } th scope="col" { "State" } th scope="col" { "When" } th scope="col" { "Row of the key now" } } }
                tbody {
                    @for view in views {
                        tr {
                            th scope="row" { a href={ "/views/" (utf8_percent_encode(&view.view, NON_ALPHANUMERIC)) } { (view.view) } }
                            td {
                                (state(&view.state))
                                @if view.is_of_replay { ". Views had applied it before a replay: those keep it, a view that is new or was changed lacks it" }
                            }
                            td { (when(view, committed)) }
                            td { @if let Some(row) = &view.row { (row_now(row)) } @else { span.quiet { "no table named in the settings" } } }
                        }
                    }
                }
            }
        }
    }
}

fn state(state: &State) -> Markup {
    html! {
        @match state {
            State::Applied => { (badge(Health::Good, "applied")) " the view's position is above it" }
            State::AppliedAndReplayed => { (badge(Health::Good, "applied")) " and a replay will apply it again" }
            State::Waiting(offsets) => { (badge(Health::Warning, "waiting")) " " (show::count(*offsets)) @if *offsets == 1 { " offset" } @else { " offsets" } " to go, this one included" }
            State::Unread => { (badge(Health::Warning, "waiting")) " no builder has read the partition yet" }
            State::Dead { letter, reason, retries, .. } => {
                (badge(Health::Bad, "dead letter")) " " a href={ "/letters/" (letter) } { "letter " (letter) } ": " (for_people(reason.as_bytes()))
                @if *retries > 0 { " (tried again " (retries) " times)" }
            }
            State::Parked { letter, first, .. } => {
                (badge(Health::Bad, "parked")) " as " a href={ "/letters/" (letter) } { "letter " (letter) }
                @if let Some(first) = first { ", behind " a href={ "/letters/" (first) } { "letter " (first) } " of the same key" }
            }
            State::Discarded { letter, reason, .. } => {
                (badge(Health::Warning, "discarded")) " " a href={ "/letters/" (letter) } { "letter " (letter) }
                @if let Some(reason) = reason { ": " (for_people(reason.as_bytes())) }
            }
            State::ViewPaused(reason) => { (badge(Health::Warning, "view paused")) " " (for_people(reason.as_bytes())) }
            State::PartitionPaused(reason) => { (badge(Health::Warning, "partition paused")) " " (for_people(reason.as_bytes())) }
        }
    }
}

/// When the view took the event up, or put it aside.
fn when(view: &ViewState, committed: Option<OffsetDateTime>) -> Markup {
    let at = match &view.state {
        State::Dead { at, .. } | State::Parked { at, .. } | State::Discarded { at, .. } => Some(*at),
        _ => view
            .row
            .as_ref()
            .filter(|row| row.is_of_this_event)
            .and_then(|row| row.applied),
    };
    html! {
        @match at {
            Some(at) => { (show::moment(at)) @if let Some(committed) = committed { " " (after(committed, at, "the commit")) } }
            None if matches!(view.state, State::Applied | State::AppliedAndReplayed) => {
                span.quiet {
                    @match &view.row {
                        Some(row) if row.version.is_none() => { "not kept: the view has no row of the key now" }
                        Some(row) if !row.is_of_this_event => { "not kept: another event of the key has been applied since" }
                        _ => { "not kept by this view" }
                    }
                }
            }
            None => { "not yet" }
        }
    }
}

fn row_now(row: &ViewRowNow) -> Markup {
    html! {
        code { (row.table) } " "
        @match row.version {
            None => { "has no row of the key" }
            Some(version) if row.is_of_this_event => { "has version " (version) ", which is this event" }
            Some(version) => { "has version " (version) }
        }
    }
}

/// How long after a step another one was.
fn after(before: OffsetDateTime, at: OffsetDateTime, what: &str) -> Markup {
    let us = (at - before).whole_microseconds();
    html! {
        span.step-time {
            @if us < 0 { (length(-us)) " before " (what) " (by clocks that differ)" } @else { (length(us)) " after " (what) }
        }
    }
}

/// Microseconds with a unit that people would choose.
fn length(us: i128) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{}.{} ms", us / 1_000, us % 1_000 / 100),
        _ => show::seconds(us as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::length;

    #[test]
    fn a_short_time_has_a_short_unit() {
        assert_eq!([7, 2_940, 812_345].map(length), ["7 µs", "2.9 ms", "812.3 ms"]);
        assert_eq!(length(3_200_000), "3.2 s");
    }
}
