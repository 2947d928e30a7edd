//! The admin port: `/livez`, `/readyz`, `/metrics`.

use std::net::SocketAddr;

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use serde_json::json;
use tokio::net::TcpListener;

pub use crate::exporter::install as install_metrics;
use crate::{Exporter, Readiness, Shutdown};

/// `/livez` (200 while the process runs), `/readyz` (200, or 503 with the reasons; either may have warnings), `/metrics` (Prometheus text format).
pub fn router(readiness: Readiness, metrics: impl Into<Exporter>) -> Router {
    Router::new()
        .route("/livez", get(|| async { "live\n" }))
        .route("/readyz", get(readyz))
        .with_state(readiness)
        .merge(
            Router::new()
                .route("/metrics", get(render_metrics))
                .with_state(metrics.into()),
        )
}

/// Serves [`router`] on `listen` until `shutdown`.
///
/// # Errors
/// The address cannot be bound.
pub async fn serve(
    listen: SocketAddr,
    readiness: Readiness,
    metrics: impl Into<Exporter>,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let listener =
        std::net::TcpListener::bind(listen).with_context(|| format!("cannot listen on {listen} (ADMIN_LISTEN)"))?;
    serve_on(listener, readiness, metrics, shutdown).await
}

/// Serves [`router`] on a bound listener until `shutdown`.
///
/// # Errors
/// The listener cannot be used.
pub async fn serve_on(
    listener: std::net::TcpListener,
    readiness: Readiness,
    metrics: impl Into<Exporter>,
    mut shutdown: Shutdown,
) -> anyhow::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let address = listener.local_addr().context("no local address")?;
    tracing::info!(admin.listen = %address, "admin port is open");
    axum::serve(listener, router(readiness, metrics))
        .with_graceful_shutdown(async move { shutdown.triggered().await })
        .await
        .context("admin port failed")
}

async fn readyz(State(readiness): State<Readiness>) -> impl IntoResponse {
    let (reasons, warnings) = (readiness.reasons(), readiness.warnings());
    let mut answer = json!({"ready": reasons.is_empty()});
    if !warnings.is_empty() {
        answer["warnings"] = json!(warnings);
    }
    if reasons.is_empty() {
        return (StatusCode::OK, axum::Json(answer));
    }
    answer["reasons"] = json!(reasons);
    (StatusCode::SERVICE_UNAVAILABLE, axum::Json(answer))
}

async fn render_metrics(State(metrics): State<Exporter>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render())
}
