//! A topic as it grows, by server-sent events. A script shows them; without it, the page has a link that loads the newest records again.
//!
//! Rows come as markup that the server has made, a few times a second and only so many at once: a page that is flooded says how many it left out.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use maud::{Markup, html};
use time::OffsetDateTime;

use super::{form, record};
use crate::app::App;
use crate::search::request::{Form, Request};
use crate::search::tail::{Followed, Tail};
use crate::settings::mask::Mask;
use crate::web::access::{Access, Session, Visitor};
use crate::web::assets::address_of;

/// Rows that come within this time are sent together.
const GATHER: Duration = Duration::from_millis(250);
/// So many rows are sent together at most. A page shows 200 rows, and nobody reads faster.
const ROWS_MAX: usize = 40;
/// So many rows are looked at for one sending at most; those that follow belong to the next.
const GATHERED_MAX: usize = 200;

/// The part of the page that follows the topic.
pub(super) fn section(form: &Form, request: &Request) -> Markup {
    let of_filter = Form {
        topic: request.topic.clone(),
        key: form.key.clone(),
        id: form.id.clone(),
        header: form.header.clone(),
        field: form.field.clone(),
        ..Form::default()
    };
    let address = format!("/events/tail?{}", form::query(&of_filter));
    let title = "Records as they come";
    html! {
        section.tail aria-labelledby="tail-title" data-tail=(address) {
            h2 id="tail-title" { (title) }
            p.quiet {
                "With the conditions of the form above. What comes faster than a page can show is left out and counted."
            }
            p.without-script { "Records appear here by themselves where scripts run. Without scripts, " a href=(form::address_with(&of_filter, "")) { "load the newest again" } "." }
            p.actions hidden data-tail-controls {
                button type="button" data-tail-button aria-pressed="false" { "Follow" }
                " " span data-tail-state role="status" { "not following" }
            }
            div.table-frame hidden data-tail-frame tabindex="0" role="region" aria-label=(title) {
                table.records {
                    caption { (title) ", the newest first" }
                    (record::head())
                    tbody data-tail-rows {}
                }
            }
            script defer src=(address_of("tail.js")) {}
        }
    }
}

/// The records of a topic from now on.
pub(super) async fn follow(State(app): State<App>, visitor: Visitor, Query(form): Query<Form>) -> Response {
    let pipeline = &app.settings.pipeline;
    let request = match form.check(&pipeline.topics(), &pipeline.mask, OffsetDateTime::now_utc()) {
        Ok(request) => request,
        Err(wrong) => return (StatusCode::UNPROCESSABLE_ENTITY, wrong.join("\n")).into_response(),
    };
    let followed = Followed {
        topic: request.topic,
        filter: request.filter,
    };
    let Some(tail) = app.tails.follow(followed) else {
        let text = "as many pages as may be follow topics already\n";
        return (StatusCode::TOO_MANY_REQUESTS, text).into_response();
    };
    let events = stream::unfold((tail, app, visitor), |(mut tail, app, visitor)| async move {
        let event = next_event(&mut tail, &app.settings.pipeline.mask).await?;
        // The person may have lost the token since, or have logged out.
        let event = may_look(&app.access, &visitor).then_some(event)?;
        Some((Ok::<_, Infallible>(event), (tail, app, visitor)))
    });
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}

/// Whether this person may look at topics now.
fn may_look(access: &Access, Visitor(session): &Visitor) -> bool {
    let is_known = |session: &Session| access.session(&session.id).is_some();
    !access.needs_login_to_read() || session.as_ref().is_some_and(is_known)
}

/// The rows that have come: waits for the first, then gathers those that follow it closely.
async fn next_event(tail: &mut Tail, mask: &Mask) -> Option<Event> {
    let first = tail.next().await?;
    tokio::time::sleep(GATHER).await;
    // A row is short, whatever the size of its record. The newest is the first row of the table.
    let (mut rows, mut left_out) = (VecDeque::new(), 0_u64);
    let mut next = Some(first);
    for _ in 0..GATHERED_MAX {
        match next.or_else(|| tail.next_now()) {
            Some(Ok(record)) => rows.push_front(record::row(&record, mask)),
            Some(Err(trouble)) => return Some(Event::default().event("trouble").data(one_line(&trouble))),
            None => break,
        }
        next = None;
        if rows.len() > ROWS_MAX {
            rows.pop_back();
            left_out += 1;
        }
    }
    left_out += tail.take_dropped();
    let rows = html! { @for row in &rows { (row) } };
    let data = serde_json::json!({ "rows": rows.into_string(), "leftOut": left_out });
    Some(Event::default().event("rows").data(data.to_string()))
}

/// A line of an event has no line break.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::{Access, Visitor, may_look};
    use crate::settings::Role;
    use crate::web::access::tokens::{line, random_text};

    #[test]
    fn whoever_has_logged_out_follows_no_more_where_looking_needs_a_login() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens");
        let token = random_text();
        std::fs::write(&path, line("kim", Role::Operator, &token)).unwrap();
        let access = Access::new("0.0.0.0:80".parse().unwrap(), Some(path.clone())).unwrap();
        let session = access.log_in(&token).unwrap();
        let kim = Visitor(Some(session.clone()));
        assert!(may_look(&access, &kim));
        assert!(!may_look(&access, &Visitor(None)));
        access.log_out(&session);
        assert!(!may_look(&access, &kim));
        let access = Access::new("127.0.0.1:80".parse().unwrap(), Some(path)).unwrap();
        assert!(
            may_look(&access, &Visitor(None)),
            "on a loopback address everybody may look"
        );
    }
}
