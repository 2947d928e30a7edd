//! Logging in and out.

use axum::Form;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Redirect, Response};
use axum::routing::{get, post};
use maud::{Markup, html};
use serde::Deserialize;

use crate::app::App;
use crate::web::access::{COOKIE, Visitor};
use crate::web::layout::{self, Current, Shell};

/// Its routes.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/login", get(show).post(log_in))
        .route("/logout", post(log_out))
}

async fn show(State(app): State<App>, shell: Shell) -> Response {
    layout::page(&shell, "Log in", Current::Other, form(&app, &shell, None))
}

fn form(app: &App, shell: &Shell, error: Option<&str>) -> Markup {
    html! {
        div.card.narrow {
            @if !shell.has_login {
                p { "Nobody can log in: the console was started without a file of tokens. Make one, and give it as " code { "CONSOLE_TOKENS" } ":" }
                pre { "console token NAME >> tokens" }
            } @else {
                @if let Some(error) = error { p.error role="alert" { (error) } }
                p {
                    @if app.access.needs_login_to_read() { "Here looking needs a token, and so does every change." }
                    @else { "Looking needs no token here. Every change does." }
                }
                form method="post" action="/login" {
                    label for="token" { "Token" }
                    input id="token" name="token" type="password" autocomplete="current-password" required autofocus;
                    button.primary type="submit" { "Log in" }
                }
                p.quiet { "A token is made by " code { "console token NAME" } "." }
            }
        }
    }
}

#[derive(Deserialize)]
struct Login {
    token: String,
}

async fn log_in(State(app): State<App>, shell: Shell, headers: HeaderMap, Form(login): Form<Login>) -> Response {
    let Some(session) = app.access.log_in(&login.token) else {
        tracing::warn!("somebody tried to log in with a token that nobody has");
        let content = form(&app, &shell, Some("Nobody has this token."));
        return layout::page_with(StatusCode::FORBIDDEN, &shell, "Log in", Current::Other, &content);
    };
    tracing::info!(person = session.name, "logged in");
    let cookie = format!(
        "{COOKIE}={}; HttpOnly; SameSite=Strict; Path=/; Max-Age=43200{}",
        session.id,
        secure(&headers)
    );
    ([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response()
}

/// What is added to the cookie where the page has come by HTTPS, from a proxy: the browser then never sends it in the clear.
fn secure(headers: &HeaderMap) -> &'static str {
    let origin = headers.get(header::ORIGIN);
    if origin.is_some_and(|origin| origin.as_bytes().starts_with(b"https://")) {
        "; Secure"
    } else {
        ""
    }
}

async fn log_out(State(app): State<App>, Visitor(session): Visitor) -> Response {
    if let Some(session) = session {
        app.access.log_out(&session);
    }
    let cookie = format!("{COOKIE}=; HttpOnly; SameSite=Strict; Path=/; Max-Age=0");
    ([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response()
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderMap, HeaderValue, header};

    use super::secure;

    #[test]
    fn the_cookie_is_kept_to_https_where_the_page_came_by_it() {
        let of = |origin: &'static str| {
            secure(&HeaderMap::from_iter([(
                header::ORIGIN,
                HeaderValue::from_static(origin),
            )]))
        };
        assert_eq!(of("https://console.example"), "; Secure");
        assert_eq!(of("http://localhost:8080"), "");
        assert_eq!(secure(&HeaderMap::new()), "");
    }
}
