//! What every page has around it.

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse as _, Response};
use maud::{DOCTYPE, Markup, html};

use super::access::{Access, Session, Visitor};
use super::assets::address_of;
use crate::settings::Role;
pub use crate::snapshot::verdict::Health;

/// The pages of the navigation, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Current {
    Pipeline,
    Events,
    Trace,
    Groups,
    Slots,
    Views,
    Letters,
    Audit,
    /// None of them.
    Other,
}

const NAVIGATION: [(Current, &str, &str); 8] = [
    (Current::Pipeline, "/", "Pipeline"),
    (Current::Events, "/events", "Events"),
    (Current::Trace, "/trace", "Trace"),
    (Current::Groups, "/groups", "Groups"),
    (Current::Slots, "/slots", "Slots"),
    (Current::Views, "/views", "Views"),
    (Current::Letters, "/letters", "Dead letters"),
    (Current::Audit, "/audit", "Audit"),
];

/// What the layout knows of the request: who asks, and where for.
#[derive(Clone, Debug)]
pub struct Shell {
    /// `None`: nobody who has logged in.
    pub session: Option<Session>,
    /// Path and query of the request.
    pub address: String,
    /// Whether people can log in at all.
    pub has_login: bool,
}

impl<S> FromRequestParts<S> for Shell
where
    S: Send + Sync,
    Access: axum::extract::FromRef<S>,
{
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        let Visitor(session) = Visitor::from_request_parts(parts, state).await?;
        let access = <Access as axum::extract::FromRef<S>>::from_ref(state);
        Ok(Self {
            session,
            address: parts
                .uri
                .path_and_query()
                .map_or("/", |address| address.as_str())
                .to_owned(),
            has_login: access.has_tokens(),
        })
    }
}

impl Shell {
    /// Whether to show buttons that change something.
    #[must_use]
    pub fn may_change(&self) -> bool {
        self.session
            .as_ref()
            .is_some_and(|session| session.role == Role::Operator)
    }

    /// The hidden field that every form with a change must have; nothing for who may not change anything.
    #[must_use]
    pub fn csrf(&self) -> Markup {
        html! {
            @if let Some(session) = &self.session {
                input type="hidden" name="csrf" value=(session.csrf);
            }
        }
    }

    /// A line in the place of a button, for who may not press it.
    #[must_use]
    pub fn why_no_buttons(&self) -> Markup {
        html! {
            p.quiet {
                @if self.may_change() {}
                @else if self.session.is_some() { "Your token may look and not change." }
                @else if self.has_login { a href="/login" { "Log in" } " with an operator's token to change something here." }
                @else { "Nothing can be changed here: the console was started without a file of tokens (CONSOLE_TOKENS)." }
            }
        }
    }
}

/// A whole page.
#[must_use]
pub fn page(shell: &Shell, title: &str, current: Current, content: Markup) -> Response {
    page_with(StatusCode::OK, shell, title, current, &content)
}

/// A whole page with a status of its own.
#[must_use]
pub fn page_with(status: StatusCode, shell: &Shell, title: &str, current: Current, content: &Markup) -> Response {
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · outbox to view" }
                link rel="icon" href=(address_of("icon.svg")) type="image/svg+xml";
                link rel="stylesheet" href=(address_of("console.css"));
                script defer src=(address_of("idiomorph-0.8.0.min.js")) {}
                script defer src=(address_of("console.js")) {}
            }
            body {
                a.skip href="#content" { "Skip to the content" }
                header.rail {
                    a.brand href="/" { span.mark aria-hidden="true" {} "Outbox to view" }
                    nav aria-label="Pages" {
                        ul {
                            @for (page, address, name) in NAVIGATION {
                                li { a href=(address) aria-current=[(page == current).then_some("page")] { (name) } }
                            }
                        }
                    }
                    (who(shell))
                }
                main id="content" tabindex="-1" {
                    h1 { (title) }
                    (content)
                }
            }
        }
    };
    (status, markup).into_response()
}

fn who(shell: &Shell) -> Markup {
    html! {
        div.who {
            @if let Some(session) = &shell.session {
                span { (session.name) " · " (if session.role == Role::Operator { "operator" } else { "reader" }) }
                form method="post" action="/logout" { (shell.csrf()) button.plain type="submit" { "Log out" } }
            } @else if shell.has_login {
                a href="/login" { "Log in" }
            }
            p.live-state id="live-state" hidden {}
        }
    }
}

/// A part of a page that is renewed while people look at it, without losing the focus. `id` is unique in the page. The script asks for the same address again, and
/// takes the element of this id out of the answer.
#[must_use]
pub fn live(id: &str, content: Markup) -> Markup {
    html! { div.live id=(id) data-live { (content) } }
}

/// The badge of a health, with its word.
#[must_use]
pub fn badge(health: Health, word: &str) -> Markup {
    let (class, shape) = match health {
        Health::Good => ("good", "●"),
        Health::Warning => ("warning", "▲"),
        Health::Bad => ("bad", "■"),
        Health::Unknown => ("unknown", "◌"),
    };
    html! { span.badge.(class) { span aria-hidden="true" { (shape) } " " (word) } }
}
