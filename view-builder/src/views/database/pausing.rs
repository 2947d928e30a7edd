//! How a running builder pauses a view, and how it learns which views are paused.

use super::Database;
use crate::process::measure::Trouble;
use crate::views::pauses::{Cause, Paused, load_paused, pause_view};
use crate::views::view::View;

impl Database {
    /// Pauses the view. Waits for as long as Postgres is away. Every builder, this one too, has to claim its partitions again.
    pub(crate) async fn pause(&mut self, view: &View, cause: &Cause<'_>) {
        loop {
            let attempt = async {
                // A connection of its own: a session prepares the views' statements, and that may be what fails.
                let client = self.connect().await?;
                pause_view(&client, view, cause).await
            };
            match attempt.await {
                Ok(true) => {
                    Trouble::View.note();
                    tracing::error!(
                        view = view.name,
                        reason = cause.reason,
                        "the view is paused, all others go on: mend it, then `view-builder resume` or `view-builder rebuild`"
                    );
                    break;
                }
                // Another builder has paused it already, or its SQL is another one now.
                Ok(false) => break,
                Err(err) => self.wait(&err).await,
            }
        }
        self.session = None;
    }

    /// The views that are paused. `None`: Postgres does not answer now.
    pub(crate) async fn paused(&mut self) -> Option<Vec<Paused>> {
        load_paused(&self.session().await.client).await.ok()
    }
}
