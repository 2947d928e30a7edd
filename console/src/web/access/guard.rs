//! The check that every request passes first.

use std::convert::Infallible;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::header::AsHeaderName;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Redirect, Response};

use super::{Access, COOKIE, Session};
use crate::web::notice::notice;

/// Who asks. `None` in it: nobody who has logged in.
#[derive(Clone, Debug, Default)]
pub struct Visitor(pub Option<Session>);

impl<S: Sync> FromRequestParts<S> for Visitor {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or_default())
    }
}

/// Refuses what nobody may ask, and finds out who asks.
pub async fn guard(State(access): State<Access>, mut request: Request, next: Next) -> Response {
    if !access.needs_login_to_read() && !names_loopback(request.headers()) {
        let what = "This console serves 127.0.0.1, ::1 and localhost only, and the request names another host.";
        return notice(StatusCode::MISDIRECTED_REQUEST, "Not served", what);
    }
    if !is_safe(request.method()) && !is_from_our_page(request.headers()) {
        return notice(
            StatusCode::FORBIDDEN,
            "Nothing is changed",
            "This change comes from another site.",
        );
    }
    let session = cookie(request.headers()).and_then(|id| access.session(id));
    let path = request.uri().path();
    let is_open = path == "/login" || path == "/favicon.ico" || path.starts_with("/assets/");
    if access.needs_login_to_read() && session.is_none() && !is_open {
        return Redirect::to("/login").into_response();
    }
    request.extensions_mut().insert(Visitor(session));
    next.run(request).await
}

fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// Whether the request's host is a name of this machine for itself.
fn names_loopback(headers: &HeaderMap) -> bool {
    let Some(host) = header_text(headers, header::HOST) else {
        return false;
    };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Whether a browser sends the request for a page of ours. What is no browser sends neither header, and has no cookie of a person either.
fn is_from_our_page(headers: &HeaderMap) -> bool {
    if header_text(headers, "sec-fetch-site").is_some_and(|site| !matches!(site, "same-origin" | "none")) {
        return false;
    }
    match (header_text(headers, header::ORIGIN), header_text(headers, header::HOST)) {
        (None, _) => true,
        (Some(origin), Some(host)) => {
            let place = origin
                .strip_prefix("http://")
                .or_else(|| origin.strip_prefix("https://"));
            place.is_some_and(|place| place.eq_ignore_ascii_case(host))
        }
        (Some(_), None) => false,
    }
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    let all = headers.get_all(header::COOKIE).iter();
    let mut pairs = all
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'));
    pairs.find_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='))
}

fn header_text(headers: &HeaderMap, name: impl AsHeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderMap, HeaderName, HeaderValue};

    use super::{cookie, is_from_our_page, names_loopback};

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn only_names_of_this_machine_for_itself_are_served() {
        for ours in [
            "localhost:8080",
            "LOCALHOST",
            "127.0.0.1:8080",
            "127.0.0.1",
            "[::1]:8080",
            "[::1]",
        ] {
            assert!(names_loopback(&headers(&[("host", ours)])), "{ours}");
        }
        for foreign in [
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example:8080",
            "10.0.0.1:8080",
            "",
            "[::2]:80",
        ] {
            assert!(!names_loopback(&headers(&[("host", foreign)])), "{foreign}");
        }
        assert!(!names_loopback(&HeaderMap::new()));
    }

    #[test]
    fn a_change_from_another_site_is_refused() {
        let host = ("host", "localhost:8080");
        for ours in [
            &[host][..],
            &[
                host,
                ("origin", "http://localhost:8080"),
                ("sec-fetch-site", "same-origin"),
            ],
            &[("host", "console.example"), ("origin", "https://console.example")],
        ] {
            assert!(is_from_our_page(&headers(ours)), "{ours:?}");
        }
        for foreign in [
            &[host, ("origin", "http://localhost:3000")][..],
            &[host, ("origin", "https://evil.example")],
            &[host, ("origin", "null")],
            &[host, ("sec-fetch-site", "cross-site")],
            &[
                host,
                ("sec-fetch-site", "same-site"),
                ("origin", "http://localhost:8080"),
            ],
        ] {
            assert!(!is_from_our_page(&headers(foreign)), "{foreign:?}");
        }
    }

    #[test]
    fn the_cookie_is_found_among_others() {
        let found = headers(&[("cookie", "a=b; console_session=xyz; c=d")]);
        assert_eq!(cookie(&found), Some("xyz"));
        assert_eq!(cookie(&headers(&[("cookie", "my_console_session=xyz")])), None);
    }
}
