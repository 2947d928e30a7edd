//! The form of a search. It is sent by GET, so the address of a result can be sent to somebody else.

use maud::{Markup, html};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::search::request::{COUNT_DEFAULT, COUNT_MAX, Form, SECONDS_DEFAULT, SECONDS_MAX};

/// A text of the form: its name, its label, what may stand there, and what stands there.
struct Text<'f> {
    name: &'static str,
    label: &'static str,
    example: &'static str,
    value: &'f str,
}

pub(super) fn fields(form: &Form, topics: &[&str]) -> Markup {
    let what = [
        text("key", "Key", "7", &form.key),
        text("id", "Event id", "8f1a2b3c-0000-4000-8000-000000000001", &form.id),
        text("header", "Header", "eventType=USER_CREATED", &form.header),
        text("field", "Field of the value", "user.status=ACTIVE", &form.field),
    ];
    let whence = [
        text(
            "from",
            "From a time (UTC) or an age",
            "2026-11-25 08:00, or 15m",
            &form.from,
        ),
        text("partition", "Only partition", "3", &form.partition),
        text("offset", "From an offset", "1000", &form.offset),
        text("position", "From a position", "16/B374D848:0", &form.position),
    ];
    html! {
        form.search method="get" action="/events" role="search" {
            fieldset {
                legend { "What" }
                label {
                    span { "Topic" }
                    select name="topic" {
                        @for topic in topics { option value=(topic) selected[*topic == form.topic] { (topic) } }
                    }
                }
                @for text in &what { (input(text)) }
            }
            fieldset {
                legend { "Where" }
                @for text in &whence { (input(text)) }
                label {
                    span { "Order" }
                    select name="order" {
                        option value="" selected[form.order.is_empty()] { "newest first; oldest from a place" }
                        option value="newest" selected[form.order == "newest"] { "newest first" }
                        option value="oldest" selected[form.order == "oldest"] { "oldest first" }
                    }
                }
                label {
                    span { "Stop after (records)" }
                    input type="number" name="n" min="1" max=(COUNT_MAX) value=(form.n) placeholder=(COUNT_DEFAULT);
                }
                label {
                    span { "Look for (seconds)" }
                    input type="number" name="seconds" min="1" max=(SECONDS_MAX) value=(form.seconds) placeholder=(SECONDS_DEFAULT);
                }
            }
            p.actions { button type="submit" { "Search" } " " a href="/events" { "Clear" } }
        }
    }
}

fn text<'f>(name: &'static str, label: &'static str, example: &'static str, value: &'f str) -> Text<'f> {
    Text {
        name,
        label,
        example,
        value,
    }
}

fn input(text: &Text<'_>) -> Markup {
    html! {
        label {
            span { (text.label) }
            input type="text" name=(text.name) value=(text.value) placeholder=(text.example) autocomplete="off" spellcheck="false";
        }
    }
}

/// The address of the same search from the place `at` on.
pub(super) fn address_with(form: &Form, at: &str) -> String {
    format!(
        "/events?{}",
        query(&Form {
            at: at.to_owned(),
            ..form.clone()
        })
    )
}

/// The fields that say something, as the query of an address.
pub(super) fn query(form: &Form) -> String {
    let fields = [
        ("topic", &form.topic),
        ("key", &form.key),
        ("id", &form.id),
        ("header", &form.header),
        ("field", &form.field),
        ("from", &form.from),
        ("partition", &form.partition),
        ("offset", &form.offset),
        ("position", &form.position),
        ("order", &form.order),
        ("n", &form.n),
        ("seconds", &form.seconds),
        ("at", &form.at),
    ];
    let given = fields.iter().filter(|(_, value)| !value.is_empty());
    let pairs = given.map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)));
    pairs.collect::<Vec<_>>().join("&")
}
