//! The pages `/letters` and `/letters/{id}`: what could not be applied, what waits behind it, and what can be done.

mod changes;
mod one;
mod parked;

use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::response::Response;
use axum::routing::{get, post};
use maud::{Markup, html};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use crate::app::App;
use crate::letters::{self, After, BEHIND_MAX, LETTERS_MAX, Letter, ReasonCount, Which};
use crate::pages::events::record;
use crate::pages::parts;
use crate::postgres::SqlError;
use crate::search::parked::read;
use crate::search::record::for_people;
use crate::web::layout::{self, Current, Health, Shell, badge};
use crate::web::show;

/// The parking topic is read for so long at most.
const PARKED_LIMIT: Duration = Duration::from_millis(600);

/// Which letters the page shows.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Form {
    which: String,
    reason: String,
    topic: String,
    partition: i32,
    offset: i64,
}

/// Their routes.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/letters", get(list))
        .route("/letters/retry", post(changes::retry))
        .route("/letters/discard", post(changes::discard))
        .route("/letters/{id}", get(one::show_letter))
}

async fn list(State(app): State<App>, shell: Shell, Query(form): Query<Form>) -> Response {
    let (which, database) = (Which::named(&form.which), app.databases.views());
    let reason = (!form.reason.is_empty()).then_some(form.reason.as_str());
    let after = After {
        topic: form.topic.clone(),
        partition: form.partition,
        offset: form.offset,
    };
    let (counts, former, found, parked) = tokio::join!(
        letters::count_by_reason(database),
        letters::count_former(database),
        letters::list(database, which, reason, &after),
        app.readers.run(PARKED_LIMIT, read)
    );
    let content = html! {
        (parts::away(&app.store.snapshot()))
        p.quiet {
            "An event that a view cannot take becomes a dead letter. Later events of its key wait behind it, all others go on. A letter is retried once its cause is mended, or it is "
            "given up. An event cannot be edited: it is what has happened, and other readers have it too. To correct it, write a new event by the service that it is of."
        }
        section aria-labelledby="reasons" {
            h2 id="reasons" { "Reasons" }
            (reasons(&shell, counts, former.as_ref().ok().copied()))
            (former_waiting(former))
        }
        section aria-labelledby="letters" {
            h2 id="letters" { "Letters" }
            (choices(which))
            @if let Some(reason) = reason { p { "Only those of the reason “" (for_people(reason.as_bytes())) "”. " a href="/letters" { "Show all" } "." } }
            (letters_table(&form, which, found))
        }
        (parked::section(parked))
    };
    layout::page(&shell, "Dead letters", Current::Letters, content)
}

/// `former` is how many letters of former topics wait, where that is known.
fn reasons(shell: &Shell, counts: Result<Vec<ReasonCount>, SqlError>, former: Option<i64>) -> Markup {
    let counts = match counts {
        Ok(counts) => counts,
        Err(err) => return not_known(&err),
    };
    if counts.is_empty() {
        return html! {
            p {
                @if former == Some(0) { (badge(Health::Good, "none")) " No event waits." }
                @else { "No event of the topics that there are now waits." }
            }
        };
    }
    html! {
        div.table-frame tabindex="0" role="region" aria-label="Letters by reason" {
            table {
                caption { "How many letters wait, by reason" }
                thead { tr { th scope="col" { "Reason" } th.number scope="col" { "Letters" } th scope="col" { "Oldest" } th scope="col" { "Mend" } } }
                tbody { @for count in &counts { (reason_row(shell, count)) } }
            }
        }
        @if shell.may_change() {
            form method="post" action="/letters/retry" {
                (shell.csrf())
                input type="hidden" name="all" value="yes";
                p.actions { button type="submit" { "Retry all letters" } span.quiet { " as " code { "view-builder dead-letters retry --all" } } }
            }
        } @else { (shell.why_no_buttons()) }
    }
}

/// A retry leaves these letters out, so they are told by themselves.
fn former_waiting(former: Result<i64, SqlError>) -> Markup {
    html! {
        @match former {
            Err(err) => { (not_known(&err)) }
            Ok(0) => {}
            Ok(letters) => {
                p {
                    (badge(Health::Warning, "waiting")) " "
                    a href="/letters?which=former" {
                        (up_to_max(letters)) @if letters == 1 { " letter" } @else { " letters" } " of former topics"
                    }
                    ": these topics were made anew since."
                }
            }
        }
    }
}

fn reason_row(shell: &Shell, count: &ReasonCount) -> Markup {
    html! {
        tr {
            th scope="row" {
                @match &count.reason {
                    Some(reason) => { a href={ "/letters?reason=" (utf8_percent_encode(reason, NON_ALPHANUMERIC)) } { (for_people(reason.as_bytes())) } }
                    None => { a href="/letters?which=parked" { "wait behind another letter of their key" } }
                }
            }
            td.number { (show::count(count.letters)) }
            td { (show::moment(count.oldest)) }
            td {
                @if let (Some(reason), true) = (&count.reason, shell.may_change()) {
                    form method="post" action="/letters/retry" {
                        (shell.csrf())
                        input type="hidden" name="reason" value=(reason);
                        button type="submit" { "Retry these" span.unseen { " of the reason " (for_people(reason.as_bytes())) } }
                    }
                }
            }
        }
    }
}

fn choices(which: Which) -> Markup {
    let all = [
        (Which::Dead, "Dead"),
        (Which::Parked, "Waiting behind one"),
        (Which::Discarded, "Discarded"),
        (Which::Former, "Of former topics"),
    ];
    html! {
        nav.choices aria-label="Which letters" {
            ul { @for (choice, name) in all { li { a href={ "/letters?which=" (choice.name()) } aria-current=[(choice == which).then_some("true")] { (name) } } } }
        }
    }
}

fn letters_table(form: &Form, which: Which, found: Result<Vec<Letter>, SqlError>) -> Markup {
    let letters = match found {
        Ok(letters) => letters,
        Err(err) => return not_known(&err),
    };
    if letters.is_empty() {
        return html! { p { "There are none." } };
    }
    let next = letters.last().filter(|_| letters.len() as i64 >= LETTERS_MAX);
    html! {
        (table("Letters, in the order of their topics", &letters))
        @if let Some(last) = next { p { a href=(next_address(form, which, last)) { "Show the next " (LETTERS_MAX) } } }
    }
}

fn next_address(form: &Form, which: Which, last: &Letter) -> String {
    format!(
        "/letters?which={}&reason={}&topic={}&partition={}&offset={}",
        which.name(),
        utf8_percent_encode(&form.reason, NON_ALPHANUMERIC),
        utf8_percent_encode(&last.topic, NON_ALPHANUMERIC),
        last.partition,
        last.offset
    )
}

/// Letters as a table.
fn table(caption: &str, letters: &[Letter]) -> Markup {
    html! {
        div.table-frame tabindex="0" role="region" aria-label=(caption) {
            table {
                caption { (caption) }
                thead {
                    tr {
                        th scope="col" { "Letter" } th scope="col" { "Event" } th scope="col" { "Key" } th scope="col" { "State" }
                        th.number scope="col" { "Waiting behind" } th.number scope="col" { "Retries" } th scope="col" { "Since" }
                    }
                }
                tbody {
                    @for letter in letters {
                        tr {
                            th scope="row" { a href={ "/letters/" (letter.id) } { (letter.id) } }
                            td { (event_link(letter)) }
                            td { (for_people(letter.key.as_deref().unwrap_or_default())) }
                            td { (state(letter)) }
                            td.number { (behind(letter)) }
                            td.number { (letter.retries) }
                            td { (show::moment(letter.discarded_at.unwrap_or(letter.arrived_at))) }
                        }
                    }
                }
            }
        }
    }
}

/// The letter's place. In a topic that was made anew, another record has its offset.
fn event_link(letter: &Letter) -> Markup {
    let place = format!("{} {}/{}", letter.topic, letter.partition, letter.offset);
    html! {
        @if letter.former_topic_id.is_some() { (place) " of a former topic" }
        @else { a href=(record::trace_address_of(&letter.topic, letter.partition, letter.offset)) { (place) } }
    }
}

fn behind(letter: &Letter) -> String {
    up_to_max(letter.behind)
}

/// A number that is counted up to [`BEHIND_MAX`].
fn up_to_max(letters: i64) -> String {
    if letters >= BEHIND_MAX {
        format!("{} or more", show::count(BEHIND_MAX))
    } else {
        show::count(letters)
    }
}

/// What is the matter with a letter.
fn state(letter: &Letter) -> Markup {
    html! {
        @if letter.discarded_at.is_some() {
            (badge(Health::Warning, "discarded"))
            @if let Some(reason) = &letter.discard_reason { " " (for_people(reason.as_bytes())) }
        } @else if let Some(reason) = &letter.reason {
            (badge(Health::Bad, "dead")) " " (for_people(reason.as_bytes()))
        } @else {
            (badge(Health::Warning, "waiting"))
            @if let Some(first) = letter.first { " behind " a href={ "/letters/" (first) } { "letter " (first) } }
        }
    }
}

fn not_known(err: &SqlError) -> Markup {
    html! { p.notice.bad role="alert" { "Nothing is known now: " (err) "." } }
}
