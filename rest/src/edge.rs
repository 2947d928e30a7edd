//! What happens to every request, whatever its route: checks before the route, an answer if there is no route, and a measurement of the duration.

use std::time::Instant;

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request};
use axum::http::{Method, StatusCode, Version, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};

use crate::json::BODY_LIMIT_BYTES;
use crate::{Problem, media, path};

/// Longest path with its query, in bytes. A longer one is answered 414.
const TARGET_LIMIT_BYTES: usize = 8 * 1024;
/// Most bytes of the names and values of a request's headers together. More are answered 431.
const HEADERS_LIMIT_BYTES: usize = 8 * 1024;

/// Adds to `routes` what happens to every request.
pub(crate) fn wrap(routes: Router) -> Router {
    metrics::describe_histogram!(
        "http_request_duration_seconds",
        "from a request's head until its answer's, in seconds, by method, route and status"
    );
    routes
        .fallback(|| async { Problem::not_found("there is nothing at this path") })
        .layer(DefaultBodyLimit::max(BODY_LIMIT_BYTES))
        .layer(middleware::from_fn(handle))
}

async fn handle(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let response = match check(&request, route.is_some()) {
        Ok(()) => replace_if_no_such_method(&method, next.run(request).await),
        Err(problem) => problem.into_response(),
    };
    // Clients can invent any number of paths that have no route, so such a path is no label.
    let route = route.map_or_else(|| "unmatched".to_owned(), |route| route.as_str().to_owned());
    metrics::histogram!(
        "http_request_duration_seconds",
        "method" => method_label(&method),
        "route" => route,
        "status" => status_label(response.status()),
    )
    .record(started.elapsed());
    response
}

/// Refuses what no route would accept. `Accept` is checked last, and only if there is a route: a path without a route is 404 for everyone.
fn check(request: &Request, has_route: bool) -> Result<(), Problem> {
    let (uri, headers) = (request.uri(), request.headers());
    if uri
        .path_and_query()
        .is_some_and(|target| target.as_str().len() > TARGET_LIMIT_BYTES)
    {
        return Err(Problem::new(
            StatusCode::URI_TOO_LONG,
            format!("path and query may have {TARGET_LIMIT_BYTES} bytes"),
        ));
    }
    let header_bytes: usize = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    if header_bytes > HEADERS_LIMIT_BYTES {
        return Err(Problem::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            format!("the headers may have {HEADERS_LIMIT_BYTES} bytes together"),
        ));
    }
    if request.version() == Version::HTTP_11 && !headers.contains_key(header::HOST) {
        return Err(Problem::bad_request("the header Host must be there"));
    }
    if headers
        .get(header::EXPECT)
        .is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
    {
        return Err(Problem::new(
            StatusCode::EXPECTATION_FAILED,
            "the only expectation that can be met is 100-continue",
        ));
    }
    path::check_encoding(uri.path())?;
    if has_route && uri.path().starts_with("/api/") && !media::accepts_json(headers.get_all(header::ACCEPT).iter()) {
        return Err(Problem::new(
            StatusCode::NOT_ACCEPTABLE,
            "the only media type of answers is application/json",
        ));
    }
    Ok(())
}

/// Replaces the answer to a method that the route does not have: 204 for OPTIONS, 405 for every other method. After this, axum adds the header
/// `Allow` to both.
fn replace_if_no_such_method(method: &Method, response: Response) -> Response {
    if response.status() != StatusCode::METHOD_NOT_ALLOWED {
        response
    } else if method == Method::OPTIONS {
        StatusCode::NO_CONTENT.into_response()
    } else {
        Problem::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "this path does not take that method; Allow names those it takes",
        )
        .into_response()
    }
}

fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// The label for a status. The frequent ones need no allocation.
fn status_label(status: StatusCode) -> metrics::SharedString {
    match status {
        StatusCode::OK => metrics::SharedString::const_str("200"),
        StatusCode::CREATED => metrics::SharedString::const_str("201"),
        StatusCode::NO_CONTENT => metrics::SharedString::const_str("204"),
        other => other.as_str().to_owned().into(),
    }
}
