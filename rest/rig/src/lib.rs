//! A REST program as its tests meet it: the real executable, on a port and a database of its own, reached by HTTP and SQL.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod answer;
mod database;
mod gate;
mod outbox;
mod program;

use std::time::{Duration, Instant};

pub use answer::{Answer, answer};
pub use database::Database;
pub use gate::{Gate, Lost};
pub use outbox::OutboxRow;
pub use program::{Executable, Program, migrate};

/// Longest time that anything in a test may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `holds`, within [`PATIENCE`].
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
