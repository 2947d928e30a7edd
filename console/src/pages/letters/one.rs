//! One letter: its event, what waits behind it, and what can be done.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use maud::{Markup, html};

use super::{behind, event_link, not_known, state, table};
use crate::app::App;
use crate::letters::{self, Letter, WholeLetter};
use crate::pages::events::record;
use crate::search::record::for_people;
use crate::web::layout::{self, Current, Shell};
use crate::web::show;

pub(super) async fn show_letter(State(app): State<App>, shell: Shell, Path(id): Path<i64>) -> Response {
    let database = app.databases.views();
    let title = format!("Dead letter {id}");
    let (status, content) = match letters::find(database, id).await {
        Err(err) => (StatusCode::SERVICE_UNAVAILABLE, not_known(&err)),
        Ok(None) => {
            let content = html! {
                p { "There is no letter " (id) ". It was applied since, or never was. " a href="/letters" { "All letters" } "." }
            };
            (StatusCode::NOT_FOUND, content)
        }
        Ok(Some(whole)) => {
            let behind = letters::behind(database, &whole.letter).await;
            let content = html! {
                (facts(&whole))
                (what_to_do(&shell, &whole.letter))
                section aria-labelledby="behind" {
                    h2 id="behind" { "What waits behind it" }
                    @match behind {
                        Err(err) => { (not_known(&err)) }
                        Ok(behind) if behind.is_empty() => { p { "Nothing waits behind it." } }
                        Ok(behind) => { (table("Later events of the same key, in their order", &behind)) }
                    }
                }
                section aria-labelledby="event" {
                    h2 id="event" { "The event" }
                    (record::headers(&whole.headers))
                    h3 { "Value" }
                    (record::value(Some(&whole.value), &app.settings.pipeline.mask))
                }
            };
            (StatusCode::OK, content)
        }
    };
    layout::page_with(status, &shell, &title, Current::Letters, &content)
}

fn facts(whole: &WholeLetter) -> Markup {
    let letter = &whole.letter;
    html! {
        dl.facts {
            dt { "State" } dd { (state(letter)) }
            dt { "Event" } dd { (event_link(letter)) }
            dt { "Key" } dd { code { (for_people(letter.key.as_deref().unwrap_or_default())) } }
            dt { "Waiting behind it" } dd { (behind(letter)) }
            dt { "Time of the record" } dd { @if let Some(at) = whole.record_time { (show::moment(at)) } @else { "none" } }
            dt { "Letter since" } dd { (show::moment(letter.arrived_at)) }
            dt { "Tried again in vain" } dd { (letter.retries) }
            @if let Some(at) = letter.discarded_at { dt { "Discarded" } dd { (show::moment(at)) } }
        }
    }
}

fn what_to_do(shell: &Shell, letter: &Letter) -> Markup {
    html! {
        section aria-labelledby="do" {
            h2 id="do" { "What to do" }
            @if letter.discarded_at.is_some() {
                p { "It was given up for good: a replay does not bring it back." }
            } @else if let Some(first) = letter.first {
                p { "Another letter of its key comes first: " a href={ "/letters/" (first) } { "letter " (first) } ". When that one is applied or discarded, this one follows by itself." }
            } @else if shell.may_change() {
                (retry_form(shell, letter))
                (discard_form(shell, letter))
                p.quiet {
                    "The event cannot be edited and retried. It is what has happened, and other readers have it as it is. To correct it, write a new event by the service that it is of, "
                    "or mend the view so that it takes this one."
                }
            } @else { (shell.why_no_buttons()) }
        }
    }
}

fn retry_form(shell: &Shell, letter: &Letter) -> Markup {
    html! {
        form method="post" action="/letters/retry" {
            (shell.csrf())
            input type="hidden" name="id" value=(letter.id);
            p.actions { button type="submit" { "Retry" } span.quiet { " as " code { "view-builder dead-letters retry " (letter.id) } ": applies it, and what waits behind it" } }
        }
    }
}

fn discard_form(shell: &Shell, letter: &Letter) -> Markup {
    html! {
        details {
            summary { "Discard it" }
            form.search method="post" action="/letters/discard" {
                (shell.csrf())
                input type="hidden" name="id" value=(letter.id);
                fieldset {
                    legend { "Give it up for good" }
                    label { span { "Why (kept with the letter, and in the audit)" } input type="text" name="reason" required maxlength="500" autocomplete="off"; }
                    label { span { "Type the letter's number, " (letter.id) ", to confirm" } input type="text" inputmode="numeric" name="confirm" required autocomplete="off"; }
                }
                p { "No view will ever have it, also not by a replay. What waits behind it is applied at once." }
                p.actions { button.danger type="submit" { "Discard letter " (letter.id) } }
            }
        }
    }
}
