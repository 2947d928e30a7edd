//! A page that only says something, for whoever asks before it is known who that is.

use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use maud::{DOCTYPE, html};

use super::assets::address_of;

/// A page with a heading and a text.
#[must_use]
pub fn notice(status: StatusCode, title: &str, text: &str) -> Response {
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) " · outbox to view" }
                link rel="icon" href=(address_of("icon.svg")) type="image/svg+xml";
                link rel="stylesheet" href=(address_of("console.css"));
            }
            body.bare {
                main {
                    div.card.narrow {
                        h1 { (title) }
                        p role="alert" { (text) }
                        p { a.button href="/" { "To the pipeline" } " " a.button href="/login" { "Log in" } }
                    }
                }
            }
        }
    };
    (status, markup).into_response()
}
