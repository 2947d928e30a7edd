//! Answers made of JSON text that came from the database as it is sent.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// Version of the event that a change wrote: a whole number from 1, in every answer to a change.
const EVENT_VERSION: HeaderName = HeaderName::from_static("event-version");

/// 200 with this JSON text.
pub fn json(body: impl Into<Body>) -> Response {
    ([(header::CONTENT_TYPE, JSON)], body.into()).into_response()
}

/// 201: `body` was made, with the event `version`, and is found at `location`.
#[must_use]
pub fn created(location: String, tag: &str, version: i64, body: impl Into<Body>) -> Response {
    let mut response = changed(tag, version, body);
    *response.status_mut() = StatusCode::CREATED;
    if let Ok(location) = HeaderValue::try_from(location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// 200: the change left `body`, and wrote the event `version`.
#[must_use]
pub fn changed(tag: &str, version: i64, body: impl Into<Body>) -> Response {
    with_version(tagged(&HeaderMap::new(), tag, body), version)
}

/// 204: what was asked about is deleted, which wrote the event `version`.
#[must_use]
pub fn deleted(version: i64) -> Response {
    with_version(StatusCode::NO_CONTENT.into_response(), version)
}

fn with_version(mut response: Response, version: i64) -> Response {
    response.headers_mut().insert(EVENT_VERSION, version.into());
    response
}

/// 200 with `tag` as the entity tag (RFC 9110, section 8.8.3), or 304 when `request` says that it has that already. `tag`
/// changes whenever the body does.
#[must_use]
pub fn tagged(request: &HeaderMap, tag: &str, body: impl Into<Body>) -> Response {
    let Ok(etag) = HeaderValue::try_from(format!("\"{tag}\"")) else {
        return json(body);
    };
    let has_it = request.get_all(header::IF_NONE_MATCH).iter().any(|known| known == etag);
    let mut response = if has_it {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        json(body)
    };
    response.headers_mut().insert(header::ETAG, etag);
    response
}
