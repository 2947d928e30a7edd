//! Pausing a view, and the views that are paused, by the builder's own connection.

use super::Database;
use crate::views::pauses::{Cause, Paused, load, write};
use crate::views::view::View;

impl Database {
    /// Pauses the view; waits for as long as Postgres is away. Every builder is thrown out of its partitions, this one too.
    pub(crate) async fn pause(&mut self, view: &View, cause: &Cause<'_>) {
        loop {
            let attempt = async {
                // Not the session, which may be what cannot be made.
                let client = self.connect().await?;
                write(&client, view, cause).await
            };
            match attempt.await {
                Ok(true) => {
                    tracing::error!(
                        view = view.name,
                        reason = cause.reason,
                        "the view is paused, all others go on: mend it, then view-builder resume or rebuild"
                    );
                    break;
                }
                // Somebody else was quicker, or its SQL is another one now.
                Ok(false) => break,
                Err(err) => self.wait(&err).await,
            }
        }
        self.session = None;
    }

    /// The views that are paused; none where Postgres does not tell now.
    pub(crate) async fn paused(&mut self) -> Option<Vec<Paused>> {
        load(&self.session().await.client).await.ok()
    }
}
