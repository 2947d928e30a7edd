//! The admin port: `/livez`, `/readyz`, `/metrics`.

use std::net::SocketAddr;

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde_json::json;
use tokio::net::TcpListener;

use crate::{Readiness, Shutdown};

/// Upper bounds of latency histograms, in seconds.
const LATENCY_BUCKETS_S: [f64; 14] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0,
];

/// Installs the process's metrics recorder. Every metric whose name ends in `_seconds` is a histogram with [`LATENCY_BUCKETS_S`].
///
/// # Errors
/// A recorder is installed already.
pub fn install_metrics() -> anyhow::Result<PrometheusHandle> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(
            metrics_exporter_prometheus::Matcher::Suffix("_seconds".to_owned()),
            &LATENCY_BUCKETS_S,
        )
        .context("invalid histogram buckets")?
        .install_recorder()
        .context("cannot install the metrics recorder")
}

/// `/livez` (200 while the process runs), `/readyz` (200, or 503 with the reasons; warnings with either), `/metrics` (Prometheus text format).
pub fn router(readiness: Readiness, metrics: PrometheusHandle) -> Router {
    Router::new()
        .route("/livez", get(|| async { "live\n" }))
        .route("/readyz", get(readyz))
        .with_state(readiness)
        .merge(Router::new().route("/metrics", get(render_metrics)).with_state(metrics))
}

/// Serves [`router`] on `listen` until `shutdown`.
///
/// # Errors
/// The address cannot be bound.
pub async fn serve(
    listen: SocketAddr,
    readiness: Readiness,
    metrics: PrometheusHandle,
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
    metrics: PrometheusHandle,
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

async fn render_metrics(State(metrics): State<PrometheusHandle>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render())
}
