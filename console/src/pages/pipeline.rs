//! The page `/`.

use axum::Router;
use axum::response::Response;
use axum::routing::get;
use maud::html;

use crate::app::App;
use crate::web::layout::{self, Current, Shell};

/// Its routes.
pub(super) fn routes() -> Router<App> {
    Router::new().route("/", get(show))
}

async fn show(shell: Shell) -> Response {
    layout::page(&shell, "Pipeline", Current::Pipeline, html! {})
}
