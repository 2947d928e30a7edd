//! How a record is shown: as a row among others, and in full.
//!
//! Whatever a record holds is text here. maud escapes it, and [`for_people`] writes what cannot be seen as its code.

use events::Position;
use maud::{Markup, html};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::search::Record;
use crate::search::record::{Header, ID_HEADER, TYPE_HEADER, for_people};
use crate::settings::mask::Mask;
use crate::web::show;

/// A row shows so many characters of a value.
const PREVIEW_CHARS: usize = 160;
/// A key or header in a row is cut after so many characters.
const CELL_CHARS: usize = 80;

/// Records as a table.
pub(in crate::pages) fn table(caption: &str, records: &[Record], mask: &Mask) -> Markup {
    html! {
        div.table-frame tabindex="0" role="region" aria-label=(caption) {
            table.records {
                caption { (caption) }
                (head())
                tbody { @for record in records { (row(record, mask)) } }
            }
        }
    }
}

/// The head of a table of records.
pub(super) fn head() -> Markup {
    html! {
        thead {
            tr {
                th scope="col" { "Place" }
                th scope="col" { "Time" }
                th scope="col" { "Key" }
                th scope="col" { "Type" }
                th scope="col" { "Value" }
                th scope="col" { "Way" }
            }
        }
    }
}

/// One record as a row.
pub(super) fn row(record: &Record, mask: &Mask) -> Markup {
    html! {
        tr {
            th scope="row" { a href=(address(record)) { (record.partition) "/" (record.offset) } }
            td { (time_of(record)) }
            td { (cell(record.key.as_deref())) }
            td { (cell(record.header(TYPE_HEADER))) }
            td.preview { (preview(record.value.as_deref(), mask)) }
            td { a href=(trace_address(record)) { "Trace" span.unseen { " of " (record.partition) "/" (record.offset) } } }
        }
    }
}

/// The link to one record, for a colleague.
pub(in crate::pages) fn address(record: &Record) -> String {
    address_of(&record.topic, record.partition, record.offset)
}

/// The link to the record at a place.
pub(in crate::pages) fn address_of(topic: &str, partition: i32, offset: i64) -> String {
    format!(
        "/events/{}/{partition}/{offset}",
        utf8_percent_encode(topic, NON_ALPHANUMERIC)
    )
}

fn trace_address(record: &Record) -> String {
    trace_address_of(&record.topic, record.partition, record.offset)
}

/// The link to the way of the record at a place.
pub(in crate::pages) fn trace_address_of(topic: &str, partition: i32, offset: i64) -> String {
    let topic = utf8_percent_encode(topic, NON_ALPHANUMERIC);
    format!("/trace?topic={topic}&partition={partition}&offset={offset}")
}

/// When the record says that it was made.
pub(in crate::pages) fn time_of(record: &Record) -> Markup {
    let at = record
        .timestamp_ms
        .and_then(|ms| show::moment_of_us(ms.saturating_mul(1_000)));
    html! { @if let Some(at) = at { (show::moment(at)) } @else { "no time" } }
}

fn cell(bytes: Option<&[u8]>) -> Markup {
    html! {
        @match bytes {
            None => { span.quiet { "none" } }
            Some(bytes) => { (cut(&for_people(bytes), CELL_CHARS)) }
        }
    }
}

fn preview(value: Option<&[u8]>, mask: &Mask) -> Markup {
    let Some(value) = value else {
        return html! { span.quiet { "no value (a tombstone)" } };
    };
    let shown = match serde_json::from_slice::<serde_json::Value>(value) {
        Ok(mut value) => {
            mask.hide(&mut value);
            value.to_string()
        }
        Err(_) => mask.show(value),
    };
    html! { code { (cut(&for_people(shown.as_bytes()), PREVIEW_CHARS)) } }
}

fn cut(text: &str, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(chars_max - 1).collect();
    cut.push('…');
    cut
}

/// Everything that a record has.
pub(in crate::pages) fn whole(record: &Record, mask: &Mask) -> Markup {
    html! {
        dl.facts {
            dt { "Topic" } dd { (record.topic) }
            dt { "Partition and offset" } dd { (record.partition) " / " (record.offset) }
            dt { "Time of the record" } dd { (time_of(record)) }
            dt { "Key" } dd { (text_or_none(record.key.as_deref())) }
            @if let Some(position) = record.position() { (position_facts(&position)) }
        }
        (headers(&record.headers))
        h2 { "Value" }
        (value(record.value.as_deref(), mask))
    }
}

/// The parts of a position header.
fn position_facts(position: &Position) -> Markup {
    let lsn = format!(
        "{:X}/{:X}",
        position.commit_lsn >> 32,
        position.commit_lsn & 0xFFFF_FFFF
    );
    html! {
        dt { "Commit LSN" } dd { code { (lsn) } " (the place of the commit in the write-ahead log)" }
        dt { "Index in the transaction" } dd { (show::count(position.index)) }
        dt { "Committed" }
        dd { @if let Some(at) = show::moment_of_us(position.commit_timestamp_us) { (show::moment(at)) } @else { "at no time that there is" } }
    }
}

fn text_or_none(bytes: Option<&[u8]>) -> Markup {
    html! {
        @match bytes {
            None => { span.quiet { "none" } }
            Some(bytes) => { code { (for_people(bytes)) } }
        }
    }
}

/// Headers, decoded.
pub(in crate::pages) fn headers(headers: &[Header]) -> Markup {
    html! {
        @if headers.is_empty() {
            p { "The record has no headers." }
        } @else {
            div.table-frame tabindex="0" role="region" aria-label="Headers" {
                table {
                    caption { "Headers" }
                    thead { tr { th scope="col" { "Name" } th scope="col" { "Value" } th scope="col" { "Meaning" } } }
                    tbody {
                        @for header in headers {
                            tr {
                                th scope="row" { (for_people(&header.name)) }
                                td { (text_or_none(header.value.as_deref())) }
                                td { (meaning(&header.name)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// What the relay means by a header.
fn meaning(name: &[u8]) -> &'static str {
    match std::str::from_utf8(name) {
        Ok(ID_HEADER) => "the event's id, from the outbox row",
        Ok(TYPE_HEADER) => "the event's type, from the outbox row",
        Ok(events::POSITION_HEADER) => "commit LSN, index, and the commit's time in microseconds",
        Ok("replay") => "this record was published again by a replay of this id",
        Ok("parked") => "the row was parked first, and published by a retry",
        _ => "",
    }
}

/// A value for people, without the fields that are masked.
pub(in crate::pages) fn value(value: Option<&[u8]>, mask: &Mask) -> Markup {
    html! {
        @match value {
            None => { p { "The record has no value: it is a tombstone, which says that the key's earlier records may go." } }
            Some(value) => { pre.value tabindex="0" { code { (for_people(mask.show(value).as_bytes())) } } }
        }
    }
}
