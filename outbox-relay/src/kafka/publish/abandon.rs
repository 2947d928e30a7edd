//! Giving up work on another thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Tells work on another thread that nobody waits for it any more; told when dropped.
#[derive(Debug, Default)]
pub struct Abandon(Arc<AtomicBool>);

/// The other end of an [`Abandon`].
#[derive(Clone, Debug)]
pub struct Abandoned(Arc<AtomicBool>);

impl Abandon {
    /// What the other thread looks at.
    #[must_use]
    pub fn watch(&self) -> Abandoned {
        Abandoned(Arc::clone(&self.0))
    }
}

impl Abandoned {
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
