//! What people see. A page is whole without scripts; scripts only renew its figures.

mod audit;
mod events;
mod groups;
mod jobs;
mod letters;
mod live;
mod login;
mod parts;
mod pipeline;
mod slots;
mod trace;
mod views;

use axum::Router;
use axum::http::StatusCode;
use axum::response::Response;
use maud::html;
use tower_http::compression::CompressionLayer;

use crate::app::App;
use crate::web::layout::{self, Current, Shell};
use crate::web::{access, assets, headers};

/// All pages, with the checks that each request passes.
pub fn router(app: App) -> Router {
    Router::new()
        .merge(pipeline::routes())
        .merge(events::routes())
        .merge(trace::routes())
        .merge(groups::routes())
        .merge(slots::routes())
        .merge(views::routes())
        .merge(letters::routes())
        .merge(audit::routes())
        .merge(login::routes())
        .merge(jobs::routes())
        .merge(live::routes())
        .merge(assets::routes())
        .fallback(not_found)
        .layer(axum::middleware::from_fn_with_state(app.access.clone(), access::guard))
        .layer(axum::middleware::from_fn(headers::add_headers))
        .layer(CompressionLayer::new())
        .with_state(app)
}

async fn not_found(shell: Shell) -> Response {
    let content =
        html! { p { "There is no such page. " a href="/" { "The pipeline" } " is where everything begins." } };
    layout::page_with(StatusCode::NOT_FOUND, &shell, "Not found", Current::Other, &content)
}
