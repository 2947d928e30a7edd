//! The health paths of the system that this one replaced. Its clients still ask for them.

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use service::Readiness;

/// `/actuator/health` says whether the program can do its work, like `/readyz`; `/actuator/info` says nothing.
pub(crate) fn router(readiness: Readiness) -> Router {
    Router::new()
        .route("/actuator/health", get(health))
        .route("/actuator/info", get(info))
        .with_state(readiness)
}

async fn health(State(readiness): State<Readiness>) -> Response {
    let (status, body) = if readiness.reasons().is_empty() {
        (StatusCode::OK, r#"{"status":"UP"}"#)
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, r#"{"status":"DOWN"}"#)
    };
    (status, [actuator_content_type()], body).into_response()
}

async fn info() -> impl IntoResponse {
    ([actuator_content_type()], "{}")
}

fn actuator_content_type() -> (header::HeaderName, &'static str) {
    (header::CONTENT_TYPE, "application/vnd.spring-boot.actuator.v3+json")
}
