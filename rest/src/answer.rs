//! Answers whose body is JSON text. The database made the text, and it is sent as it is.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// Every answer to a change has this header: the version of the event that the change wrote, a whole number from 1.
const EVENT_VERSION: HeaderName = HeaderName::from_static("event-version");

/// 200 with this JSON text.
pub fn json(body: impl Into<Body>) -> Response {
    ([(header::CONTENT_TYPE, JSON)], body.into()).into_response()
}

/// 201: a thing was created. `body` shows it, `location` is its path, and `version` is that of the event that was written.
#[must_use]
pub fn created(location: String, tag: &str, version: i64, body: impl Into<Body>) -> Response {
    let mut response = changed(tag, version, body);
    *response.status_mut() = StatusCode::CREATED;
    if let Ok(location) = HeaderValue::try_from(location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// 200: a thing was changed. `body` shows it after the change, and `version` is that of the event that was written.
#[must_use]
pub fn changed(tag: &str, version: i64, body: impl Into<Body>) -> Response {
    with_version(tagged(&HeaderMap::new(), tag, body), version)
}

/// 204: a thing was deleted. `version` is that of the event that was written.
#[must_use]
pub fn deleted(version: i64) -> Response {
    with_version(StatusCode::NO_CONTENT.into_response(), version)
}

fn with_version(mut response: Response, version: i64) -> Response {
    response.headers_mut().insert(EVENT_VERSION, version.into());
    response
}

/// 200 with `tag` as the entity tag (RFC 9110, section 8.8.3), or 304 if the request's `If-None-Match` has this tag. `tag` changes whenever the body
/// does.
#[must_use]
pub fn tagged(request: &HeaderMap, tag: &str, body: impl Into<Body>) -> Response {
    let Ok(etag) = HeaderValue::try_from(format!("\"{tag}\"")) else {
        return json(body);
    };
    let client_has_it = request.get_all(header::IF_NONE_MATCH).iter().any(|known| known == etag);
    let mut response = if client_has_it {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        json(body)
    };
    response.headers_mut().insert(header::ETAG, etag);
    response
}
