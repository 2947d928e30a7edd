//! The page `/slots`.

use axum::Router;
use axum::response::Response;
use axum::routing::get;
use maud::html;

use crate::app::App;
use crate::web::layout::{self, Current, Shell};

/// Its routes.
pub(super) fn routes() -> Router<App> {
    Router::new().route("/slots", get(show))
}

async fn show(shell: Shell) -> Response {
    layout::page(&shell, "Slots", Current::Slots, html! {})
}
