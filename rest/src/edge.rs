//! What every request passes: checks that come before any route, answers for what no route takes, and its duration.

use std::time::Instant;

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request};
use axum::http::{Method, StatusCode, Version, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};

use crate::json::BODY_LIMIT_BYTES;
use crate::{Problem, media, path};

/// Longest path with its query, in bytes; 414 above.
const TARGET_LIMIT_BYTES: usize = 8 * 1024;
/// Names and values of a request's headers together, in bytes; 431 above.
const HEADERS_LIMIT_BYTES: usize = 8 * 1024;

/// Puts the edge around `routes`.
pub(crate) fn around(routes: Router) -> Router {
    metrics::describe_histogram!(
        "http_request_duration_seconds",
        "from a request's head until its answer's, in seconds, by method, route and status"
    );
    routes
        .fallback(|| async { Problem::not_found("there is nothing at this path") })
        .layer(DefaultBodyLimit::max(BODY_LIMIT_BYTES))
        .layer(middleware::from_fn(pass))
}

async fn pass(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let response = match check(&request, route.is_some()) {
        Ok(()) => for_method(&method, next.run(request).await),
        Err(problem) => problem.into_response(),
    };
    // A path that no route takes is the client's invention, and there are too many of those for a label.
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

/// What is refused whatever the route would do. `Accept` comes last and only where there is a route: a missing path is a 404
/// for everyone.
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
            "the only media type to be had is application/json",
        ));
    }
    Ok(())
}

/// Answers for a method that the route does not have: OPTIONS is told which ones there are, another is refused. axum puts
/// `Allow` on both, behind this.
fn for_method(method: &Method, response: Response) -> Response {
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

/// The statuses that are answered often cost no allocation.
fn status_label(status: StatusCode) -> metrics::SharedString {
    match status {
        StatusCode::OK => metrics::SharedString::const_str("200"),
        StatusCode::CREATED => metrics::SharedString::const_str("201"),
        StatusCode::NO_CONTENT => metrics::SharedString::const_str("204"),
        other => other.as_str().to_owned().into(),
    }
}
