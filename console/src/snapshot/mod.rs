//! What the parts of the pipeline said last, and when.

use std::time::Duration;

use crate::settings::Pipeline;

/// How often each part is asked.
pub const INTERVAL: Duration = Duration::from_secs(5);

/// What the parts said last. Pages are made from it, so they never wait for a part.
#[derive(Debug)]
pub struct Store {}

impl Store {
    /// Nothing has been said yet.
    #[must_use]
    pub fn new(_pipeline: &Pipeline) -> Self {
        Self {}
    }
}
