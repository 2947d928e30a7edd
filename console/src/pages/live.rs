//! Tells pages that are open when there are new figures (server-sent events).

use std::convert::Infallible;

use axum::Router;
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::routing::get;
use futures_util::Stream;
use futures_util::stream::unfold;

use crate::app::App;

/// Its routes.
pub(super) fn routes() -> Router<App> {
    Router::new().route("/live", get(rounds))
}

/// An event `round` each time that all parts have been asked. The page then asks for itself again.
async fn rounds(State(app): State<App>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let rounds = unfold(app.store.rounds(), async |mut rounds| {
        rounds.changed().await.ok()?;
        let round = *rounds.borrow_and_update();
        Some((Ok(Event::default().event("round").data(round.to_string())), rounds))
    });
    Sse::new(rounds).keep_alive(KeepAlive::default())
}
